//! A server as a child process on a loopback port: started, watched through `/proc`, stopped by its process id.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::cpu;

/// The key the generator sends.
pub(crate) const API_KEY: &str = "bench-key-7d1f0a52c94e4b7e9a60c3de5b8841f2";

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_micros(500);
const LOG_TAIL_BYTES: u64 = 64 * 1024;

/// A running server.
pub(crate) struct ServerProcess {
    child: Child,
    port: u16,
    log: PathBuf,
    started_in: Duration,
}

/// What the server counted from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreCounters {
    pub(crate) commits: u64,
    pub(crate) appends: u64,
}

impl ServerProcess {
    /// Starts the server under test on the store in `folder`, and waits until it is ready.
    pub(crate) fn start_chatstore(binary: &Path, folder: &Path) -> Result<Self> {
        Self::start_on(binary, folder, &format!("sqlite:{}", folder.join("chatstore.db").display()))
    }

    /// Starts the server under test in `folder` on any database, and waits until it is ready.
    pub(crate) fn start_on(binary: &Path, folder: &Path, database_url: &str) -> Result<Self> {
        Self::start_with(binary, folder, database_url, &[])
    }

    /// The same with more settings.
    pub(crate) fn start_with(
        binary: &Path,
        folder: &Path,
        database_url: &str,
        settings: &[(&str, &str)],
    ) -> Result<Self> {
        // An empty `.env` here keeps the server from finding one further up.
        File::create(folder.join(".env"))?;
        let port = free_port()?;
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .current_dir(folder)
            .env_clear()
            .env("HOST", "127.0.0.1")
            .env("PORT", port.to_string())
            .env("DATABASE_URL", database_url)
            .env("API_KEY", API_KEY)
            .env("LOG_LEVEL", "info")
            .env("LOG_FORMAT", "json")
            .envs(settings.iter().copied());
        Self::start(command, port)
    }

    /// Starts the bare echo: this program again, as another process.
    pub(crate) fn start_echo() -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench-echo", "--port", &port.to_string()]);
        Self::start(command, port)
    }

    fn start(mut command: Command, port: u16) -> Result<Self> {
        let log = log_path();
        let started = Instant::now();
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&log).with_context(|| format!("cannot write {}", log.display()))?)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut server = Self { child, port, log, started_in: Duration::ZERO };
        while !is_ready(port) {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended while starting ({status}); its log ends with:\n{}", server.log_tail()?);
            }
            ensure!(started.elapsed() < START_TIMEOUT, "the server was not ready after {START_TIMEOUT:?}");
            std::thread::sleep(POLL_INTERVAL);
        }
        server.started_in = started.elapsed();
        Ok(server)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From the start of the process to its first 200 on `/readyz`.
    pub(crate) fn started_in(&self) -> Duration {
        self.started_in
    }

    /// CPU time of all threads so far, user and system.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        cpu::of_process(self.child.id())
    }

    /// Resident memory now, in MiB.
    pub(crate) fn rss_mib(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(&path).with_context(|| format!("{path}: is the server still running?"))?;
        parse_rss_kib(&status).map(|kib| kib as f64 / 1024.0).with_context(|| format!("{path} has no VmRSS"))
    }

    /// Asks the server to end, waits for it, and reads what it counted, if it said so.
    pub(crate) fn stop(mut self) -> Result<Option<StoreCounters>> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGTERM)?;
        let asked = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(asked.elapsed() < STOP_TIMEOUT, "the server did not end {STOP_TIMEOUT:?} after SIGTERM");
            std::thread::sleep(POLL_INTERVAL);
        };
        ensure!(status.success(), "the server ended with {status}; its log ends with:\n{}", self.log_tail()?);
        Ok(parse_counters(&self.log_tail()?))
    }

    /// Ends a server that holds nothing worth closing.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn log_tail(&self) -> Result<String> {
        let mut file = File::open(&self.log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // After `stop` and `kill` both do nothing; on the way out of an error they leave no server behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}

/// In memory where there is such a place, so that log lines do not compete with commits for the disk.
fn log_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("chatstore-bench-{}-{count}.log", std::process::id()))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn is_ready(port: u16) -> bool {
    let probe = || -> std::io::Result<bool> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        stream.read_exact(&mut status)?;
        Ok(status.ends_with(b" 200"))
    };
    probe().unwrap_or(false)
}

fn parse_rss_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Finds the line `store closed` in a JSON log, with its fields at the top or under `fields`.
fn parse_counters(log: &str) -> Option<StoreCounters> {
    log.lines().rev().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        let fields = line.get("fields").unwrap_or(&line);
        if fields.get("message")?.as_str()? != "store closed" {
            return None;
        }
        Some(StoreCounters { commits: fields.get("commits")?.as_u64()?, appends: fields.get("appends")?.as_u64()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_kib() {
        assert_eq!(parse_rss_kib("VmHWM:\t  99 kB\nVmRSS:\t  2048 kB\n"), Some(2048));
    }

    #[test]
    fn counters_are_found_in_both_shapes_of_the_log() {
        let counters = Some(StoreCounters { commits: 3, appends: 40 });
        let nested = r#"{"level":"INFO","fields":{"message":"store closed","commits":3,"appends":40}}"#;
        let flat = r#"{"level":"INFO","message":"store closed","commits":3,"appends":40}"#;
        for line in [nested, flat] {
            assert_eq!(parse_counters(&format!("cut off\"}}\n{{\"message\":\"x\"}}\n{line}\n")), counters);
        }
        assert_eq!(parse_counters("{\"message\":\"store closing\"}"), None);
    }
}
