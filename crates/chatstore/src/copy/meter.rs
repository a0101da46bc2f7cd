//! How far a copy has come, counted by many tasks and shown in one place.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::HumanCount;

use crate::import::progress::{Progress, counted, rate};

pub(super) struct Meter {
    verb: &'static str,
    quiet: bool,
    state: Mutex<State>,
}

struct State {
    progress: Progress,
    sessions: u64,
    messages: u64,
}

/// What was counted when all was done.
pub(super) struct Tally {
    pub(super) sessions: u64,
    pub(super) messages: u64,
    pub(super) elapsed: Duration,
}

impl Meter {
    pub(super) fn new(verb: &'static str, quiet: bool) -> Self {
        let state = State { progress: Progress::endless(), sessions: 0, messages: 0 };
        Self { verb, quiet, state: Mutex::new(state) }
    }

    pub(super) fn add(&self, sessions: u64, messages: u64) {
        let state = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sessions += sessions;
        state.messages += messages;
        if self.quiet {
            return;
        }
        let (verb, sessions, messages) = (self.verb, state.sessions, state.messages);
        state.progress.tick(|elapsed| {
            let rate = HumanCount(rate(messages, elapsed));
            format!("{verb} {}, {} ({rate} messages/s)", counted(sessions, "session"), counted(messages, "message"))
        });
    }

    /// Whether anything was counted.
    pub(super) fn has_counted(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sessions + state.messages > 0
    }

    /// Ends the progress with the line that `summary` makes of it.
    pub(super) fn finish(&self, summary: impl FnOnce(&Tally) -> String) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = state.progress.finish();
        if !self.quiet {
            state.progress.say(&summary(&Tally { sessions: state.sessions, messages: state.messages, elapsed }));
        }
    }
}
