//! The watchdog of a connection: what it knows of it, and the stream and body that tell it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::Version;
use hyper::body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::{Shared, Stream};

/// HTTP/2 pings and acknowledgements are smaller than this, so they do not count as activity.
const CONTROL_BYTES: usize = 64;

/// Why a connection is to be closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    FirstByte,
    Head,
    Write,
    Idle,
    /// Told to close, and nothing is left to wait for.
    Quiet,
}

/// What the watchdog knows of a connection. Times are milliseconds since `started`, at least 1;
/// 0 means never, or not now.
pub(super) struct ConnState {
    started: Instant,
    http2: AtomicBool,
    requests_begun: AtomicU64,
    requests_in_flight: AtomicUsize,
    /// Bodies that have data, or may have it, and wait for hyper to ask.
    bodies_waiting: AtomicUsize,
    read_at: AtomicU64,
    /// When bytes first came with no request in flight: those of the next head.
    head_since: AtomicU64,
    write_pending_since: AtomicU64,
    /// When a response last moved on.
    active_at: AtomicU64,
}

impl ConnState {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            http2: AtomicBool::new(false),
            requests_begun: AtomicU64::new(0),
            requests_in_flight: AtomicUsize::new(0),
            bodies_waiting: AtomicUsize::new(0),
            read_at: AtomicU64::new(0),
            head_since: AtomicU64::new(0),
            write_pending_since: AtomicU64::new(0),
            active_at: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn read_some(&self) {
        let now = self.now();
        self.read_at.store(now, Relaxed);
        if self.head_since.load(Relaxed) == 0 && self.requests_in_flight.load(Relaxed) == 0 {
            self.head_since.store(now, Relaxed);
        }
    }

    fn write_polled(&self, poll: &Poll<io::Result<usize>>) {
        let pending = self.write_pending_since.load(Relaxed) != 0;
        match poll {
            Poll::Pending if !pending => self.write_pending_since.store(self.now(), Relaxed),
            Poll::Ready(Ok(n)) if pending || *n > CONTROL_BYTES => {
                self.write_pending_since.store(0, Relaxed);
                self.active_at.store(self.now(), Relaxed);
            }
            _ => {}
        }
    }

    /// The limit this connection has passed, if any. A handler at work is never cut short here.
    pub(super) fn overdue(&self, shared: &Shared, closing: bool) -> Option<Overdue> {
        let limits = &shared.limits;
        // Pairs with the release in `InFlight::drop`: 0 here means its time is visible too.
        let in_flight = self.requests_in_flight.load(Acquire);
        let now = self.now();
        let past = |since: u64, limit| Duration::from_millis(now.saturating_sub(since)) >= limit;
        let [read_at, head_since, write_pending_since, active_at] =
            [&self.read_at, &self.head_since, &self.write_pending_since, &self.active_at]
                .map(|time| time.load(Relaxed));

        if write_pending_since != 0 {
            return past(write_pending_since, limits.write_stall_timeout).then_some(Overdue::Write);
        }
        if in_flight > 0 {
            // An HTTP/2 client can also stall by never opening its window: the socket is free,
            // but hyper asks no body for more.
            let waiting = self.bodies_waiting.load(Relaxed) > 0;
            return (waiting && past(active_at, limits.write_stall_timeout)).then_some(Overdue::Write);
        }
        if closing {
            return past(read_at.max(active_at), 2 * shared.tick).then_some(Overdue::Quiet);
        }
        if read_at == 0 {
            return past(0, limits.first_byte_timeout).then_some(Overdue::FirstByte);
        }
        // Once HTTP/2 is running, bytes between requests are mostly not those of a head.
        let reads_head = self.requests_begun.load(Relaxed) == 0 || !self.http2.load(Relaxed);
        if reads_head && head_since != 0 {
            return past(head_since, limits.header_read_timeout).then_some(Overdue::Head);
        }
        past(active_at, limits.idle_timeout).then_some(Overdue::Idle)
    }
}

/// A stream that notes its progress.
pub(super) struct WatchedIo {
    pub(super) stream: Stream,
    pub(super) state: Arc<ConnState>,
}

impl AsyncRead for WatchedIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.state.read_some();
        }
        poll
    }
}

impl AsyncWrite for WatchedIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.state.write_polled(&poll);
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.state.write_polled(&poll);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Counts a request from the call of its handler to the end of its response body.
pub(super) struct InFlight(Arc<ConnState>);

impl InFlight {
    pub(super) fn begin(state: &Arc<ConnState>, version: Version) -> Self {
        if state.requests_begun.fetch_add(1, Relaxed) == 0 {
            state.http2.store(version == Version::HTTP_2, Relaxed);
        }
        state.requests_in_flight.fetch_add(1, Relaxed);
        state.head_since.store(0, Relaxed);
        Self(state.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.active_at.store(self.0.now(), Relaxed);
        self.0.requests_in_flight.fetch_sub(1, Release);
    }
}

/// A response body that keeps its request in flight and notes whether hyper takes its data.
pub(super) struct WatchedBody {
    body: axum::body::Body,
    /// `None` once the body has ended.
    in_flight: Option<InFlight>,
    waiting: bool,
}

impl WatchedBody {
    pub(super) fn new(body: axum::body::Body, in_flight: InFlight) -> Self {
        let mut watched = Self { body, in_flight: Some(in_flight), waiting: false };
        watched.set_waiting(true);
        watched
    }

    fn set_waiting(&mut self, waiting: bool) {
        if let Some(InFlight(state)) = &self.in_flight
            && self.waiting != waiting
        {
            self.waiting = waiting;
            if waiting {
                state.active_at.store(state.now(), Relaxed);
                state.bodies_waiting.fetch_add(1, Relaxed);
            } else {
                state.bodies_waiting.fetch_sub(1, Relaxed);
            }
        }
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.set_waiting(false);
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.set_waiting(false);
        let poll = Pin::new(&mut self.body).poll_frame(cx);
        match &poll {
            Poll::Ready(Some(Ok(_))) => self.set_waiting(true),
            Poll::Ready(_) => self.in_flight = None,
            Poll::Pending => {}
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
