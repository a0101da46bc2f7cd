//! Log lines on their way out: requests add to a buffer, one thread writes what has gathered.
//!
//! A system call a line, and waking a thread for each, would cost a request more than the work it
//! came for.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// How long lines gather before they are written.
const GATHER: Duration = Duration::from_millis(10);
/// Bytes that may wait for a slow reader of the output; lines beyond are dropped and counted.
const BUFFER_BYTES_MAX: usize = 4 << 20;

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    dropped: u64,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that lines are written to; cheap to clone.
#[derive(Clone)]
pub(super) struct LineBuffer(Arc<Shared>);

impl Write for LineBuffer {
    /// Takes a whole line or drops it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.lines.len() + line.len() > BUFFER_BYTES_MAX {
            state.dropped += 1;
            return Ok(line.len());
        }
        let was_empty = state.lines.is_empty();
        state.lines.extend_from_slice(line);
        drop(state);
        if was_empty {
            self.0.changed.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LineBuffer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Keeps the thread going; writes out what is left when dropped.
#[derive(Debug)]
pub(super) struct LineThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LineBuffer")
    }
}

/// Starts a thread that writes lines to `out`.
pub(super) fn line_buffer(out: impl Write + Send + 'static) -> io::Result<(LineBuffer, LineThread)> {
    let shared = Arc::new(Shared::default());
    let source = shared.clone();
    let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&source, out))?;
    Ok((LineBuffer(shared.clone()), LineThread { shared, thread: Some(thread) }))
}

fn write_lines(shared: &Shared, mut out: impl Write) {
    let mut lines = Vec::new();
    loop {
        let waits = |state: &mut State| state.lines.is_empty() && !state.closed;
        let state = shared.changed.wait_while(shared.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = shared
            .changed
            .wait_timeout_while(state, GATHER, |state| !state.closed)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.lines, &mut lines);
        let (dropped, closed) = (std::mem::take(&mut state.dropped), state.closed);
        drop(state);
        // Where the output has gone there is nobody to tell.
        let _ = out.write_all(&lines).and_then(|()| out.flush());
        lines.clear();
        lines.shrink_to(64 << 10);
        if dropped > 0 {
            tracing::warn!(dropped, "the output was too slow: log lines were dropped");
        }
        if closed && shared.lock().lines.is_empty() {
            return;
        }
    }
}

impl Drop for LineThread {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
