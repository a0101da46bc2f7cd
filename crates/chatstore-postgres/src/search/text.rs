//! Finding messages by their words: the index gives candidates, the newest first, and core decides.

use chatstore_core::ids::{Bucket, MessageId, SessionId};
use chatstore_core::limits::{SEARCH_BYTES_MAX, SEARCH_MATCHES_MAX};
use chatstore_core::search::query::Candidate;
use chatstore_core::search::{Best, RankedMessage, SearchFilter, TextQuery};
use chatstore_core::store::{Scope, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use super::texts::tsquery;
use super::{DRAINED_MAX, GROWTH};
use crate::columns::{bucket_value, json_column, time_column};
use crate::params::params;
use crate::pool::{Db, Failure, Plan};
use crate::sessions::is_live;

/// A window of candidates, and of those that are messages of the scope, what they say. The lexemes
/// name project and bucket, so nothing but their index leads to the rows; `offset 0` keeps the
/// planner from walking another one. A candidate that does not fit gives a row without a message,
/// so that the next window is known.
pub(crate) const SEARCH_TEXTS: &str = concat!(
    "select t.created_at, t.session_id, t.seq, m.message_id, m.role, m.content, m.metadata, s.session_name
    from (
        select t.* from (
            select t.bucket, t.session_id, t.seq, t.project_id, t.created_at from message_texts t
            where t.lexemes @@ $1::text::tsquery offset 0) t
        where t.project_id = $2 and ($13::smallint is null or t.bucket = $13) and ($3::uuid is null or t.session_id = $3) and t.created_at >= $4 and t.created_at < $5
            and (t.created_at, t.session_id, t.seq) < ($6, $7, $8)
        order by t.created_at desc, t.session_id desc, t.seq desc limit $9) t
    left join lateral (
        select s.bucket, s.session_id, s.session_name from sessions s
        where s.bucket = t.bucket and s.session_id = t.session_id and s.project_id = $2 and ",
    is_live!(),
    " and ($10::text is null or s.user_id = $10) offset 0) s on true
    left join lateral (
        select m.message_id, m.role, m.content, m.metadata from messages m
        where m.bucket = s.bucket and m.session_id = s.session_id and m.seq = t.seq and m.deleted_at is null
            and ($11::text is null or m.role = $11) and ($12::text is null or m.kind = $12) offset 0) m on true"
);

/// Bytes of a text that is compared on the thread that reads it.
const COMPARE_HERE_MAX: usize = 32 << 10;

/// A search by words.
#[derive(Clone, Copy)]
pub(super) struct TextSearch<'a> {
    pub(super) scope: &'a Scope,
    pub(super) query: &'a TextQuery,
    pub(super) filter: &'a SearchFilter,
    pub(super) limit: usize,
}

/// A place in the list of candidates: time, session and seq.
type Position = (i64, Uuid, i64);

/// The bucket that a search keeps to, if it is one.
pub(super) fn bucket_of(scope: &Scope, filter: &SearchFilter) -> Option<Bucket> {
    let of_user = || filter.user(scope).map(|user_id| Bucket::of_user(scope.project_id, user_id));
    filter.session_id.map(SessionId::bucket).or_else(of_user)
}

/// What was found so far.
struct Found {
    best: Best,
    matches: usize,
    bytes: usize,
    /// The last candidate.
    last: Option<Position>,
}

impl Found {
    fn is_full(&self) -> bool {
        self.matches >= SEARCH_MATCHES_MAX || self.bytes >= SEARCH_BYTES_MAX
    }
}

impl TextSearch<'_> {
    /// The best matches, best first.
    pub(super) async fn read(&self, db: &Db) -> Result<Vec<RankedMessage>, Failure> {
        let bucket = bucket_of(self.scope, self.filter);
        let Some(lexemes) = self.query.lexemes(self.scope.project_id, bucket) else { return Ok(Vec::new()) };
        let tsquery = tsquery(&lexemes);
        let bucket = bucket.map(bucket_value);
        let mut found = Found { best: Best::new(self.limit), matches: 0, bytes: 0, last: None };
        let mut window = SEARCH_MATCHES_MAX;
        loop {
            let before = found.matches;
            let count = self.read_window(db, (&tsquery, bucket, window), &mut found).await?;
            if count < window || found.is_full() {
                return Ok(found.best.into_sorted());
            }
            // Each window takes a look at all that the index gives: few are to be enough.
            if (found.matches - before) * GROWTH < count {
                window *= GROWTH;
            }
        }
    }

    /// Reads the candidates that follow, as many as `window`; tells how many they are.
    async fn read_window(
        &self,
        db: &Db,
        (tsquery, bucket, window): (&str, Option<i16>, usize),
        found: &mut Found,
    ) -> Result<usize, Failure> {
        let SearchFilter { session_id, role, kind, created_after, created_before, .. } = self.filter;
        let before = found.last.unwrap_or((i64::MAX, Uuid::max(), i64::MAX));
        let params = params![
            tsquery,
            self.scope.project_id.uuid(),
            session_id.map(SessionId::uuid),
            created_after.map_or(i64::MIN, |time| time.as_micros()),
            created_before.map_or(i64::MAX, |time| time.as_micros()),
            before.0,
            before.1,
            before.2,
            i64::try_from(window).unwrap_or(i64::MAX),
            self.filter.user(self.scope),
            role.as_deref(),
            kind.as_deref(),
            bucket,
        ];
        // Planned for the words, and for the index as large as it is now.
        let mut rows = db.stream(Plan::Once, SEARCH_TEXTS, params).await?;
        let mut count = 0;
        while found.bytes < SEARCH_BYTES_MAX
            && let Some(row) = rows.next().await?
        {
            count += 1;
            // The little that is left of a window is received, or its connection would be given up.
            if !found.is_full() {
                self.take(&row, found).await?;
            } else if window - count > DRAINED_MAX {
                break;
            }
        }
        Ok(count)
    }

    /// Compares a candidate with the query.
    async fn take(&self, row: &Row, found: &mut Found) -> Result<(), Failure> {
        let (session_id, seq): (Uuid, i64) = (row.try_get(1)?, row.try_get(2)?);
        found.last = Some((row.try_get(0)?, session_id, seq));
        let Some(message_id) = row.try_get::<_, Option<Uuid>>(3)? else { return Ok(()) };
        found.bytes += row.try_get::<_, &str>(5)?.len();
        if !self.filter.metadata.is_empty() && !self.filter.admits(&json_column(row, 6)?) {
            return Ok(());
        }
        if let Some(score) = self.score(row).await? {
            found.matches += 1;
            found.best.push(RankedMessage {
                message_id: MessageId::from(message_id),
                session_id: session_id.into(),
                seq,
                created_at: time_column(row, 0)?,
                score,
            });
        }
        Ok(())
    }

    async fn score(&self, row: &Row) -> Result<Option<f64>, Failure> {
        let (role, content, session_name): (&str, &str, &str) = (row.try_get(4)?, row.try_get(5)?, row.try_get(7)?);
        if content.len() <= COMPARE_HERE_MAX {
            return Ok(self.query.score(&Candidate { content, role, session_name }));
        }
        let (query, content) = (self.query.clone(), content.to_owned());
        let (role, session_name) = (role.to_owned(), session_name.to_owned());
        let compare = move || query.score(&Candidate { content: &content, role: &role, session_name: &session_name });
        let compared = tokio::task::spawn_blocking(compare).await;
        Ok(compared.map_err(|_| StoreError::internal("comparing a text panicked"))?)
    }
}
