//! Finding messages by their vectors: exactly within a user or a session, and in a whole project
//! by an index where there is one.

use std::collections::HashSet;

use chatstore_core::embeddings::{Metric, VectorQuery};
use chatstore_core::ids::SessionId;
use chatstore_core::search::{RankedMessage, SearchFilter};
use chatstore_core::store::{Scope, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use super::text::bucket_of;
use super::{DRAINED_MAX, GROWTH, hnsw};
use crate::columns::{bucket_value, json_column, time_column};
use crate::embeddings::vectors::{ModelFault, dimensions_value, find_dimensions, model_id};
use crate::params::params;
use crate::pool::{Db, Failure, Plan, Pool};
use crate::sessions::is_live;

/// Which vectors are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Among {
    Session,
    User,
    Project,
}

impl Among {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 3] = [Self::Session, Self::User, Self::Project];
}

/// The nearest vectors, and of each whether its message fits: without metadata it does not. A
/// message of several vectors comes with each of them.
fn nearest(dimensions: i32, distance: &str, among: &str, order: &str) -> String {
    format!(
        "select e.message_id, e.session_id, e.seq, e.created_at, e.distance, m.metadata
    from (
        select e.bucket, e.session_id, e.seq, e.message_id, e.created_at, {distance} as distance
        from message_embeddings e
        where e.dimensions = {dimensions} and e.project_id = $2 and e.model_id = $3 and e.created_at >= $4 and e.created_at < $5
            and ($10::smallint is null or e.bucket = $10) and {among}
        order by {order} limit $6) e
    left join lateral (
        select m.metadata from sessions s cross join lateral (
            select m.* from messages m where m.bucket = e.bucket and m.session_id = e.session_id and m.seq = e.seq
                and m.deleted_at is null and ($7::text is null or m.role = $7) and ($8::text is null or m.kind = $8)
            offset 0) m
        where s.bucket = e.bucket and s.session_id = e.session_id and s.project_id = $2 and {is_live}
            and ($9::text is null or s.user_id = $9) offset 0) m on true",
        is_live = is_live!(),
    )
}

/// Compares all vectors: the order is by an expression that no index of vectors has.
pub(crate) fn nearest_exactly(dimensions: i32, metric: Metric, among: Among) -> String {
    let operator = match metric {
        Metric::Cosine => "<=>",
        Metric::InnerProduct => "<#>",
        Metric::L2 => "<->",
    };
    let among = match among {
        Among::Session => "e.bucket = $10 and e.session_id = $11",
        Among::User => "e.bucket = $10 and e.user_id = $9 and $11::uuid is null",
        Among::Project => "$11::uuid is null",
    };
    let order = "distance, e.created_at desc, e.message_id";
    nearest(dimensions, &format!("e.embedding {operator} $1::real[]::vector"), among, order)
}

/// Walks the index of this dimension.
pub(crate) fn nearest_by_index(dimensions: i32) -> String {
    let order =
        format!("{} <=> {}", hnsw::indexed("e.embedding", dimensions), hnsw::indexed("$1::real[]::vector", dimensions));
    nearest(dimensions, "e.embedding <=> $1::real[]::vector", "$11::uuid is null", &order)
}

/// A search by a vector.
#[derive(Clone, Copy)]
pub(super) struct VectorSearch<'a> {
    pub(super) scope: &'a Scope,
    pub(super) query: &'a VectorQuery,
    pub(super) filter: &'a SearchFilter,
    pub(super) limit: usize,
}

impl VectorSearch<'_> {
    fn among(&self) -> Among {
        match (self.filter.session_id, self.filter.user(self.scope)) {
            (Some(_), _) => Among::Session,
            (None, Some(_)) => Among::User,
            (None, None) => Among::Project,
        }
    }

    fn model_id(&self) -> Uuid {
        model_id(self.scope.project_id, &self.query.model)
    }

    /// Whether some of the nearest vectors may belong to messages that do not fit.
    fn is_selective(&self) -> bool {
        self.filter.role.is_some() || self.filter.kind.is_some() || !self.filter.metadata.is_empty()
    }

    /// The nearest messages, nearest first.
    pub(super) async fn run(self, pool: &Pool, indexes: &hnsw::Indexes) -> Result<Vec<RankedMessage>, StoreError> {
        let dimensions = dimensions_value(&self.query.vector);
        let known = pool.read(self, async |db, search| search.check_dimensions(&db).await).await?;
        if !known || self.limit == 0 {
            return Ok(Vec::new());
        }
        let by_index = self.among() == Among::Project && self.query.metric == Metric::Cosine;
        if by_index && indexes.serve(pool, self.scope.project_id, self.model_id(), dimensions).await? {
            let found = self.run_by_index(pool, &nearest_by_index(dimensions)).await?;
            if let Some(found) = found {
                return Ok(found);
            }
        }
        pool.read(self, async |db, search| search.read_exactly(&db).await).await
    }

    /// What an index gives; `None` if it comes to its end before enough fit.
    async fn run_by_index(self, pool: &Pool, sql: &str) -> Result<Option<Vec<RankedMessage>>, StoreError> {
        let mut window = (self.limit * 4).max(hnsw::CANDIDATES_MIN);
        loop {
            let (found, is_all) = pool
                .read_under(&hnsw::settings(window), (self, sql, window), async |db, input| {
                    input.0.read(&db, input.1, input.2).await
                })
                .await?;
            if is_all || found.len() == self.limit {
                return Ok((found.len() == self.limit).then_some(found));
            }
            window *= GROWTH;
        }
    }

    /// Whether the project has the model; refuses a vector of another length.
    async fn check_dimensions(&self, db: &Db) -> Result<bool, Failure> {
        let stored = find_dimensions(db, self.scope.project_id, self.model_id()).await?;
        match stored.filter(|stored| *stored != dimensions_value(&self.query.vector)) {
            Some(stored) => Err(ModelFault::Length(stored).at("/embedding").into()),
            None => Ok(stored.is_some()),
        }
    }

    /// Looks among the nearest, then among more of them, until enough fit.
    async fn read_exactly(&self, db: &Db) -> Result<Vec<RankedMessage>, Failure> {
        let sql = nearest_exactly(dimensions_value(&self.query.vector), self.query.metric, self.among());
        let mut window = match self.is_selective() {
            true => (self.limit * 4).max(256),
            false => self.limit + self.limit / 4 + 16,
        };
        loop {
            let (found, is_all) = self.read(db, &sql, window).await?;
            if is_all || found.len() == self.limit {
                return Ok(found);
            }
            window = window.saturating_mul(GROWTH);
        }
    }

    /// The best of the `window` nearest vectors' messages, and whether these were all vectors.
    async fn read(&self, db: &Db, sql: &str, window: usize) -> Result<(Vec<RankedMessage>, bool), Failure> {
        let SearchFilter { session_id, role, kind, created_after, created_before, .. } = self.filter;
        let params = params![
            self.query.vector.numbers(),
            self.scope.project_id.uuid(),
            self.model_id(),
            created_after.map_or(i64::MIN, |time| time.as_micros()),
            created_before.map_or(i64::MAX, |time| time.as_micros()),
            i64::try_from(window).unwrap_or(i64::MAX),
            role.as_deref(),
            kind.as_deref(),
            self.filter.user(self.scope),
            bucket_of(self.scope, self.filter).map(bucket_value),
            session_id.map(SessionId::uuid),
        ];
        // Planned for its values: which index is good depends on whose vectors are compared.
        let mut rows = db.stream(Plan::Once, sql, params).await?;
        let (mut found, mut seen, mut count) = (Vec::new(), HashSet::new(), 0);
        while let Some(row) = rows.next().await? {
            count += 1;
            if found.len() < self.limit {
                if let Some(message) = self.ranked(&row)?.filter(|message| seen.insert(message.message_id)) {
                    found.push(message);
                }
            } else if window - count > DRAINED_MAX {
                break;
            }
        }
        found.sort_unstable_by(RankedMessage::order);
        Ok((found, count < window))
    }

    /// The row's message, if it fits.
    fn ranked(&self, row: &Row) -> Result<Option<RankedMessage>, Failure> {
        if row.try_get::<_, Option<&str>>(5)?.is_none() {
            return Ok(None);
        }
        if !self.filter.metadata.is_empty() && !self.filter.admits(&json_column(row, 5)?) {
            return Ok(None);
        }
        let distance: f64 = row.try_get(4)?;
        let score = match self.query.metric {
            Metric::Cosine => 1.0 - distance,
            Metric::InnerProduct | Metric::L2 => -distance,
        };
        Ok(Some(RankedMessage {
            message_id: row.try_get::<_, Uuid>(0)?.into(),
            session_id: row.try_get::<_, Uuid>(1)?.into(),
            seq: row.try_get(2)?,
            created_at: time_column(row, 3)?,
            // Squares of large numbers may have no end in single precision.
            score: score.clamp(f64::MIN, f64::MAX),
        }))
    }
}
