//! The connections, lent under a deadline. A connection that was left in the middle of something
//! is closed, never lent again; what surely did not happen is tried again.

mod db;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chatstore_core::store::StoreError;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, PoolError, RecyclingMethod};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::PostgresOptions;
use crate::connect::Target;
use crate::error::OpenError;
use crate::sqlstate::{described, is_lost, is_passing, store_error};

pub(crate) use db::{Db, Lease, Plan};

/// The first pause before a retry; each following one is twice as long.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Times an operation is tried.
const ATTEMPTS: u32 = 6;

/// In so many words, for a pooler may bring other defaults.
const BEGIN: &str = "begin isolation level read committed";
const COMMIT: &str = "commit";
const ROLLBACK: &str = "rollback";

/// Why an operation failed: an answer of the contract, or an error of PostgreSQL.
#[derive(Debug)]
pub(crate) enum Failure {
    Answer(StoreError),
    Postgres(Error),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Answer(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Postgres(error)
    }
}

impl Failure {
    /// Whether the same may succeed in a moment.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Postgres(error) if is_passing(error))
    }

    /// The contract's name for it.
    pub(crate) fn into_store_error(self) -> StoreError {
        match self {
            Self::Answer(error) => error,
            Self::Postgres(error) => store_error(&error),
        }
    }
}

/// The pool.
pub(crate) struct Pool {
    inner: deadpool_postgres::Pool,
    tls: MakeRustlsConnect,
    prepared: bool,
    acquire_timeout: Duration,
    statement_timeout: Duration,
    /// Half of the connections: writes that wait for a row leave the others to reads.
    writes: Semaphore,
    closed: AtomicBool,
}

impl Pool {
    pub(crate) fn new(target: &Target, options: &PostgresOptions) -> Result<Self, OpenError> {
        let config = target.config_within(options.acquire_timeout);
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(config, target.tls(), recycling);
        let mut builder = deadpool_postgres::Pool::builder(manager).max_size(options.connections_max.max(2));
        if options.prepared_statements {
            let set_up = set_up(options);
            builder = builder.post_create(Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
                let set_up = set_up.clone();
                Box::pin(async move { client.batch_execute(&set_up).await.map_err(HookError::Backend) })
            }));
        }
        let inner = builder.build().map_err(|error| OpenError::new(format!("cannot make a pool: {error}")))?;
        Ok(Self {
            inner,
            tls: target.tls(),
            prepared: options.prepared_statements,
            acquire_timeout: options.acquire_timeout,
            statement_timeout: options.statement_timeout,
            writes: Semaphore::new((options.connections_max / 2).max(1)),
            closed: AtomicBool::new(false),
        })
    }

    /// When an operation that begins now must be over.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.statement_timeout
    }

    /// Ends the pool: what is on loan is finished, later operations fail.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.inner.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Leave to hold a row: as many transactions as may.
    pub(crate) async fn write_permit(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, StoreError> {
        let until = deadline.min(Instant::now() + self.acquire_timeout);
        let permit = timeout_at(until, self.writes.acquire()).await.map_err(|_| StoreError::Busy)?;
        permit.map_err(|_| closed())
    }

    /// A connection, within the time that waiting for one may take. While the server refuses them
    /// in passing, as in a restart, it is asked again.
    pub(crate) async fn lease(&self, deadline: Instant) -> Result<Lease, StoreError> {
        let until = deadline.min(Instant::now() + self.acquire_timeout);
        let mut pause = RETRY_PAUSE;
        loop {
            let error = match timeout_at(until, self.inner.get()).await {
                Ok(Ok(client)) => {
                    return Ok(Lease::new(client, self.prepared, self.tls.clone()));
                }
                Ok(Err(PoolError::Closed)) => return Err(closed()),
                Ok(Err(PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)))) => error,
                Ok(Err(error)) => return Err(StoreError::Unavailable { reason: error.to_string() }),
                Err(_) => return Err(self.nothing_free()),
            };
            if !is_passing(&error) || Instant::now() + pause >= until {
                return Err(StoreError::Unavailable { reason: format!("cannot connect: {}", described(&error)) });
            }
            sleep(pause).await;
            pause *= 2;
        }
    }

    fn nothing_free(&self) -> StoreError {
        let status = self.inner.status();
        match status.size >= status.max_size {
            true => StoreError::Busy,
            false => StoreError::Unavailable { reason: "the database does not answer".to_owned() },
        }
    }

    /// Runs a read, again if its connection was lost.
    pub(crate) async fn read<I, T, F, Fut>(&self, input: I, run: F) -> Result<T, StoreError>
    where
        I: Send + Sync,
        F: Fn(Arc<Db>, Arc<I>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let (deadline, input) = (self.deadline(), Arc::new(input));
        let mut attempt = Attempt::new(deadline);
        loop {
            let mut lease = self.lease(deadline).await?;
            let Ok(result) = lease.in_time(deadline, run(lease.db(), input.clone())).await else {
                return Err(too_slow());
            };
            let failure = match result {
                Ok(value) => {
                    lease.rest();
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            lease.note(&failure);
            drop(lease);
            attempt.again(failure).await?;
        }
    }

    /// Runs a read in a transaction of its own with settings that end with it, again if its
    /// connection was lost.
    pub(crate) async fn read_under<I, T, F, Fut>(&self, settings: &str, input: I, run: F) -> Result<T, StoreError>
    where
        I: Send + Sync,
        F: Fn(Arc<Db>, Arc<I>) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let (deadline, input) = (self.deadline(), Arc::new(input));
        let mut attempt = Attempt::new(deadline);
        loop {
            let mut lease = self.lease(deadline).await?;
            let result = transact(&mut lease, deadline, async |db| {
                db.run(settings).await?;
                run(db, input.clone()).await
            })
            .await;
            drop(lease);
            match result {
                Ok(value) => return Ok(value),
                Err(Undone::Surely(failure)) => attempt.again(failure).await?,
                Err(Undone::Perhaps(error, _)) => return Err(error),
            }
        }
    }

    /// Runs a write in a transaction, to its end even if the caller goes away; again if it surely
    /// did not happen.
    pub(crate) async fn write<I, T, F, Fut>(self: &Arc<Self>, input: I, run: F) -> Result<T, StoreError>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
        F: Fn(Arc<Db>, Arc<I>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, Failure>> + Send,
    {
        let (pool, input) = (self.clone(), Arc::new(input));
        let write = async move {
            let deadline = pool.deadline();
            let mut attempt = Attempt::new(deadline);
            loop {
                let permit = pool.write_permit(deadline).await?;
                let mut lease = pool.lease(deadline).await?;
                match transact(&mut lease, deadline, |db| run(db, input.clone())).await {
                    Ok(value) => return Ok(value),
                    Err(Undone::Surely(failure)) => {
                        drop((lease, permit));
                        attempt.again(failure).await?;
                    }
                    Err(Undone::Perhaps(error, _)) => return Err(error),
                }
            }
        };
        tokio::spawn(write).await.unwrap_or_else(|_| Err(StoreError::internal("a write panicked")))
    }
}

/// Why a transaction has no result.
pub(crate) enum Undone<T> {
    /// It was rolled back.
    Surely(Failure),
    /// Its commit was not answered; the result, if it was made all the same.
    Perhaps(StoreError, T),
}

/// Runs `run` in a transaction of its own.
pub(crate) async fn transact<T, F, Fut>(lease: &mut Lease, deadline: Instant, run: F) -> Result<T, Undone<T>>
where
    F: FnOnce(Arc<Db>) -> Fut,
    Fut: Future<Output = Result<T, Failure>>,
{
    let db = lease.db();
    let work = async {
        db.run(BEGIN).await?;
        run(db.clone()).await
    };
    let slow = || Undone::Surely(too_slow().into());
    match lease.in_time(deadline, work).await.map_err(|_| slow())? {
        Ok(value) => match lease.in_time(deadline, db.run(COMMIT)).await {
            Ok(Ok(())) => {
                lease.rest();
                Ok(value)
            }
            Ok(Err(error)) if rolls_back(&error) => {
                lease.rest();
                Err(Undone::Surely(error.into()))
            }
            Ok(Err(error)) => Err(Undone::Perhaps(unknown(&described(&error)), value)),
            Err(_) => Err(Undone::Perhaps(unknown("no answer in time"), value)),
        },
        Err(failure) => {
            lease.note(&failure);
            if settles(&failure) && !matches!(timeout_at(deadline, db.run(ROLLBACK)).await, Ok(Ok(()))) {
                lease.close();
            }
            Err(Undone::Surely(failure))
        }
    }
}

/// The tries of one operation.
pub(crate) struct Attempt {
    deadline: Instant,
    left: u32,
    pause: Duration,
}

impl Attempt {
    pub(crate) fn new(deadline: Instant) -> Self {
        Self { deadline, left: ATTEMPTS, pause: RETRY_PAUSE }
    }

    /// Waits a moment before the next try, or gives the failure's answer when there is none.
    pub(crate) async fn again(&mut self, failure: Failure) -> Result<(), StoreError> {
        match failure.is_passing() {
            true => self.pause(failure.into_store_error()).await,
            false => Err(failure.into_store_error()),
        }
    }

    /// Waits a moment before the next try, or gives `error` when there is none.
    pub(crate) async fn pause(&mut self, error: StoreError) -> Result<(), StoreError> {
        self.left -= 1;
        if self.left == 0 || Instant::now() + self.pause >= self.deadline {
            return Err(error);
        }
        sleep(self.pause).await;
        self.pause *= 2;
        Ok(())
    }
}

impl Lease {
    /// Notes what an answered failure says of the connection.
    fn note(&mut self, failure: &Failure) {
        match settles(failure) {
            true => self.rest(),
            false => self.close(),
        }
    }
}

/// Whether the connection is whole after this failure.
fn settles(failure: &Failure) -> bool {
    match failure {
        Failure::Answer(_) => true,
        Failure::Postgres(error) => !is_lost(error),
    }
}

/// Whether this answer to a commit says that the transaction was rolled back.
fn rolls_back(error: &Error) -> bool {
    let code = error.code();
    code == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
        || code == Some(&SqlState::T_R_DEADLOCK_DETECTED)
        || code.is_some_and(|code| code.code().starts_with("23"))
}

fn closed() -> StoreError {
    StoreError::Unavailable { reason: "the store is closed".to_owned() }
}

pub(crate) fn too_slow() -> StoreError {
    StoreError::Unavailable { reason: "the database did not answer in time".to_owned() }
}

/// What is said of a write that may be stored or not.
pub(crate) fn unknown(reason: &str) -> StoreError {
    StoreError::Unavailable { reason: format!("the outcome of a commit is unknown: {reason}") }
}

/// What a connection is told once. Every statement here is a walk along keys: a plan is made once,
/// without values, and never begins with a whole table while that is still small. A commit that
/// does not wait for the disk is not taken for one. A lock is waited for as long as a connection.
pub(crate) fn set_up(options: &PostgresOptions) -> String {
    let timeout_ms = options.statement_timeout.as_millis();
    let lock_timeout_ms = options.acquire_timeout.as_millis();
    format!(
        "set plan_cache_mode = force_generic_plan; set jit = off; set enable_seqscan = off; set enable_bitmapscan = off; \
         set enable_hashjoin = off; set enable_mergejoin = off; set enable_sort = off; \
         set statement_timeout = {timeout_ms}; set lock_timeout = {lock_timeout_ms}; \
         set idle_in_transaction_session_timeout = {idle_ms}; \
         set default_transaction_isolation = 'read committed'; \
         select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off'",
        idle_ms = 2 * timeout_ms,
    )
}
