//! A connection on loan: statements go through it, and it goes back only at rest.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::Object;
use futures_util::{StreamExt as _, pin_mut};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::{Error, Row, RowStream, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Failure;
use crate::params::Param;

/// How long the request to cancel a statement may take.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a server is silent before the way to it is in doubt.
const SILENCE: Duration = Duration::from_millis(100);
/// How long the statement may go on after a request to cancel it.
const CANCEL_PAUSE: Duration = Duration::from_millis(100);
/// Times it is asked for: a request that comes before its statement has begun is lost.
const CANCEL_ATTEMPTS: u32 = 5;

/// A connection on loan.
pub(crate) struct Db {
    client: Object,
    prepared: bool,
    /// Whether rows that nobody wants are still on their way.
    spent: AtomicBool,
}

/// Whether a statement is worth keeping on its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// One of few texts: prepared and planned once a connection.
    Kept,
    /// One of many texts: planned each time, and forgotten.
    Once,
}

impl Db {
    /// All rows.
    pub(crate) async fn query(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        self.query_planned(Plan::Kept, sql, params).await
    }

    /// All rows of a statement that is planned as told.
    pub(crate) async fn query_planned(&self, plan: Plan, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        if plan == Plan::Once || !self.prepared {
            return self.client.query_typed(sql, params).await;
        }
        let statement = self.prepare(sql, params).await?;
        let values: Vec<_> = params.iter().map(|(value, _)| *value).collect();
        self.client.query(&statement, &values).await
    }

    /// The first row, if there is one.
    pub(crate) async fn query_opt(&self, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>, Error> {
        Ok(self.query(sql, params).await?.into_iter().next())
    }

    /// Runs a statement; tells how many rows it wrote.
    pub(crate) async fn execute(&self, sql: &str, params: &[Param<'_>]) -> Result<u64, Error> {
        if !self.prepared {
            return self.client.execute_typed(sql, params).await;
        }
        let statement = self.prepare(sql, params).await?;
        let values: Vec<_> = params.iter().map(|(value, _)| *value).collect();
        self.client.execute(&statement, &values).await
    }

    /// Maps the rows until `enough` says so of what was mapped; if more follow, the answer ends in
    /// `true`, and the connection is given up after the operation, so that they need not be received.
    pub(crate) async fn query_until<T>(
        &self,
        sql: &str,
        params: &[Param<'_>],
        map: impl Fn(&Row) -> Result<T, Failure>,
        mut enough: impl FnMut(&T) -> bool,
    ) -> Result<(Vec<T>, bool), Failure> {
        let mut rows = self.stream(Plan::Kept, sql, params).await?;
        let mut items = Vec::new();
        let mut full = false;
        while let Some(row) = rows.next().await? {
            if full {
                return Ok((items, true));
            }
            let item = map(&row)?;
            full = enough(&item);
            items.push(item);
        }
        Ok((items, false))
    }

    /// The rows, one after the other. If they are not read to their end, the connection is given up
    /// after the operation, so that the rest need not be received.
    pub(crate) async fn stream(&self, plan: Plan, sql: &str, params: &[Param<'_>]) -> Result<Rows<'_>, Error> {
        let rows = match self.prepared && plan == Plan::Kept {
            true => {
                let statement = self.prepare(sql, params).await?;
                self.client.query_raw(&statement, params.iter().map(|(value, _)| *value)).await?
            }
            false => self.client.query_typed_raw(sql, params.iter().map(|(v, t)| (*v, t.clone()))).await?,
        };
        self.spent.store(true, Ordering::Relaxed);
        Ok(Rows { rows: Box::pin(rows), spent: &self.spent })
    }

    /// Runs statements without parameters, none of them prepared.
    pub(crate) async fn run(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await
    }

    async fn prepare(&self, sql: &str, params: &[Param<'_>]) -> Result<Statement, Error> {
        let types: Vec<_> = params.iter().map(|(_, of)| of.clone()).collect();
        self.client.prepare_typed_cached(sql, &types).await
    }
}

/// Rows on their way.
pub(crate) struct Rows<'a> {
    rows: Pin<Box<RowStream>>,
    spent: &'a AtomicBool,
}

impl Rows<'_> {
    /// The next row; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Row>, Error> {
        let row = self.rows.next().await.transpose()?;
        if row.is_none() {
            self.spent.store(false, Ordering::Relaxed);
        }
        Ok(row)
    }
}

/// What goes on at a connection when its loan ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// A statement may be running there.
    Running,
    /// Everything is answered, and the connection is of no more use.
    Answered,
    /// Everything is answered.
    AtRest,
}

/// A loan: it gives a connection back only when told that the connection is at rest.
pub(crate) struct Lease {
    db: Option<Arc<Db>>,
    state: State,
    tls: MakeRustlsConnect,
}

impl Lease {
    pub(super) fn new(client: Object, prepared: bool, tls: MakeRustlsConnect) -> Self {
        let db = Db { client, prepared, spent: AtomicBool::new(false) };
        Self { db: Some(Arc::new(db)), state: State::Running, tls }
    }

    /// The connection, for one operation.
    pub(crate) fn db(&self) -> Arc<Db> {
        self.db.clone().expect("a lease has its connection until it is dropped")
    }

    /// Waits for an answer until `deadline`. If none comes for long, the way to the server may be gone: idle
    /// connections that nobody has used since this one was lent are closed, or callers would meet
    /// them one after the other.
    pub(crate) async fn in_time<T>(&self, deadline: Instant, answer: impl Future<Output = T>) -> Result<T, Elapsed> {
        let result = timeout_at(deadline, answer).await;
        if let Some(db) = self.db.as_ref().filter(|_| result.is_err())
            && let Some(pool) = Object::pool(&db.client)
        {
            let lent = Object::metrics(&db.client).last_used();
            if lent >= SILENCE {
                drop(pool.retain(|_, metrics| metrics.last_used() < lent));
            }
        }
        result
    }

    /// Notes that nothing runs on the connection any more.
    pub(crate) fn rest(&mut self) {
        self.state = State::AtRest;
    }

    /// Notes that nothing runs on the connection any more, and that it must not be lent again.
    pub(crate) fn close(&mut self) {
        self.state = State::Answered;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(db) = self.db.take().and_then(Arc::into_inner) else { return };
        let spent = db.spent.load(Ordering::Relaxed);
        if self.state == State::AtRest && !spent {
            return;
        }
        let client = Object::take(db.client);
        if client.is_closed() || (self.state == State::Answered && !spent) {
            return;
        }
        // Closing alone would leave the server at work on what nobody waits for.
        let (cancel, tls) = (client.cancel_token(), self.tls.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // Answered when everything before it has ended.
                let ended = client.batch_execute("");
                pin_mut!(ended);
                for _ in 0..CANCEL_ATTEMPTS {
                    let _ = timeout(CANCEL_TIMEOUT, cancel.cancel_query(tls.clone())).await;
                    if timeout(CANCEL_PAUSE, &mut ended).await.is_ok() {
                        break;
                    }
                }
            });
        }
    }
}
