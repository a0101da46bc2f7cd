//! PostgreSQL's own load generator, running one prepared statement again and again.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::database::{Database, DatabaseServer};
use crate::bench::{
    cpu::{self, CpuTimes},
    histogram::Histogram,
    load::Run,
};

/// For how much longer than it is needed pgbench would go on, should its lines be late.
const SPARE_SECONDS: u64 = 10;
/// How long the backends of a run may take to go.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A script with the values of its variables.
pub(in crate::bench) struct Pgbench<'a> {
    server: &'a DatabaseServer,
    database: &'a Database,
    script: PathBuf,
    variables: Vec<(String, String)>,
}

impl<'a> Pgbench<'a> {
    /// Writes the script to a file of this path.
    pub(in crate::bench) fn new(
        server: &'a DatabaseServer,
        database: &'a Database,
        path: PathBuf,
        script: &str,
        variables: Vec<(String, String)>,
    ) -> Result<Self> {
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { server, database, script: path, variables })
    }

    /// Runs it at `connections` clients on two threads, and measures while all of them are connected.
    pub(in crate::bench) fn run(&self, connections: usize, warmup: Duration, measure: Duration) -> Result<Run> {
        let (warmup, measure) = (warmup.as_secs_f64(), measure.as_secs_f64());
        let most = (warmup + measure) as u64 + SPARE_SECONDS;
        let mut child = self.command(connections, most).spawn().context("pgbench could not be started")?;
        let errors = child.stderr.take().context("pgbench has no stderr")?;
        let pgbench = Running(child);
        let mut said = Vec::new();
        let mut started: Option<(f64, CpuTimes)> = None;
        let (mut before, mut requests) = (0.0, 0.0);
        for line in BufReader::new(errors).lines() {
            let line = line?;
            let Some((now, rate)) = parse_progress(&line) else {
                said.push(line);
                continue;
            };
            let Some((from, cpu)) = started else {
                if now >= warmup {
                    started = Some((now, self.cpu(&pgbench)?));
                }
                before = now;
                continue;
            };
            requests += rate * (now - before);
            before = now;
            // A line may be late on a busy machine.
            let seconds = now - from;
            if seconds >= measure - 0.5 {
                let cpu = self.cpu(&pgbench)?.since(cpu);
                drop(pgbench);
                self.wait_until_alone()?;
                let requests = requests as u64;
                return Ok(Run { requests, histogram: Histogram::new(), seconds, cpu, errors: 0, first_error: None });
            }
        }
        bail!("pgbench ended before its time: {}", said.join("; "))
    }

    fn command(&self, connections: usize, seconds: u64) -> Command {
        let mut command = self.database.program("pgbench");
        command.args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--progress=1"]);
        command.arg(format!("--client={connections}")).arg(format!("--time={seconds}"));
        command.arg("--file").arg(&self.script);
        for (name, value) in &self.variables {
            command.arg(format!("--define={name}={value}"));
        }
        command.arg(self.database.url()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn cpu(&self, pgbench: &Running) -> Result<CpuTimes> {
        Ok(CpuTimes {
            server: Duration::ZERO,
            database: self.server.cpu()?,
            generator: cpu::of_process(pgbench.0.id())?,
            machine: cpu::of_machine()?,
        })
    }

    /// The next run must not share the machine with backends that are still ending.
    fn wait_until_alone(&self) -> Result<()> {
        let asked = Instant::now();
        while self.database.run("select count(*) from pg_stat_activity where application_name = 'pgbench'")? != "0" {
            ensure!(asked.elapsed() < LEAVE_TIMEOUT, "backends of pgbench were there {LEAVE_TIMEOUT:?} after its end");
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

/// Ends its process with itself.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The time, in seconds, and the transactions a second since the last line.
fn parse_progress(line: &str) -> Option<(f64, f64)> {
    let (time, rest) = line.strip_prefix("progress: ")?.split_once(" s, ")?;
    let (rate, rest) = rest.split_once(" tps, ")?;
    rest.ends_with(", 0 failed").then_some((time.parse().ok()?, rate.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_gives_time_and_rate() {
        let line = "progress: 2.0 s, 21875.9 tps, lat 0.731 ms stddev 0.302, 0 failed";
        assert_eq!(parse_progress(line), Some((2.0, 21_875.9)));
    }

    #[test]
    fn failures_are_no_progress() {
        assert_eq!(parse_progress("progress: 2.0 s, 9.0 tps, lat 0.731 ms stddev 0.302, 3 failed"), None);
        assert_eq!(parse_progress("pgbench: error: client 0 aborted in command 3"), None);
    }
}
