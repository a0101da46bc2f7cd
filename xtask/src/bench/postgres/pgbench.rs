//! PostgreSQL's own load generator, running one prepared statement again and again.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::database::{Database, DatabaseServer};
use crate::bench::{
    cpu::{self, CpuTimes},
    histogram::Histogram,
    load::Run,
    report::median,
};
