//! The load itself: a closed loop, where each connection sends its next request when the last was answered, and an open
//! loop, where requests are due at a constant rate and a latency counts from the moment its request was due.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    sync::{Mutex, mpsc},
    task::{JoinHandle, LocalSet, spawn_local},
    time::{sleep, timeout},
};

use super::{
    client::Connection,
    cpu::{self, CpuTimes},
    histogram::Histogram,
    postgres::DatabaseServer,
    server_process::ServerProcess,
};

/// How long the last answers may take after the end of a run.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const SETUP_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Prepared requests, sent in turn by all connections together.
pub(super) type Requests = Rc<Vec<Vec<u8>>>;

/// Stands in prepared requests for a number that no other request has.
pub(super) const NUMBER: &str = "################";
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// The request with its number in it.
fn numbered(request: &[u8]) -> Vec<u8> {
    let mut bytes = request.to_vec();
    if let Some(at) = bytes.windows(NUMBER.len()).position(|window| window == NUMBER.as_bytes()) {
        let number = format!("{:016}", NEXT_NUMBER.fetch_add(1, Ordering::Relaxed));
        bytes[at..at + NUMBER.len()].copy_from_slice(number.as_bytes());
    }
    bytes
}

/// What a run is told.
#[derive(Clone)]
pub(super) struct Load<'a> {
    pub(super) server: &'a ServerProcess,
    /// The database behind the server, if it is another process.
    pub(super) database: Option<&'a DatabaseServer>,
    pub(super) requests: Requests,
    /// The status that answers have; nothing is any of success.
    pub(super) status: Option<u16>,
    /// Whether each request gets a [`NUMBER`].
    pub(super) is_numbered: bool,
    pub(super) connections: usize,
    pub(super) warmup: Duration,
    pub(super) measure: Duration,
}

impl Load<'_> {
    fn kind(&self) -> Kind {
        Kind { status: self.status, is_numbered: self.is_numbered }
    }

    /// The CPU times so far.
    fn cpu(&self) -> Result<CpuTimes> {
        Ok(CpuTimes {
            server: self.server.cpu()?,
            database: self.database.map_or(Ok(Duration::ZERO), DatabaseServer::cpu)?,
            generator: cpu::of_process(std::process::id())?,
            machine: cpu::of_machine()?,
        })
    }
}

/// What holds for each request of a run.
#[derive(Clone, Copy)]
struct Kind {
    status: Option<u16>,
    is_numbered: bool,
}

/// What a run saw after its warm-up.
pub(super) struct Run {
    pub(super) requests: u64,
    /// Empty where single requests are not timed.
    pub(super) histogram: Histogram,
    pub(super) seconds: f64,
    pub(super) cpu: CpuTimes,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
}

impl Run {
    pub(super) fn throughput(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// A share of the CPU time as microseconds a request.
    pub(super) fn us_per_request(&self, share: Duration) -> f64 {
        share.as_secs_f64() * 1e6 / self.requests.max(1) as f64
    }
}

struct Progress {
    /// Closed loop: answers that come while this is set count.
    recording: Cell<bool>,
    /// Open loop: requests that were due in this time count, whenever their answers come.
    due_between: Option<(Instant, Instant)>,
    stopped: Cell<bool>,
    next: Cell<usize>,
    histogram: RefCell<Histogram>,
    errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
}

impl Progress {
    fn new(due_between: Option<(Instant, Instant)>) -> Rc<Self> {
        Rc::new(Self {
            recording: Cell::new(false),
            due_between,
            stopped: Cell::new(false),
            next: Cell::new(0),
            histogram: RefCell::new(Histogram::new()),
            errors: Cell::new(0),
            first_error: RefCell::new(None),
        })
    }

    fn counts(&self, due: Instant) -> bool {
        self.due_between.map_or(self.recording.get(), |(from, until)| from <= due && due < until)
    }

    /// Sends the next request in turn; counts its latency from `due`.
    async fn send(&self, connection: &mut Connection, requests: &[Vec<u8>], load: Kind, due: Instant) {
        let index = self.next.replace(self.next.get() + 1) % requests.len();
        let request = match load.is_numbered {
            true => Cow::Owned(numbered(&requests[index])),
            false => Cow::Borrowed(&requests[index]),
        };
        let failure = match connection.exchange(&request).await {
            Ok(response) if load.status.map_or(response.is_success(), |status| response.status == status) => {
                if self.counts(due) {
                    self.histogram.borrow_mut().record(due.elapsed());
                }
                return;
            }
            Ok(response) => response.describe(),
            Err(error) => format!("no answer: {error:#}"),
        };
        self.errors.set(self.errors.get() + 1);
        self.first_error.borrow_mut().get_or_insert(failure);
        // A server that refuses everything must not be hammered for the rest of the run.
        sleep(Duration::from_millis(10)).await;
    }

    /// Lets the warm-up pass, records for the measured time, and stops.
    async fn observe(&self, load: &Load<'_>) -> Result<(f64, CpuTimes)> {
        sleep(load.warmup).await;
        let (started, cpu) = (Instant::now(), load.cpu()?);
        self.recording.set(true);
        sleep(load.measure).await;
        self.recording.set(false);
        self.stopped.set(true);
        Ok((started.elapsed().as_secs_f64(), load.cpu()?.since(cpu)))
    }

    fn finish(&self, seconds: f64, cpu: CpuTimes) -> Run {
        let histogram = self.histogram.borrow().clone();
        Run {
            requests: histogram.total(),
            histogram,
            seconds,
            cpu,
            errors: self.errors.get(),
            first_error: self.first_error.borrow_mut().take(),
        }
    }
}

/// Runs a future that spawns local tasks, all on this thread: the generator takes one core at most.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, future)
}

async fn connect_all(port: u16, connections: usize) -> Result<Vec<Connection>> {
    let mut all = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut connection = Connection::new(port);
        connection.connect().await?;
        all.push(connection);
    }
    Ok(all)
}

async fn join_all(tasks: Vec<JoinHandle<()>>) -> Result<()> {
    let joining = async {
        for task in tasks {
            task.await?;
        }
        anyhow::Ok(())
    };
    timeout(DRAIN_TIMEOUT, joining).await.context("the last answers did not come")?
}

/// Each connection sends its next request when the last one was answered.
pub(super) async fn closed_loop(load: &Load<'_>) -> Result<Run> {
    let progress = Progress::new(None);
    let mut tasks = Vec::new();
    for mut connection in connect_all(load.server.port(), load.connections).await? {
        let (progress, requests, kind) = (Rc::clone(&progress), Rc::clone(&load.requests), load.kind());
        tasks.push(spawn_local(async move {
            while !progress.stopped.get() {
                progress.send(&mut connection, &requests, kind, Instant::now()).await;
            }
        }));
    }
    let (seconds, cpu) = progress.observe(load).await?;
    join_all(tasks).await?;
    Ok(progress.finish(seconds, cpu))
}

/// Requests are due at a constant rate, whether or not earlier ones were answered.
pub(super) async fn open_loop(load: &Load<'_>, requests_per_second: f64) -> Result<Run> {
    let connections = connect_all(load.server.port(), load.connections).await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    let receiver = Rc::new(Mutex::new(receiver));
    let started = Instant::now();
    let (from, until) = (started + load.warmup, started + load.warmup + load.measure);
    let progress = Progress::new(Some((from, until)));
    let mut tasks = Vec::new();
    for mut connection in connections {
        let (progress, requests, receiver) = (Rc::clone(&progress), Rc::clone(&load.requests), Rc::clone(&receiver));
        let kind = load.kind();
        tasks.push(spawn_local(async move {
            loop {
                let due = receiver.lock().await.recv().await;
                let Some(due) = due else { break };
                progress.send(&mut connection, &requests, kind, due).await;
            }
        }));
    }
    let pacer = std::thread::spawn(move || pace(&sender, requests_per_second, started, until));
    let (seconds, cpu) = progress.observe(load).await?;
    join_all(tasks).await?;
    ensure!(pacer.join().is_ok(), "the pacing thread panicked");
    Ok(progress.finish(seconds, cpu))
}

/// Says when each request is due. A thread of its own: the runtime's timer only knows milliseconds.
fn pace(sender: &mpsc::UnboundedSender<Instant>, requests_per_second: f64, started: Instant, until: Instant) {
    for index in 0_u64.. {
        let due = started + Duration::from_secs_f64(index as f64 / requests_per_second);
        if due >= until {
            return;
        }
        let early = due.saturating_duration_since(Instant::now());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        if sender.send(due).is_err() {
            return;
        }
    }
}

/// Sends `count` requests, made when their turn comes, and gives back the bodies of the answers if `keep` says so.
pub(super) async fn send_all(
    port: u16,
    connections: usize,
    count: usize,
    keep: bool,
    make: impl Fn(usize) -> Vec<u8>,
) -> Result<Vec<Vec<u8>>> {
    let next = Cell::new(0);
    let bodies = RefCell::new(vec![Vec::new(); if keep { count } else { 0 }]);
    let worker = async |mut connection: Connection| -> Result<()> {
        loop {
            let index = next.replace(next.get() + 1);
            if index >= count {
                return Ok(());
            }
            let request = make(index);
            let response =
                timeout(SETUP_REQUEST_TIMEOUT, connection.exchange(&request)).await.context("no answer")??;
            ensure!(response.is_success(), "filling the store was refused: {}", response.describe());
            if keep {
                bodies.borrow_mut()[index] = response.body.to_vec();
            }
        }
    };
    let workers = connect_all(port, connections).await?.into_iter().map(worker).collect();
    every(workers).await?;
    Ok(bodies.into_inner())
}

/// Drives all futures on this task until every one is done or one fails.
async fn every<F: Future<Output = Result<()>>>(futures: Vec<F>) -> Result<()> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|context| {
        let mut index = 0;
        while index < futures.len() {
            match futures[index].as_mut().poll(context) {
                std::task::Poll::Ready(Ok(())) => drop(futures.swap_remove(index)),
                std::task::Poll::Ready(Err(error)) => return std::task::Poll::Ready(Err(error)),
                std::task::Poll::Pending => index += 1,
            }
        }
        if futures.is_empty() { std::task::Poll::Ready(Ok(())) } else { std::task::Poll::Pending }
    })
    .await
}
