//! A real `chatstore` process in a folder of its own, and a small HTTP client to talk to it.
#![expect(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

pub(crate) mod journal;

use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// What the servers of these tests take as `API_KEY`.
pub(crate) const API_KEY: &str = "root-key-of-the-tests-0123456789";
/// Where a server keeps its data, seen from its folder.
pub(crate) const DATABASE: &str = "data/chatstore.db";
/// What no step of a test may take longer than; generous, for busy machines.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The program in `folder`, with nothing of this process's environment but the search path: the one that was built with
/// the tests, or the one that `CHATSTORE_TEST_PROGRAM` names.
pub(crate) fn chatstore(folder: &Path) -> Command {
    let built = || env!("CARGO_BIN_EXE_chatstore").into();
    let mut command = Command::new(std::env::var_os("CHATSTORE_TEST_PROGRAM").unwrap_or_else(built));
    command.current_dir(folder).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// `serve` on any free port, without a key.
pub(crate) fn serve(folder: &Path) -> Command {
    let mut command = chatstore(folder);
    command.arg("serve").env("PORT", "0").env("LOG_FORMAT", "json");
    command
}

/// What a process has written so far, and whether it may write more.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<(Mutex<(String, bool)>, Condvar)>);

impl Captured {
    fn drain(source: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let captured = Self::default();
        let sink = captured.clone();
        let thread = std::thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                sink.0.0.lock().unwrap().0.push_str(&String::from_utf8_lossy(&line));
                sink.0.1.notify_all();
                line.clear();
            }
            sink.0.0.lock().unwrap().1 = true;
            sink.0.1.notify_all();
        });
        (captured, thread)
    }

    pub(crate) fn text(&self) -> String {
        self.0.0.lock().unwrap().0.clone()
    }

    /// Waits until `find` finds something in the text, the text has ended or patience has.
    pub(crate) fn wait_for<T>(&self, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.0.0.lock().unwrap();
        loop {
            if let Some(found) = find(&state.0) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return None;
            }
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }
}

/// A child process whose output is read, and which does not outlive its owner.
pub(crate) struct Process {
    child: Child,
    pub(crate) out: Captured,
    pub(crate) err: Captured,
    readers: Vec<JoinHandle<()>>,
    spawned: Instant,
    ended: bool,
}

impl Process {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let spawned = Instant::now();
        let mut child = command.spawn().unwrap();
        let (out, out_reader) = Captured::drain(child.stdout.take().unwrap());
        let (err, err_reader) = Captured::drain(child.stderr.take().unwrap());
        Self { child, out, err, readers: vec![out_reader, err_reader], spawned, ended: false }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Whether it runs; not for a process that is traced.
    pub(crate) fn is_running(&mut self) -> bool {
        !self.ended && self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end and for all of its output.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "runs after {limit:?}: {}{}", self.out.text(), self.err.text());
            std::thread::sleep(Duration::from_millis(5));
        };
        self.ended = true;
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        status
    }

    /// SIGKILL, and the wait for it to have worked.
    pub(crate) fn kill(&mut self) {
        if !self.ended {
            self.ended = true;
            let _ = kill(self.pid(), Signal::SIGKILL);
            // A tracer in this process may have taken the status already.
            let _ = self.child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a command ended and what it said.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Finished {
    /// The output of a command that must have worked.
    pub(crate) fn ok(self) -> Self {
        assert!(self.status.success(), "{}: {}{}", self.status, self.out, self.err);
        self
    }

    /// The one sentence with which a command refused.
    pub(crate) fn refusal(self) -> String {
        let Self { status, out, err } = self;
        assert!(status.code().is_some_and(|code| code != 0), "{status}: {out}{err}");
        assert!(!err.contains("panicked") && !err.contains("RUST_BACKTRACE"), "{err}");
        err
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: Command) -> Finished {
    let mut process = Process::spawn(command);
    let status = process.wait(PATIENCE);
    Finished { status, out: process.out.text(), err: process.err.text() }
}

/// `chatstore` with these words, in `folder`.
pub(crate) fn tool(folder: &Path, words: &[&str]) -> Finished {
    let mut command = chatstore(folder);
    command.args(words);
    run(command)
}

/// A server that has begun to listen.
pub(crate) struct Server {
    pub(crate) process: Process,
    /// Where it listens: `http://…` or `unix:…`.
    pub(crate) url: String,
    /// From the start of the process to its line in the log.
    pub(crate) start_time: Duration,
}

impl Server {
    /// A server in `folder` that takes [`API_KEY`].
    pub(crate) fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    /// The same with more variables.
    pub(crate) fn start_with(folder: &Path, variables: &[(&str, &str)]) -> Self {
        let mut command = serve(folder);
        command.env("API_KEY", API_KEY).envs(variables.iter().copied());
        Self::spawn(command)
    }

    pub(crate) fn spawn(command: Command) -> Self {
        let process = Process::spawn(command);
        let url = process.out.wait_for(|text| {
            let line = text.lines().find(|line| line.contains(r#""message":"listening""#))?;
            Some(serde_json::from_str::<Value>(line).unwrap()["url"].as_str().unwrap().to_owned())
        });
        let start_time = process.spawned.elapsed();
        let Some(url) = url else {
            panic!("the server did not start: {}{}", process.out.text(), process.err.text());
        };
        Self { process, url, start_time }
    }

    /// A connection that presents [`API_KEY`].
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.url).unwrap()
    }

    pub(crate) fn log(&self) -> Vec<Value> {
        self.process.out.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// SIGTERM, which must end it well within ten seconds.
    pub(crate) fn stop(&mut self) {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait(Duration::from_secs(10));
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", self.process.err.text());
    }
}

trait Duplex: Read + Write + Send {}
impl<T: Read + Write + Send> Duplex for T {}

/// One HTTP/1.1 connection, kept alive.
pub(crate) struct Client {
    stream: BufReader<Box<dyn Duplex>>,
    /// Sent as `X-API-Key` if there is one.
    pub(crate) key: Option<String>,
    /// More header lines, each with its line end.
    headers: String,
}

impl Client {
    pub(crate) fn connect(url: &str) -> io::Result<Self> {
        let limit = Some(PATIENCE);
        let stream: Box<dyn Duplex> = match url.strip_prefix("unix:") {
            Some(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(limit)?;
                stream.set_write_timeout(limit)?;
                Box::new(stream)
            }
            None => {
                let stream = TcpStream::connect(url.strip_prefix("http://").unwrap())?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(limit)?;
                stream.set_write_timeout(limit)?;
                Box::new(stream)
            }
        };
        Ok(Self { stream: BufReader::new(stream), key: Some(API_KEY.to_owned()), headers: String::new() })
    }

    pub(crate) fn with_key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// Presents a user token and no key.
    pub(crate) fn with_token(mut self, token: &str) -> Self {
        self.key = None;
        self.with_header("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// The bytes of a request.
    pub(crate) fn request(&self, method: &str, target: &str, body: Option<&str>) -> String {
        let key = self.key.as_ref().map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
        let typed = body.map(|body| format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
        let (typed, body) = (typed.unwrap_or_default(), body.unwrap_or_default());
        format!(
            "{method} {target} HTTP/1.1\r\nhost: localhost\r\n{key}{headers}{typed}\r\n{body}",
            headers = self.headers
        )
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        self.stream.get_mut().flush()
    }

    pub(crate) fn read(&mut self) -> io::Result<Answer> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
                None => break,
            }
        }
        let length = headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, n)| n.parse().ok());
        let mut body = vec![0; length.ok_or(io::ErrorKind::InvalidData)?];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, headers, body })
    }

    /// The status of an interim answer, such as 100.
    pub(crate) fn read_interim(&mut self) -> io::Result<u16> {
        let (mut line, mut end) = (String::new(), String::new());
        self.stream.read_line(&mut line)?;
        self.stream.read_line(&mut end)?;
        assert_eq!(end, "\r\n");
        Ok(line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidData)?)
    }

    /// Sends a request and reads its answer; an error if the connection breaks.
    pub(crate) fn try_send(&mut self, method: &str, target: &str, body: Option<&str>) -> io::Result<Answer> {
        self.write(self.request(method, target, body).as_bytes())?;
        self.read()
    }

    pub(crate) fn get(&mut self, target: &str) -> Answer {
        self.try_send("GET", target, None).unwrap()
    }

    pub(crate) fn post(&mut self, target: &str, body: &Value) -> Answer {
        self.try_send("POST", target, Some(&body.to_string())).unwrap()
    }

    /// Makes a session and gives back the path of its messages.
    pub(crate) fn new_session(&mut self) -> String {
        let made = self.post("/api/v1/sessions", &serde_json::json!({"session_name": "a session"}));
        let made = made.expect(201);
        format!("/api/v1/sessions/{}/messages", made["session_id"].as_str().unwrap())
    }

    /// Appends one message and gives back the answer, whatever it is.
    pub(crate) fn append(&mut self, messages: &str, content: &str) -> Answer {
        self.post(messages, &serde_json::json!({"content": content}))
    }

    /// All that a list holds, such as a session's messages, oldest first, by cursors.
    pub(crate) fn all(&mut self, list: &str) -> Vec<Value> {
        let mut found = Vec::new();
        let mut next = Some(format!("{list}?order=asc&limit=100"));
        while let Some(target) = next {
            let answer = self.get(&target);
            let link = answer.header("link").and_then(|link| link.strip_prefix('<')?.split_once('>'));
            next = link.map(|(target, _)| target.to_owned());
            found.extend_from_slice(answer.expect(200).as_array().unwrap());
        }
        found
    }
}

/// The answer to a request.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The body of an answer that must have this status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Checks that it is a 503 that says when to come again.
    #[track_caller]
    pub(crate) fn expect_retry(&self) {
        let code = self.expect(503)["code"].clone();
        assert!(["store_unavailable", "overloaded"].iter().any(|known| code == *known), "{code}");
        assert!(self.header("retry-after").is_some_and(|seconds| seconds.parse::<u32>().is_ok()), "{code}");
    }

    /// Checks that it is a problem of this kind.
    #[track_caller]
    pub(crate) fn expect_problem(&self, status: u16, code: &str) {
        assert_eq!(self.expect(status)["code"], code, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
    }
}

/// Asks again and again until there is an answer.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        // Read before asking: the last ask begins when the time is over, however late this thread is.
        let is_last = Instant::now() >= deadline;
        if let Some(found) = ask() {
            return found;
        }
        assert!(!is_last, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What SQLite finds wrong with a file: `ok`.
pub(crate) fn integrity(database: &Path) -> String {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
    let connection = rusqlite::Connection::open_with_flags(database, flags).unwrap();
    connection.query_row("pragma integrity_check", (), |row| row.get(0)).unwrap()
}

/// Numbers that only look random (SplitMix64).
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed in `CHATSTORE_TEST_SEED`, or any.
    pub(crate) fn any_seed() -> u64 {
        match std::env::var("CHATSTORE_TEST_SEED") {
            Ok(text) => text.parse().expect("CHATSTORE_TEST_SEED must be a number"),
            Err(_) => RandomState::new().hash_one(0),
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
