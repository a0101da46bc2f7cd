//! A PostgreSQL server of a test's own, to be stopped, frozen and killed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::processes::{Watchdog, children, has_ended, program, server_can_enter, server_user, signal, stands_still};

/// How long a server may take to start, recovery included, and to stop.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The longest path of a unix socket, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Ports that Linux gives to nobody by itself, so that one is still free when a server comes back to it.
const PORTS: std::ops::Range<u32> = 20_000..32_000;
const PORT_ATTEMPTS: u32 = 10;
/// Memory that a file system has free, in KiB, to hold the data of clusters.
const MEMORY_KIB_MIN: u64 = 8 * 1024 * 1024;
/// The last bytes of the server's log that a failed start shows.
const LOG_TAIL_BYTES: usize = 2_000;

/// How a cluster is run.
#[derive(Clone, Debug)]
pub struct Settings {
    parameters: Vec<(String, String)>,
    tcp: bool,
    in_memory: bool,
}

impl Settings {
    /// For suites: commits are seen by all as always, but a crash of the machine loses them. The
    /// data is in memory if there is plenty and TMPDIR is not set.
    pub fn fast() -> Self {
        let fast = Self { in_memory: true, ..Self::durable() };
        fast.set("fsync", "off")
            .set("full_page_writes", "off")
            .set("shared_buffers", "64MB")
            .set("max_wal_size", "256MB")
    }

    /// For crashes and measurements: what is committed is on the disk.
    pub fn durable() -> Self {
        Self { parameters: Vec::new(), tcp: false, in_memory: false }.set("max_connections", "500")
    }

    /// Listens on a free port of 127.0.0.1 too, where every user of this machine is let in.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Sets a parameter of the server; the last value holds.
    pub fn set(mut self, parameter: &str, value: &str) -> Self {
        self.parameters.push((parameter.to_owned(), value.to_owned()));
        self
    }
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Transactions are rolled back and connections closed, and everything is written to the disk.
    Fast,
    /// As in a crash, but that clients are told: the next start recovers.
    Immediate,
}

/// A server with its data in a folder of its own; the superuser is `postgres`, without a password.
///
/// Dropping it ends the server and removes the folder; both also happen when this process is killed.
pub struct Cluster {
    programs: PathBuf,
    settings: Settings,
    folder: PathBuf,
    port: u16,
    server: Option<Child>,
    _watchdog: Watchdog,
}

impl Cluster {
    /// Makes a cluster with the programs in the folder `programs` and waits until it is ready.
    ///
    /// # Errors
    /// What the program that failed said.
    pub fn start(programs: &Path, settings: Settings) -> io::Result<Self> {
        let programs =
            fs::canonicalize(programs).map_err(|error| io::Error::other(format!("{}: {error}", programs.display())))?;
        if !server_can_enter(&programs) {
            return Err(io::Error::other(format!(
                "the user nobody, who runs PostgreSQL for root, may not enter {}; move the programs to a folder open \
                 to all",
                programs.display()
            )));
        }
        let folder = make_folder(settings.in_memory)?;
        let watchdog = Watchdog::start(&folder)?;
        let mut cluster = Self { programs, settings, folder, port: 0, server: None, _watchdog: watchdog };
        cluster.initdb()?;
        for attempt in 1.. {
            cluster.port = if cluster.settings.tcp { free_port()? } else { 5_432 };
            match cluster.start_again() {
                // Somebody else may have taken the port in the meantime.
                Err(_) if cluster.settings.tcp && attempt < PORT_ATTEMPTS => {}
                started => return started.map(|()| cluster),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// The URL of a database for the superuser, through the unix socket.
    pub fn url(&self, database: &str) -> String {
        let socket = self.folder.display().to_string();
        format!("postgres://postgres@{}:{}/{database}", utf8_percent_encode(&socket, NON_ALPHANUMERIC), self.port)
    }

    /// The URL of a database for the superuser, through TCP, of a cluster with [`Settings::tcp`].
    pub fn tcp_url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// The port on 127.0.0.1 of a cluster with [`Settings::tcp`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the cluster: the socket, the server's `log` and its `data`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the server again after [`Self::stop`] or [`Self::kill`], on the same data and port.
    ///
    /// # Errors
    /// The end of the server's log.
    pub fn start_again(&mut self) -> io::Result<()> {
        if self.server.is_some() {
            return Err(io::Error::other("the server runs already"));
        }
        let log = File::options().create(true).append(true).open(self.folder.join("log"))?;
        let listen = if self.settings.tcp { "127.0.0.1" } else { "" };
        let mut command = program(&self.programs.join("postgres"), &self.folder);
        command.arg("-D").arg(self.data()).arg("-k").arg(&self.folder).arg("-p").arg(self.port.to_string());
        command.arg("-c").arg(format!("listen_addresses={listen}"));
        for (parameter, value) in &self.settings.parameters {
            command.arg("-c").arg(format!("{parameter}={value}"));
        }
        let mut server = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        let status = format!("{}\n", server.id());
        let ready = wait(|| match self.pid_file() {
            Some(file) if file.starts_with(&status) && file.lines().nth(7).is_some_and(|it| it.trim() == "ready") => {
                Some(Ok(()))
            }
            _ => server.try_wait().transpose().map(|ended| ended.and_then(|status| Err(self.failed_start(status)))),
        });
        // A server that is not ready in time is kept, to be stopped with the cluster.
        self.server = server.try_wait()?.is_none().then_some(server);
        ready.unwrap_or_else(|| Err(io::Error::other(format!("the server was not ready within {TIMEOUT:?}"))))
    }

    /// Stops the server, which keeps its data; a stopped one stays so.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn stop(&mut self, shutdown: Shutdown) -> io::Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        let name = match shutdown {
            Shutdown::Fast => "INT",
            Shutdown::Immediate => "QUIT",
        };
        signal(name, &[server.id()])?;
        let ended = wait(|| server.try_wait().transpose());
        ended.unwrap_or_else(|| Err(io::Error::other(format!("the server did not stop within {TIMEOUT:?}"))))?;
        self.server = None;
        Ok(())
    }

    /// Stops the server and starts it again.
    ///
    /// # Errors
    /// As those of [`Self::stop`] and [`Self::start_again`].
    pub fn restart(&mut self, shutdown: Shutdown) -> io::Result<()> {
        self.stop(shutdown)?;
        self.start_again()
    }

    /// Kills every process of the server at once, as a machine that loses its power does.
    ///
    /// # Errors
    /// If the processes cannot be found or do not end.
    pub fn kill(&mut self) -> io::Result<()> {
        let pids = self.freeze()?;
        signal("KILL", &pids)?;
        if let Some(mut server) = self.server.take() {
            server.wait()?;
        }
        // The next start refuses while one of them still holds the shared memory.
        wait(|| pids.iter().all(|pid| has_ended(*pid)).then_some(()))
            .ok_or_else(|| io::Error::other("a process of the server outlived SIGKILL"))
    }

    /// Stops every process of the server where it is, as a machine that hangs does.
    ///
    /// # Errors
    /// If the processes cannot be found or do not stop.
    pub fn pause(&self) -> io::Result<()> {
        self.freeze().map(drop)
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// If the processes cannot be found.
    pub fn resume(&self) -> io::Result<()> {
        let Some(postmaster) = self.server.as_ref().map(Child::id) else { return Ok(()) };
        signal("CONT", &children(postmaster)?)?;
        signal("CONT", &[postmaster])
    }

    /// Stops every process and tells which they are, none if the server does not run.
    fn freeze(&self) -> io::Result<Vec<u32>> {
        let Some(postmaster) = self.server.as_ref().map(Child::id) else { return Ok(Vec::new()) };
        let not_stopped = || io::Error::other("a process of the server could not be stopped");
        // First the one that makes others: after that none is added.
        signal("STOP", &[postmaster])?;
        wait(|| stands_still(postmaster).then_some(())).ok_or_else(not_stopped)?;
        let mut pids = children(postmaster)?;
        signal("STOP", &pids)?;
        wait(|| pids.iter().all(|pid| stands_still(*pid)).then_some(())).ok_or_else(not_stopped)?;
        pids.push(postmaster);
        Ok(pids)
    }

    fn initdb(&self) -> io::Result<()> {
        let mut command = program(&self.programs.join("initdb"), &self.folder);
        command.arg("-D").arg(self.data()).args(["--username=postgres", "--auth=trust", "--encoding=UTF8"]);
        command.args(["--locale=C.UTF-8", "--no-sync", "--no-instructions"]);
        let output = command.output().map_err(|error| io::Error::other(format!("{:?}: {error}", self.programs)))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("initdb failed ({}): {}", output.status, said.trim())))
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the server says of itself: its process id in the first line, its state in the eighth.
    fn pid_file(&self) -> Option<String> {
        fs::read_to_string(self.data().join("postmaster.pid")).ok()
    }

    fn failed_start(&self, status: ExitStatus) -> io::Error {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]);
        io::Error::other(format!("the server ended at its start ({status}): {}", tail.trim()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A killed server leaves its shared memory in the system, so it is asked first; the watchdog
        // ends one that refuses.
        let _ = self.resume().and_then(|()| self.stop(Shutdown::Immediate));
    }
}

/// Polls until there is an answer; `None` when the time is up.
fn wait<T>(mut answer: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let found = answer();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// The file system in memory, if there is one with so much room that suites cannot fill it. A
/// database is hundreds of files, and some disks are slow to make them where others were removed.
fn roomy_memory() -> Option<PathBuf> {
    let folder = PathBuf::from("/dev/shm");
    let output = Command::new("df").arg("-Pk").arg(&folder).stderr(Stdio::null()).output().ok()?;
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let available_kib: u64 = report.lines().last()?.split_whitespace().nth(3)?.parse().ok()?;
    (available_kib >= MEMORY_KIB_MIN).then_some(folder)
}

/// Makes the folder of a cluster, where the server's user can work and the socket's path is short enough.
fn make_folder(in_memory: bool) -> io::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let longest = Path::new("chatstore-postgres-4294967295-4294967295/.s.PGSQL.65535").as_os_str().len();
    let fits = |base: &Path| base.as_os_str().len() + 1 + longest <= SOCKET_PATH_BYTES_MAX && server_can_enter(base);
    let memory = if in_memory && std::env::var_os("TMPDIR").is_none() { roomy_memory() } else { None };
    let mut bases = memory.into_iter().chain([std::env::temp_dir(), PathBuf::from("/tmp")]);
    let base = bases.find(|base| fits(base)).ok_or_else(|| {
        io::Error::other("no folder for PostgreSQL: set TMPDIR to one with a short path that every user may enter")
    })?;
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = base.join(format!("chatstore-postgres-{}-{count}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io::Error::other(format!("{}: {error}", folder.display()))),
            Ok(()) => {
                if let Some(user) = server_user() {
                    chown(&folder, Some(user), Some(user))?;
                }
                return Ok(folder);
            }
        }
    }
}

/// A port that was free a moment ago; processes begin to look at different places.
fn free_port() -> io::Result<u16> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    for _ in PORTS {
        let place = std::process::id().wrapping_mul(61).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORTS.start + place % (PORTS.end - PORTS.start)).expect("the range ends below 2^16");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::other("no port of 127.0.0.1 is free"))
}
