//! The accept loop: sockets, connections, and the limits on them.
//!
//! `axum::serve` has no connection cap and no timeouts, so this module drives hyper itself. Each
//! connection keeps a few atomic counters (`ConnState`), written by the I/O and body wrappers
//! as things happen and read by a coarse ticker that closes the connection when a limit of
//! [`ListenerLimits`] is passed. hyper's own header timer is left off: it also runs while a
//! keep-alive connection is idle, and does not cover the first bytes at all.

mod watch;

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tower_service::Service;
use tracing::{debug, error, info, warn};

use watch::{ConnState, InFlight, Overdue, WatchedBody, WatchedIo};

/// How long accepting rests after an error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// Connections the kernel may queue for us on a Unix socket; tokio uses the same for TCP.
const BACKLOG: u32 = 1024;
/// HTTP/2 pings find peers that vanished without closing.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// The path of a Unix domain socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "http://{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The other end of the connection a request came on: `None` over a Unix socket. Every request
/// carries one in its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub Option<SocketAddr>);

/// What one client, or all of them, may take of the listener.
#[derive(Clone, Debug)]
pub struct ListenerLimits {
    /// Time from accepting a connection to its first byte.
    pub first_byte_timeout: Duration,
    /// Time from the first byte of a request's head to its last. On HTTP/2 it covers the time
    /// from the connection's first byte to its first request.
    pub header_read_timeout: Duration,
    /// Time a connection may stay open with no request.
    pub idle_timeout: Duration,
    /// Time for which a client may take nothing of a response that is ready to be sent.
    pub write_stall_timeout: Duration,
    /// Connections open at once; more wait in the kernel's queue. At least one is allowed.
    pub connections_max: usize,
    /// Time running requests get to finish once shutdown begins.
    pub drain_timeout: Duration,
    /// Requests in flight at once on one HTTP/2 connection.
    pub http2_streams_max: u32,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            first_byte_timeout: Duration::from_secs(10),
            header_read_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_stall_timeout: Duration::from_secs(30),
            connections_max: 10_000,
            drain_timeout: Duration::from_secs(7),
            http2_streams_max: 128,
        }
    }
}

impl ListenerLimits {
    /// How often a connection is checked: often enough for the smallest limit to be kept to
    /// within a quarter.
    fn tick(&self) -> Duration {
        self.first_byte_timeout
            .min(self.header_read_timeout)
            .min(self.idle_timeout)
            .min(self.write_stall_timeout)
            .div_f32(4.0)
            .clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

/// A bound socket, ready for [`serve`].
#[derive(Debug)]
pub enum Listener {
    /// Listens on TCP.
    Tcp(TcpListener),
    /// Listens on a Unix domain socket.
    Unix(BoundUnix),
}

/// A listening Unix socket, whose file is removed with it.
#[derive(Debug)]
pub struct BoundUnix {
    // Dropped before `listener`: once nobody answers, another process may replace the file.
    file: SocketFile,
    listener: UnixListener,
}

type Stream = Either<TcpStream, UnixStream>;

impl Listener {
    /// Binds `addr` and begins to listen. A socket file left behind by a dead process is
    /// replaced.
    ///
    /// # Errors
    ///
    /// Whatever binding fails with; `AddrInUse` also when a Unix path is not a socket, or is one
    /// that is being served.
    pub async fn bind(addr: &ListenAddr) -> io::Result<Self> {
        match addr {
            ListenAddr::Tcp(addr) => Ok(Self::Tcp(TcpListener::bind(addr).await?)),
            ListenAddr::Unix(path) => Ok(Self::Unix(bind_unix(path).await?)),
        }
    }

    /// What is listened on, such as `http://127.0.0.1:8000` or `unix:/run/chatstore.sock`.
    #[must_use]
    pub fn local_addr(&self) -> String {
        match self {
            Self::Tcp(_) => match self.tcp_addr() {
                Some(addr) => ListenAddr::Tcp(addr).to_string(),
                None => "http://unknown".to_owned(),
            },
            Self::Unix(unix) => ListenAddr::Unix(unix.file.path.clone()).to_string(),
        }
    }

    /// The TCP address with the real port, for a listener bound to port 0.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// The next connection. Errors are logged and never end it.
    async fn accept(&self) -> (Stream, Peer) {
        loop {
            let accepted = match self {
                Self::Tcp(tcp) => tcp.accept().await.map(|(stream, addr)| {
                    if let Err(error) = stream.set_nodelay(true) {
                        debug!(%error, "could not set TCP_NODELAY");
                    }
                    (Either::Left(stream), Peer(Some(addr)))
                }),
                Self::Unix(unix) => unix.listener.accept().await.map(|(stream, _)| (Either::Right(stream), Peer(None))),
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(error) if is_peer_error(&error) => debug!(%error, "connection lost in accept"),
                Err(error) => {
                    warn!(%error, "cannot accept connections, pausing");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whether an accept error concerns only the one connection.
fn is_peer_error(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
    )
}

async fn bind_unix(path: &Path) -> io::Result<BoundUnix> {
    let mut socket = UnixSocket::new_stream()?;
    if let Err(error) = socket.bind(path) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
        check_stale(path).await?;
        warn!(path = %path.display(), "replacing a stale socket file");
        std::fs::remove_file(path)?;
        socket = UnixSocket::new_stream()?;
        socket.bind(path)?;
    }
    let file = SocketFile::new(path)?;
    // Nobody can connect before `listen`, so there is no moment with wider permissions.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    let listener = socket.listen(BACKLOG)?;
    Ok(BoundUnix { file, listener })
}

/// Succeeds only for a socket file that nobody answers on.
async fn check_stale(path: &Path) -> io::Result<()> {
    let taken = |what: &str| {
        let message = format!("{} {what}", path.display());
        Err(io::Error::new(io::ErrorKind::AddrInUse, message))
    };
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return taken("exists and is not a socket");
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => taken(&format!("may be in use by another process: {error}")),
        Ok(_) => taken("is in use by another process"),
    }
}

/// Removes the socket file when dropped, unless another process has put its own there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        let id = Self::id(path)?;
        let path = path.to_owned();
        Ok(Self { path, id })
    }

    fn id(path: &Path) -> io::Result<(u64, u64)> {
        let meta = std::fs::symlink_metadata(path)?;
        Ok((meta.dev(), meta.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if Self::id(&self.path).is_ok_and(|id| id == self.id)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "could not remove the socket file");
        }
    }
}

/// Everything the connections have in common.
struct Shared {
    router: Router,
    http: auto::Builder<TokioExecutor>,
    limits: ListenerLimits,
    tick: Duration,
}

/// Serves `app` on `listener` until `shutdown` is cancelled, then stops accepting, lets running
/// requests finish for at most `drain_timeout` and aborts the rest. Returns how many connections
/// were aborted.
pub async fn serve(listener: Listener, app: Router, limits: ListenerLimits, shutdown: CancellationToken) -> usize {
    let connections_max = limits.connections_max.max(1);
    let shared = Arc::new(Shared {
        // Turns handlers into services now instead of on every request.
        router: app.with_state(()),
        http: http_builder(&limits),
        tick: limits.tick(),
        limits,
    });
    let mut tasks = JoinSet::new();
    // A sender per connection: polling its receiver takes no lock, unlike polling the token.
    let mut drains = HashMap::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(done) = tasks.join_next_with_id() => {
                let id = match done {
                    Ok((id, ())) => id,
                    Err(error) => {
                        error!(%error, "a connection ended in a panic");
                        error.id()
                    }
                };
                drains.remove(&id);
            }
            (stream, peer) = listener.accept(), if tasks.len() < connections_max => {
                let (drain, drained) = oneshot::channel();
                let task = tasks.spawn(connection(stream, peer, shared.clone(), drained));
                drains.insert(task.id(), drain);
            }
        }
    }
    drop(listener);
    // Dropping the senders is the signal.
    drop(drains);
    drain(tasks, shared.limits.drain_timeout).await
}

fn http_builder(limits: &ListenerLimits) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1().timer(TokioTimer::new()).header_read_timeout(None);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(limits.http2_streams_max);
    http
}

async fn drain(mut tasks: JoinSet<()>, patience: Duration) -> usize {
    let finish = async { while tasks.join_next().await.is_some() {} };
    if timeout(patience, finish).await.is_ok() {
        info!("all connections closed");
        return 0;
    }
    while tasks.try_join_next().is_some() {}
    let aborted = tasks.len();
    // A handler that blocks its thread cannot be aborted, and must not hold up the exit.
    if timeout(Duration::from_secs(1), tasks.shutdown()).await.is_err() {
        warn!("some aborted connections are still running");
    }
    warn!(aborted, "aborted connections that did not finish in time");
    aborted
}

/// Runs one connection to its end.
async fn connection(stream: Stream, peer: Peer, shared: Arc<Shared>, mut drained: oneshot::Receiver<()>) {
    let state = Arc::new(ConnState::new());
    let io = TokioIo::new(WatchedIo { stream, state: state.clone() });
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        let in_flight = InFlight::begin(&state, request.version());
        request.extensions_mut().insert(peer);
        let response = shared.router.clone().call(request);
        async move {
            let response = response.await?;
            Ok::<_, Infallible>(response.map(|body| WatchedBody::new(body, in_flight)))
        }
    });
    let mut conn = pin!(shared.http.serve_connection(io, service));
    let mut ticker = interval_at(Instant::now() + shared.tick, shared.tick);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            done = conn.as_mut() => {
                if let Err(error) = done {
                    debug!(?peer, %error, "connection failed");
                }
                return;
            }
            _ = &mut drained, if !closing => {
                closing = true;
                conn.as_mut().graceful_shutdown();
            }
            _ = ticker.tick() => match state.overdue(&shared, closing) {
                None => {}
                Some(Overdue::Idle) => {
                    closing = true;
                    conn.as_mut().graceful_shutdown();
                }
                Some(overdue) => {
                    debug!(?peer, ?overdue, "closing connection");
                    return;
                }
            },
        }
    }
}
