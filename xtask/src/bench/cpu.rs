//! CPU time, user and system, of those who take part in a run; read from Linux's `/proc`.

use std::{fs, io, time::Duration};

use anyhow::{Context as _, Result};

/// The unit of `/proc/PID/stat` (USER_HZ), the same on every Linux that Rust's standard library knows.
const TICKS_PER_SECOND: u64 = 100;

/// The CPU time of each who takes part, zero of one who does not, and of the whole machine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CpuTimes {
    pub(super) server: Duration,
    pub(super) database: Duration,
    pub(super) generator: Duration,
    pub(super) machine: Duration,
}

impl CpuTimes {
    /// What was used since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            server: self.server.saturating_sub(earlier.server),
            database: self.database.saturating_sub(earlier.database),
            generator: self.generator.saturating_sub(earlier.generator),
            machine: self.machine.saturating_sub(earlier.machine),
        }
    }

    /// What was used by those who do not take part.
    pub(super) fn others(self) -> Duration {
        self.machine.saturating_sub(self.server + self.database + self.generator)
    }
}

/// All processes of the machine so far, and what its host took from it.
pub(super) fn of_machine() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    parse_machine(&stat).context("/proc/stat is not as expected")
}

/// All threads of a process so far.
pub(super) fn of_process(pid: u32) -> Result<Duration> {
    times(pid).map(|times| times.own)
}

/// A process and all that it has started: the children that run, and those that have ended.
pub(super) fn of_family(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(&path).with_context(|| format!("{path}: is the process still running?"))?;
    let mut sum = Duration::ZERO;
    for child in children.split_ascii_whitespace() {
        // To the nanosecond, for hundreds of processes are summed, each with one thread.
        match fs::read_to_string(format!("/proc/{child}/schedstat")) {
            Ok(schedstat) => sum += parse_schedstat(&schedstat).with_context(|| format!("schedstat of {child}"))?,
            // It ended since it was listed; the parent's line, read later, holds its time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("/proc/{child}/schedstat")),
        }
    }
    let times = times(pid)?;
    Ok(sum + times.own + times.ended_children)
}

struct Times {
    own: Duration,
    ended_children: Duration,
}

fn times(pid: u32) -> Result<Times> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("{path}: is the process still running?"))?;
    parse_stat(&stat).with_context(|| format!("{path} is not as expected"))
}

fn parse_stat(stat: &str) -> Option<Times> {
    // The name of the program, in brackets, may hold spaces; what follows it does not.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut user_and_system = || {
        let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    };
    Some(Times { own: user_and_system()?, ended_children: user_and_system()? })
}

fn parse_machine(stat: &str) -> Option<Duration> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let ticks = fields.map(|field| field.parse().ok()).collect::<Option<Vec<u64>>>()?;
    let [user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen, ..] = ticks[..] else { return None };
    let busy = user + nice + system + interrupts + soft_interrupts + stolen;
    Some(Duration::from_millis(busy * 1000 / TICKS_PER_SECOND))
}

fn parse_schedstat(schedstat: &str) -> Option<Duration> {
    schedstat.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn cpu_time_is_read_after_the_program_name() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194304 1 0 0 0 150 25 7 3 20 0 9 0 1 1 1";
        let times = parse_stat(stat).unwrap();
        assert_eq!((times.own, times.ended_children), (Duration::from_millis(1750), Duration::from_millis(100)));
        assert!(parse_stat("42 (a").is_none());
    }

    #[test]
    fn the_time_of_the_machine_is_all_but_idle_and_waiting() {
        let stat = "cpu  100 20 30 4000 500 6 7 8 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse_machine(stat), Some(Duration::from_millis(1710)));
        assert_eq!(parse_machine("cpu  1 2 3\n"), None);
    }

    #[test]
    fn nanoseconds_are_the_first_field_of_schedstat() {
        assert_eq!(parse_schedstat("1500 7 3\n"), Some(Duration::from_nanos(1500)));
        assert_eq!(parse_schedstat("\n"), None);
    }

    #[test]
    fn a_family_counts_children_that_run_and_that_have_ended() {
        // The shell's first child burns CPU and ends, the second burns CPU and stays.
        let burn = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done";
        let script = format!("({burn}); ({burn}; echo ready; exec sleep 60) & wait");
        let mut command = Command::new("sh");
        let mut shell = command.args(["-c", &script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(shell.stdout.as_mut().unwrap()), &mut ready).unwrap();
        let (alone, family) = (times(shell.id()).unwrap(), of_family(shell.id()).unwrap());
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.id())).unwrap();
        Command::new("kill").args(children.split_ascii_whitespace()).status().unwrap();
        shell.wait().unwrap();
        assert_eq!(ready, "ready\n");
        assert!(!alone.ended_children.is_zero());
        let running = family.saturating_sub(alone.own + alone.ended_children);
        assert!(running > alone.ended_children / 4, "{running:?} beside {:?}", alone.ended_children);
    }
}
