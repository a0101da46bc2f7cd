//! A unit of writing and the answer its caller waits for.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chatstore_core::store::StoreError;
use tokio::sync::oneshot;

use super::WriteConnection;
use crate::error::store_error;

/// Why a job's changes are taken back: an answer of the contract, or an error of SQLite.
#[derive(Debug)]
pub(crate) enum Failure {
    Answer(StoreError),
    Sqlite(rusqlite::Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Answer(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// What a job was for, beside its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing to note.
    Plain,
    /// It appended something, which is counted.
    Append,
    /// It leaves messages to be erased.
    Delete,
}

/// A unit of writing, run once inside a savepoint and answered after the commit.
pub(super) trait Job: Send {
    /// Runs it; `Err` takes back what it did.
    fn run(&mut self, connection: &WriteConnection) -> Result<(), Option<rusqlite::Error>>;
    /// Answers its caller: with its own result, or with the error that ended the batch.
    fn answer(self: Box<Self>, batch: Result<(), StoreError>);
    /// Roughly how many bytes it holds.
    fn bytes(&self) -> usize;
    /// What it was for, if what it did is kept.
    fn kept(&self) -> Option<Kind>;
}

pub(super) struct WriteJob<F, T> {
    pub(super) run: Option<F>,
    pub(super) result: Option<Result<(Kind, T), StoreError>>,
    pub(super) reply: oneshot::Sender<Result<T, StoreError>>,
    pub(super) bytes: usize,
}

impl<F, T> Job for WriteJob<F, T>
where
    F: FnOnce(&WriteConnection) -> Result<(Kind, T), Failure> + Send,
    T: Send,
{
    fn run(&mut self, connection: &WriteConnection) -> Result<(), Option<rusqlite::Error>> {
        let Some(run) = self.run.take() else {
            return Err(None);
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| run(connection)));
        let (result, taken_back) = match outcome {
            Ok(Ok(value)) => (Ok(value), Ok(())),
            Ok(Err(Failure::Answer(error))) => (Err(error), Err(None)),
            Ok(Err(Failure::Sqlite(error))) => {
                // `rusqlite::Error` cannot be cloned: the caller gets our name for it.
                let name = match &error {
                    rusqlite::Error::SqliteFailure(failure, message) => {
                        store_error(rusqlite::Error::SqliteFailure(*failure, message.clone()))
                    }
                    other => StoreError::internal(other),
                };
                (Err(name), Err(Some(error)))
            }
            Err(_) => (Err(StoreError::internal("a write panicked")), Err(None)),
        };
        self.result = Some(result);
        taken_back
    }

    fn answer(self: Box<Self>, batch: Result<(), StoreError>) {
        let answer = match (batch, self.result) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(result)) => result.map(|(_, value)| value),
            (Ok(()), None) => Err(StoreError::internal("a write was not run")),
        };
        // The caller may have gone away; what it asked for has happened all the same.
        let _ = self.reply.send(answer);
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn kept(&self) -> Option<Kind> {
        self.result.as_ref()?.as_ref().ok().map(|(kind, _)| *kind)
    }
}
