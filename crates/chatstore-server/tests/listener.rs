//! The listener's limits and its drain, over real sockets.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Extension;
use axum::routing::{get, post};
use axum::{Router, http::Request};
use bytes::Bytes;
use chatstore_server::listener::{ListenAddr, Listener, ListenerLimits, Peer, serve};
use futures_util::stream;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes: reaching it is a failure.
const LONG: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(250);
const BIG: usize = 64 << 20;
const PING: &[u8] = b"GET /ping HTTP/1.1\r\nhost: t\r\n\r\n";

/// Every limit out of the way, for a test to set the one it is about.
fn relaxed() -> ListenerLimits {
    ListenerLimits {
        first_byte_timeout: LONG * 6,
        header_read_timeout: LONG * 6,
        idle_timeout: LONG * 6,
        write_stall_timeout: LONG * 6,
        drain_timeout: LONG * 6,
        ..ListenerLimits::default()
    }
}

/// What handlers share with their test.
#[derive(Clone, Default)]
struct Hooks {
    started: Arc<Notify>,
    release: Arc<Notify>,
    dropped: Arc<AtomicUsize>,
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn app(hooks: &Hooks) -> Router {
    let gated = hooks.clone();
    let hanging = hooks.clone();
    Router::new()
        .route("/ping", get(|| async { "pong" }))
        .route("/peer", get(|Extension(p): Extension<Peer>| async move { format!("{p:?}") }))
        .route(
            "/slow",
            get(|| async {
                sleep(SHORT * 2).await;
                "slow"
            }),
        )
        .route("/big", get(|| async { vec![b'x'; BIG] }))
        .route("/echo", post(|body: Bytes| async { body }))
        .route("/drip", get(async || drip()))
        .route("/parts", get(async || parts()))
        .route(
            "/gated",
            get(|| async move {
                gated.started.notify_one();
                gated.release.notified().await;
                "released"
            }),
        )
        .route(
            "/hang",
            get(|| async move {
                let _dropped = CountDrop(hanging.dropped);
                hanging.started.notify_one();
                std::future::pending::<()>().await;
            }),
        )
}

/// A body of three bytes, one every `SHORT`.
fn drip() -> Body {
    Body::from_stream(stream::unfold(0, async |sent| {
        sleep(SHORT).await;
        (sent < 3).then(|| (Ok::<_, Infallible>("x"), sent + 1))
    }))
}

/// A big body of many parts, which are asked for as they can be sent.
fn parts() -> Body {
    let parts = (0..64).map(|_| Ok::<_, Infallible>(vec![b'x'; BIG / 64]));
    Body::from_stream(stream::iter(parts))
}

struct Server {
    addr: SocketAddr,
    hooks: Hooks,
    shutdown: CancellationToken,
    task: JoinHandle<usize>,
}

impl Server {
    async fn start(limits: ListenerLimits) -> Self {
        let any = ListenAddr::Tcp(([127, 0, 0, 1], 0).into());
        let listener = Listener::bind(&any).await.unwrap();
        let addr = listener.tcp_addr().unwrap();
        assert_eq!(listener.local_addr(), format!("http://{addr}"));
        let hooks = Hooks::default();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, app(&hooks), limits, shutdown.clone()));
        Self { addr, hooks, shutdown, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    async fn connect_h2(&self) -> SendRequest<Empty<Bytes>> {
        let io = TokioIo::new(self.connect().await);
        let (client, conn) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(conn);
        client
    }

    async fn stopped(self) -> usize {
        timeout(LONG, self.task).await.expect("serve did not return").unwrap()
    }
}

fn h2_get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://t{path}")).body(Empty::new()).unwrap()
}

async fn send_get(stream: &mut (impl AsyncWrite + Unpin), path: &str) {
    let head = format!("GET {path} HTTP/1.1\r\nhost: t\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
}

/// Reads until `end` has come; panics when the connection closes or time runs out before.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut seen = Vec::new();
    let read = async {
        while !seen.ends_with(end.as_bytes()) {
            let n = stream.read_buf(&mut seen).await.unwrap();
            assert_ne!(n, 0, "closed");
        }
    };
    timeout(LONG, read).await.expect("no answer in time");
    String::from_utf8(seen).unwrap()
}

/// Waits for the server to close and returns how long that took; a reset counts too.
async fn closed(stream: &mut (impl AsyncRead + Unpin)) -> Duration {
    let start = Instant::now();
    let mut rest = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("still open");
    start.elapsed()
}

async fn h2_closed(client: &SendRequest<Empty<Bytes>>) {
    let gone = async {
        while !client.is_closed() {
            sleep(SHORT / 10).await;
        }
    };
    timeout(LONG, gone).await.expect("HTTP/2 connection stays open");
}

/// Sends `bytes` (whole heads excepted) and checks that the limit in force closes the connection,
/// neither at once nor late.
async fn closes_after_sending(limits: ListenerLimits, bytes: &[u8]) {
    let server = Server::start(limits).await;
    let mut stream = server.connect().await;
    stream.write_all(bytes).await.unwrap();
    assert!(closed(&mut stream).await > SHORT / 2);
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let limits = ListenerLimits { first_byte_timeout: SHORT, ..relaxed() };
    closes_after_sending(limits, b"").await;
}

#[tokio::test]
async fn a_stalled_head_is_closed() {
    let limits = || ListenerLimits { header_read_timeout: SHORT, ..relaxed() };
    closes_after_sending(limits(), b"P").await;
    closes_after_sending(limits(), b"PRI * HTTP/2.0\r\n").await;
    closes_after_sending(limits(), b"GET /ping HTTP/1.1\r\nho").await;
    // The preface and empty settings, but no request.
    closes_after_sending(limits(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
}

#[tokio::test]
async fn a_dripping_head_is_closed() {
    let limits = ListenerLimits { header_read_timeout: SHORT, ..relaxed() };
    let server = Server::start(limits).await;
    let (mut read, mut write) = server.connect().await.into_split();
    tokio::spawn(async move {
        for byte in PING.iter().cycle().filter(|byte| **byte != b'\n') {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(SHORT / 5).await;
        }
    });
    closed(&mut read).await;
}

#[tokio::test]
async fn a_second_head_has_the_head_limit_and_idling_does_not() {
    let limits = ListenerLimits { header_read_timeout: SHORT, ..relaxed() };
    let server = Server::start(limits).await;
    let mut stream = server.connect().await;
    for _ in 0..2 {
        stream.write_all(PING).await.unwrap();
        read_until(&mut stream, "pong").await;
        sleep(SHORT * 2).await;
    }
    stream.write_all(&PING[..9]).await.unwrap();
    assert!(closed(&mut stream).await > SHORT / 2);
}

#[tokio::test]
async fn idle_connections_are_closed_but_not_slow_requests() {
    let server = Server::start(ListenerLimits { idle_timeout: SHORT, ..relaxed() }).await;
    let mut stream = server.connect().await;
    for path in ["/slow", "/slow"] {
        send_get(&mut stream, path).await;
        read_until(&mut stream, "slow").await;
    }
    assert!(closed(&mut stream).await > SHORT / 2);

    let mut client = server.connect_h2().await;
    let answer = client.send_request(h2_get("/slow")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "slow");
    h2_closed(&client).await;
}

#[tokio::test]
async fn a_body_that_comes_slowly_is_no_stall() {
    let limits =
        ListenerLimits { idle_timeout: SHORT, write_stall_timeout: SHORT / 2, header_read_timeout: SHORT, ..relaxed() };
    let server = Server::start(limits).await;
    let mut stream = server.connect().await;
    send_get(&mut stream, "/drip").await;
    read_until(&mut stream, "0\r\n\r\n").await;

    let answer = server.connect_h2().await.send_request(h2_get("/drip")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "xxx");
}

#[tokio::test]
async fn a_reader_that_stops_is_closed() {
    let limits = ListenerLimits { write_stall_timeout: SHORT, connections_max: 1, ..relaxed() };
    let server = Server::start(limits).await;
    let mut stuck = server.connect().await;
    send_get(&mut stuck, "/big").await;
    // There is one place, so an answer here means that the first connection has gone.
    let mut next = server.connect().await;
    next.write_all(PING).await.unwrap();
    read_until(&mut next, "pong").await;
    let mut got = Vec::new();
    let _ = timeout(LONG, stuck.read_to_end(&mut got)).await.expect("still open");
    assert!(got.len() < BIG);
}

#[tokio::test]
async fn an_http2_stream_whose_window_stays_shut_is_closed() {
    // hyper lets go of a body once it has the last part, so a body of one part counts as idle.
    let stall = ListenerLimits { write_stall_timeout: SHORT, ..relaxed() };
    let idle = ListenerLimits { idle_timeout: SHORT, ..relaxed() };
    for (limits, path) in [(stall, "/parts"), (idle, "/big")] {
        let server = Server::start(limits).await;
        let mut client = server.connect_h2().await;
        // The client opens the window only as the body is read.
        let answer = client.send_request(h2_get(path)).await.unwrap();
        h2_closed(&client).await;
        assert!(answer.into_body().collect().await.is_err());
    }
}

#[tokio::test]
async fn a_slow_reader_that_goes_on_is_served() {
    // Longer than a busy machine stalls, and well below what the answer takes.
    let limit = SHORT * 8;
    let limits = ListenerLimits { write_stall_timeout: limit, idle_timeout: limit, ..relaxed() };
    let server = Server::start(limits).await;
    let mut stream = server.connect().await;
    send_get(&mut stream, "/big").await;
    let (start, mut got, mut part) = (Instant::now(), 0, vec![0; 2 << 20]);
    while got < BIG {
        let n = timeout(LONG, stream.read_exact(&mut part)).await.expect("stuck").expect("cut off");
        got += n;
        part.truncate((BIG - got).clamp(1, 2 << 20));
        sleep(SHORT / 2).await;
    }
    assert!(start.elapsed() > limit * 3 / 2, "too fast to prove anything");
}

#[tokio::test]
async fn the_cap_holds_back_the_next_connection() {
    let server = Server::start(ListenerLimits { connections_max: 2, ..relaxed() }).await;
    let mut open = [server.connect().await, server.connect().await];
    for stream in &mut open {
        stream.write_all(PING).await.unwrap();
        read_until(stream, "pong").await;
    }
    let mut third = server.connect().await;
    third.write_all(PING).await.unwrap();
    let early = timeout(SHORT, third.read_u8()).await;
    assert!(early.is_err(), "served beyond the cap");
    let [first, _second] = open;
    drop(first);
    read_until(&mut third, "pong").await;
}

#[tokio::test]
async fn http1_keeps_alive_and_pipelines() {
    let server = Server::start(relaxed()).await;
    let mut stream = server.connect().await;
    let local = stream.local_addr().unwrap();
    stream.write_all(PING).await.unwrap();
    assert!(read_until(&mut stream, "pong").await.starts_with("HTTP/1.1 200"));
    send_get(&mut stream, "/peer").await;
    read_until(&mut stream, &format!("Peer(Some({local}))")).await;
    stream.write_all(&PING.repeat(2)).await.unwrap();
    let mut answers = read_until(&mut stream, "pong").await;
    if answers.matches("pong").count() == 1 {
        answers += &read_until(&mut stream, "pong").await;
    }
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2);
}

#[tokio::test]
async fn http2_is_served_by_prior_knowledge() {
    let server = Server::start(relaxed()).await;
    let mut client = server.connect_h2().await;
    let mut other = client.clone();
    let (a, b) = tokio::join!(client.send_request(h2_get("/ping")), other.send_request(h2_get("/slow")),);
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.version(), hyper::Version::HTTP_2);
    assert_eq!(a.into_body().collect().await.unwrap().to_bytes(), "pong");
    assert_eq!(b.into_body().collect().await.unwrap().to_bytes(), "slow");
}

#[tokio::test]
async fn half_closed_clients_do_not_stay() {
    let server = Server::start(relaxed()).await;
    for sent in [&b""[..], b"P", b"GET /ping HT", b"POST /echo HTTP/1.1\r\ncontent-length: 9\r\n\r\nx"] {
        let mut stream = server.connect().await;
        stream.write_all(sent).await.unwrap();
        stream.shutdown().await.unwrap();
        closed(&mut stream).await;
    }
}

#[tokio::test]
async fn drain_finishes_requests_and_closes_the_rest() {
    let limits = ListenerLimits { first_byte_timeout: SHORT * 4, ..relaxed() };
    let server = Server::start(limits).await;
    let mut fresh = server.connect().await;
    let mut half = server.connect().await;
    half.write_all(b"GET /pi").await.unwrap();
    let mut idle = server.connect().await;
    idle.write_all(PING).await.unwrap();
    read_until(&mut idle, "pong").await;
    let mut busy = server.connect().await;
    send_get(&mut busy, "/gated").await;
    server.hooks.started.notified().await;
    let mut client = server.connect_h2().await;
    let h2_busy = tokio::spawn(client.send_request(h2_get("/gated")));
    server.hooks.started.notified().await;

    server.shutdown.cancel();
    for stream in [&mut idle, &mut fresh] {
        assert!(closed(stream).await < SHORT, "not closed at once");
    }
    closed(&mut half).await;
    let refused = TcpStream::connect(server.addr).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(!server.task.is_finished());

    server.hooks.release.notify_waiters();
    read_until(&mut busy, "released").await;
    let answer = timeout(LONG, h2_busy).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "released");
    assert_eq!(server.stopped().await, 0);
}

#[tokio::test]
async fn drain_aborts_what_does_not_finish() {
    let server = Server::start(ListenerLimits { drain_timeout: SHORT, ..relaxed() }).await;
    let mut stream = server.connect().await;
    send_get(&mut stream, "/hang").await;
    server.hooks.started.notified().await;
    let mut client = server.connect_h2().await;
    let h2_hang = tokio::spawn(client.send_request(h2_get("/hang")));
    server.hooks.started.notified().await;

    let start = Instant::now();
    server.shutdown.cancel();
    let hooks = server.hooks.clone();
    assert_eq!(server.stopped().await, 2);
    assert!(start.elapsed() > SHORT / 2);
    closed(&mut stream).await;
    assert!(timeout(LONG, h2_hang).await.unwrap().unwrap().is_err());
    let dropped = async {
        while hooks.dropped.load(Ordering::SeqCst) < 2 {
            sleep(SHORT / 10).await;
        }
    };
    timeout(LONG, dropped).await.expect("a handler outlived its connection");
}

#[tokio::test]
async fn a_unix_socket_is_served_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    // Dropping the listener leaves its file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());

    let addr = ListenAddr::Unix(path.clone());
    let listener = Listener::bind(&addr).await.expect("stale socket not replaced");
    assert_eq!(listener.local_addr(), format!("unix:{}", path.display()));
    assert_eq!(listener.tcp_addr(), None);
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let shutdown = CancellationToken::new();
    let app = app(&Hooks::default());
    let task = tokio::spawn(serve(listener, app, relaxed(), shutdown.clone()));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    send_get(&mut stream, "/peer").await;
    read_until(&mut stream, "Peer(None)").await;

    let live = Listener::bind(&addr).await.unwrap_err();
    assert_eq!(live.kind(), std::io::ErrorKind::AddrInUse);
    stream.write_all(PING).await.unwrap();
    read_until(&mut stream, "pong").await;

    shutdown.cancel();
    assert_eq!(timeout(LONG, task).await.unwrap().unwrap(), 0);
    assert!(!path.exists());
}

#[tokio::test]
async fn only_our_own_socket_file_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let addr = ListenAddr::Unix(path.clone());
    std::fs::write(&path, "data").unwrap();
    let taken = Listener::bind(&addr).await.unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&path).unwrap(), b"data");

    std::fs::remove_file(&path).unwrap();
    let ours = Listener::bind(&addr).await.unwrap();
    // Someone else takes the path over; the old inode lives on until `ours` goes.
    std::fs::rename(&path, dir.path().join("old")).unwrap();
    let _theirs = Listener::bind(&addr).await.unwrap();
    drop(ours);
    assert!(path.exists());
}
