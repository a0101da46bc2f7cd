//! The processes of a cluster: who runs them, how they get signals, who ends them when we cannot.
//!
//! They are found through Linux's `/proc`.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The user and group `nobody`: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// The user that the server has to run as, if it is not ours.
pub(super) fn server_user() -> Option<u32> {
    // The folder of a process belongs to the user that it acts as.
    let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    root.then_some(NOBODY)
}

/// Whether the user that a server runs as may enter `folder`: for root it is another user.
pub fn server_can_enter(folder: &Path) -> bool {
    let open = |folder: &Path| fs::metadata(folder).is_ok_and(|found| found.permissions().mode() & 0o001 != 0);
    server_user().is_none() || fs::canonicalize(folder).is_ok_and(|folder| folder.ancestors().all(open))
}

/// A program of PostgreSQL, run by the server's user in `folder`. A Ctrl-C at the terminal does not
/// reach it: we end it.
pub(super) fn program(path: &Path, folder: &Path) -> Command {
    let mut command = Command::new(path);
    command.current_dir(folder).stdin(Stdio::null()).process_group(0);
    if let Some(user) = server_user() {
        command.uid(user).gid(user);
    }
    command
}

/// Sends a signal, named as `kill` names it, to processes; one that has ended needs none.
pub(super) fn signal(name: &str, pids: &[u32]) -> io::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", "kill -s \"$@\"", "sh", name]).args(pids.iter().map(u32::to_string));
    command.stdin(Stdio::null()).stderr(Stdio::null()).status().map(drop)
}

/// The state of a process, a letter (`T` is stopped, `Z` has ended), and its parent; `None` if there is none.
fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether a process does nothing, for it is stopped or has ended.
pub(super) fn stands_still(pid: u32) -> bool {
    has_ended(pid) || state_and_parent(pid).is_none_or(|(state, _)| state == 'T')
}

pub(super) fn has_ended(pid: u32) -> bool {
    state_and_parent(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

/// The processes whose parent is `pid`: every other process of a server is its postmaster's child.
pub(super) fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let candidate = name.to_str().and_then(|name| name.parse().ok());
        children.extend(candidate.filter(|candidate| state_and_parent(*candidate).is_some_and(|(_, it)| it == pid)));
    }
    Ok(children)
}

/// Waits for its input to end, then ends the server that runs on `$1/data`, also a stopped one, and removes `$1`.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
read -r _
{
    pid=$(head -n 1 "$1/data/postmaster.pid")
    runs() { grep -q -F "$1/data" "/proc/$pid/cmdline"; }
    if [ -n "$pid" ] && runs "$1"; then
        children=$(grep -l "^PPid:[[:space:]]*$pid\$" /proc/[0-9]*/status | cut -d / -f 3)
        kill -CONT $children $pid
        kill -QUIT $pid
        tries=0
        while runs "$1" && [ $tries -lt 200 ]; do
            sleep 0.02
            tries=$((tries + 1))
        done
        runs "$1" && kill -KILL $children $pid
    fi
    rm -rf "$1"
} 2>/dev/null
"#;

/// A shell that outlives us and cleans up behind us, however we end: our end closes its input.
pub(super) struct Watchdog {
    shell: Child,
}

impl Watchdog {
    /// Watches over the cluster in `folder`.
    pub(super) fn start(folder: &Path) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG, "sh"]).arg(folder).current_dir("/").process_group(0);
        let shell = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { shell })
    }
}

/// Returns when the server has ended and its folder is gone.
impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
