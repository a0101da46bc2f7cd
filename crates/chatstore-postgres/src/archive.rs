//! Whole conversations into and out of PostgreSQL.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use chatstore_core::archive::{ArchiveIdentity, ArchiveStore, ArchivedSession, Imported};
use chatstore_core::embeddings::Embedding;
use chatstore_core::ids::{Bucket, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::limits::PAGE_BYTES_MAX;
use chatstore_core::messages::{Message, plus_tokens};
use chatstore_core::sessions::{Session, SessionSort};
use chatstore_core::store::{Scope, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::AppendForm;
use crate::PostgresStore;
use crate::columns::{bucket_value, time_column_opt};
use crate::embeddings::find_source;
use crate::embeddings::jobs::{Queued, insert_job};
use crate::embeddings::vectors::{Origin, insert_vectors, require_model};
use crate::messages::derived::MessageKey;
use crate::messages::insert::insert_messages;
use crate::messages::{Weight, message_columns, message_row};
use crate::params::params;
use crate::pool::{Db, Failure};
use crate::projects::keep_project;
use crate::search::texts::{insert_texts, read_texts};
use crate::sessions::{check_session_quota, insert_session_if_free, session_columns, session_row};

const LOCK_BY_SESSION_ID: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s where s.bucket = $1 and s.session_id = $2 for no key update"
);
/// The order is that of the index that is meant: to a planner that does not know the tables yet, each
/// looks as good.
const LOCK_BY_EXTERNAL_ID: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s
    where s.bucket = $1 and s.project_id = $2 and s.external_id = $3 and coalesce(s.user_id, '') >= coalesce($4::text, '')
        and coalesce(s.user_id, '') <= coalesce($4::text, '') and s.deleted_at is null
    order by coalesce(s.user_id, '') limit 1 for no key update"
);
const UPDATE_SESSION_IMPORTED: &str = "update sessions
    set last_seq = $3, message_count = $4, token_count = $5, updated_at = $6, last_message_at = $7, updated_hour = $8,
        active_hour = $9, stored_bytes = stored_bytes + $10
    where bucket = $1 and session_id = $2";
/// The last message, whose place is given.
const SELECT_SEAM: &str = "select role, content, version, deleted_at from messages
    where bucket = $1 and session_id = $2 and seq >= $3 order by seq limit 1";
pub(crate) const EXPORT_SESSIONS: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s where s.project_id = $1 and s.session_id > $2 order by s.session_id limit $3"
);
pub(crate) const EXPORT_SESSIONS_OF_USER: &str = concat!(
    "select ",
    session_columns!(),
    " from sessions s
    where s.bucket = $1 and (s.project_id, s.user_id) >= ($2, $3) and (s.project_id, s.user_id) <= ($2, $3)
        and s.session_id > $4
    order by s.session_id limit $5"
);
pub(crate) const EXPORT_MESSAGES: &str = concat!(
    "select ",
    message_columns!(),
    ", s.deleted_at from sessions s cross join lateral (
        select m.* from messages m where m.bucket = $1 and m.session_id = $2 and m.seq > $5 and m.seq <= $6
        order by m.seq limit $7) m
    where s.bucket = $1 and s.session_id = $2 and s.project_id = $3 and ($4::text is null or s.user_id = $4)"
);

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[
    LOCK_BY_SESSION_ID,
    LOCK_BY_EXTERNAL_ID,
    UPDATE_SESSION_IMPORTED,
    SELECT_SEAM,
    EXPORT_SESSIONS,
    EXPORT_SESSIONS_OF_USER,
    EXPORT_MESSAGES,
];

#[async_trait]
impl ArchiveStore for PostgresStore {
    async fn import_session(&self, scope: &Scope, archived: ArchivedSession) -> Result<Imported, StoreError> {
        let form = self.append_form;
        self.pool
            .write(
                (scope.clone(), archived),
                move |db, input| async move { import(&db, form, &input.0, &input.1).await },
            )
            .await
    }

    async fn export_sessions(
        &self,
        scope: &Scope,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<Vec<Session>, StoreError> {
        let after = after.map_or(Uuid::nil(), SessionId::uuid);
        self.pool
            .read((scope, after, limit), async |db, input| {
                let (scope, after, limit) = *input;
                let (project_id, limit) = (scope.project_id.uuid(), i64::from(limit));
                let rows = match scope.user_id.as_deref() {
                    Some(user_id) => {
                        let bucket = bucket_value(Bucket::of_user(scope.project_id, user_id));
                        let params = params![bucket, project_id, user_id, after, limit];
                        db.query(EXPORT_SESSIONS_OF_USER, params).await?
                    }
                    None => db.query(EXPORT_SESSIONS, params![project_id, after, limit]).await?,
                };
                rows.iter().map(session_row).collect()
            })
            .await
    }

    async fn export_messages(
        &self,
        scope: &Scope,
        session_id: SessionId,
        after_seq: i64,
        last_seq: i64,
        limit: u32,
    ) -> Result<Vec<Message>, StoreError> {
        self.pool
            .read((scope, session_id, after_seq, last_seq, limit), async |db, input| {
                let (scope, session_id, after_seq, last_seq, limit) = *input;
                let params = params![
                    bucket_value(session_id.bucket()),
                    session_id.uuid(),
                    scope.project_id.uuid(),
                    scope.user_id.as_deref(),
                    after_seq,
                    last_seq,
                    i64::from(limit),
                ];
                let mut held = 0;
                let enough = |message: &Message| {
                    held += message.bytes();
                    held >= PAGE_BYTES_MAX
                };
                let map = |row: &Row| exported_message_row(row, session_id, scope);
                Ok(db.query_until(EXPORT_MESSAGES, params, map, enough).await?.0)
            })
            .await
    }
}

/// A message of a deleted session counts as deleted, also before it is erased.
fn exported_message_row(row: &Row, session_id: SessionId, scope: &Scope) -> Result<Message, Failure> {
    let mut message = message_row(row, session_id, scope.project_id)?;
    let session_deleted_at = time_column_opt(row, 16)?;
    if message.deleted_at.is_none() {
        message.deleted_at = session_deleted_at;
    }
    blank_if_deleted(&mut message);
    Ok(message)
}

/// A tombstone says nothing.
fn blank_if_deleted(message: &mut Message) {
    if message.deleted_at.is_some() {
        message.content = String::new();
        message.payload = None;
        message.metadata = RawJson::empty_object();
        message.context = None;
    }
}

async fn import(db: &Db, form: AppendForm, scope: &Scope, archived: &ArchivedSession) -> Result<Imported, Failure> {
    let ArchivedSession { identity, session, messages, embeddings, embed } = archived;
    if scope.user_id.is_some() && session.user_id != scope.user_id {
        let detail = "is another than the caller speaks for".to_owned();
        return Err(StoreError::Invalid { pointer: "/user_id".to_owned(), detail }.into());
    }
    let (mut stored, is_new) = find_or_insert(db, scope, *identity, session).await?;
    let continues = messages.iter().any(|message| message.seq > stored.last_seq);
    if let Some(seam) = messages.iter().find(|message| message.seq == stored.last_seq)
        && continues
    {
        require_same(db, &stored, seam).await?;
    }
    // A later part of the same archive says of the session what its first part said.
    let times = |session: &Session| (session.updated_at, session.last_message_at);
    let keeps_times = is_new || times(&stored) == times(session);
    let mut fresh = Vec::new();
    for message in messages {
        if message.seq <= stored.last_seq {
            continue;
        }
        if message.seq != stored.last_seq + 1 {
            let detail = format!("leaves a gap: the next message of this session has seq {}", stored.last_seq + 1);
            return Err(StoreError::Invalid { pointer: "/messages".to_owned(), detail }.into());
        }
        let mut message = message.clone();
        (message.project_id, message.session_id) = (stored.project_id, stored.session_id);
        // Nothing comes back into a deleted session: its erasing is over.
        message.deleted_at = message.deleted_at.or(stored.deleted_at);
        blank_if_deleted(&mut message);
        count(&mut stored, &message, keeps_times);
        fresh.push(message);
    }
    let live = || fresh.iter().filter(|message| message.deleted_at.is_none());
    if live().next().is_some() {
        scope.quotas.check_messages(stored.message_count.unsigned_abs())?;
    }
    insert_messages(db, form, stored.session_id, &fresh).await?;
    if !fresh.is_empty() {
        insert_words(db, &fresh).await?;
        insert_embeddings(db, &stored, &fresh, embeddings).await?;
        if *embed {
            queue(db, &fresh, embeddings).await?;
        }
        save_counters(db, &stored, live().map(|message| Weight::of(message).bytes).sum()).await?;
    }
    Ok(Imported { session: is_new, messages: fresh.len() as u64 })
}

/// Stores the words of new messages.
async fn insert_words(db: &Db, messages: &[Message]) -> Result<(), Failure> {
    let texts =
        messages.iter().map(|message| (message.project_id, message.session_id.bucket(), message.content.as_str()));
    let words = read_texts(texts.collect()).await?;
    let keys: Vec<_> = messages.iter().map(MessageKey::from).collect();
    insert_texts(db, &keys, &words).await
}

/// Queues new messages, but for those that came with vectors of the source's model.
async fn queue(db: &Db, messages: &[Message], embeddings: &[Embedding]) -> Result<(), Failure> {
    let source = find_source(db).await?;
    let of_source = |embedding: &&Embedding| source.as_ref().is_some_and(|source| source.model == embedding.model);
    let done: HashSet<_> = embeddings.iter().filter(of_source).map(|embedding| embedding.message_id).collect();
    for message in messages.iter().filter(|message| !message.content.is_empty() && !done.contains(&message.message_id))
    {
        insert_job(db, message.into(), message.version, Queued::Backfill).await?;
    }
    Ok(())
}

/// Stores the vectors that came with new messages.
async fn insert_embeddings(
    db: &Db,
    session: &Session,
    messages: &[Message],
    embeddings: &[Embedding],
) -> Result<(), Failure> {
    let live = messages.iter().filter(|message| message.deleted_at.is_none());
    let keys: HashMap<_, _> = live.map(|message| (message.message_id, MessageKey::from(message))).collect();
    for (n, Embedding { message_id, model, vectors }) in embeddings.iter().enumerate() {
        let (Some(key), Some(first)) = (keys.get(message_id), vectors.first()) else { continue };
        let model_id = require_model(db, key.project_id, model, first).await?;
        let model_id = model_id.map_err(|fault| fault.at(format!("/embeddings/{n}")))?;
        insert_vectors(db, *key, session.user_id.as_deref(), (model_id, Origin::Brought), vectors).await?;
    }
    Ok(())
}

/// The session as it stands here, locked, and whether it is new.
async fn find_or_insert(
    db: &Db,
    scope: &Scope,
    identity: ArchiveIdentity,
    session: &Session,
) -> Result<(Session, bool), Failure> {
    if let Some(found) = find(db, scope, identity, session).await? {
        return Ok((found, false));
    }
    let mut fresh = session.clone();
    fresh.project_id = scope.project_id;
    if fresh.deleted_at.is_some() {
        fresh.session_name = String::new();
        fresh.metadata = RawJson::empty_object();
    }
    (fresh.last_seq, fresh.message_count, fresh.token_count) = (0, 0, None);
    if fresh.deleted_at.is_none() {
        check_session_quota(db, &scope.quotas, &fresh).await?;
    }
    if insert_session_if_free(db, &fresh).await? {
        return Ok((fresh, true));
    }
    // It came in meanwhile, from elsewhere; or its project is deleted, or another session has its external id.
    if let Some(found) = find(db, scope, identity, session).await? {
        return Ok((found, false));
    }
    keep_project(db, scope.project_id).await?;
    Err(StoreError::Conflict { field: "external_id" }.into())
}

/// Refuses to continue a session whose last message is not the one that stands there in the
/// archive: it was continued here, and what follows in the archive would be lost or misplaced.
async fn require_same(db: &Db, session: &Session, seam: &Message) -> Result<(), Failure> {
    let params = params![bucket_value(session.session_id.bucket()), session.session_id.uuid(), seam.seq];
    let row = db.query_opt(SELECT_SEAM, params).await?;
    let row = row.ok_or_else(|| StoreError::internal("the last message of a session is missing"))?;
    let untouched = row.try_get::<_, i64>(2)? == 1 && row.try_get::<_, Option<i64>>(3)?.is_none();
    let same = row.try_get::<_, &str>(0)? == seam.role && row.try_get::<_, &str>(1)? == seam.content;
    if same || !untouched {
        return Ok(());
    }
    let detail = format!("go on from another message {} than the one that stands here", seam.seq);
    Err(StoreError::Invalid { pointer: "/messages".to_owned(), detail }.into())
}

/// Moves the counters, and the times unless the session keeps those it came with.
fn count(session: &mut Session, message: &Message, keeps_times: bool) {
    session.last_seq = message.seq;
    if message.deleted_at.is_none() {
        session.message_count += 1;
        session.token_count = plus_tokens(session.token_count, message.token_count);
    } else {
        // As after a deletion: a count was given, and nothing of it is left.
        session.token_count = plus_tokens(session.token_count, message.token_count.map(|_| 0));
    }
    if !keeps_times {
        session.updated_at = session.updated_at.max(message.updated_at);
        session.last_message_at = session.last_message_at.max(Some(message.created_at));
    }
}

async fn save_counters(db: &Db, session: &Session, more_bytes: i64) -> Result<(), Failure> {
    let params = params![
        bucket_value(session.session_id.bucket()),
        session.session_id.uuid(),
        session.last_seq,
        session.message_count,
        session.token_count,
        session.updated_at.as_micros(),
        session.last_message_at.map(|at| at.as_micros()),
        session.updated_at.hour(),
        session.sorted_by(SessionSort::LastMessageAt).hour(),
        more_bytes,
    ];
    db.execute(UPDATE_SESSION_IMPORTED, params).await?;
    Ok(())
}

async fn find(
    db: &Db,
    scope: &Scope,
    identity: ArchiveIdentity,
    session: &Session,
) -> Result<Option<Session>, Failure> {
    // Its own id first: it also finds the tombstone of a session that was deleted since.
    let own = params![bucket_value(session.session_id.bucket()), session.session_id.uuid()];
    let row = match (db.query_opt(LOCK_BY_SESSION_ID, own).await?, identity) {
        (None, ArchiveIdentity::ExternalId) => {
            let home = scope.bucket(session.user_id.as_deref(), session.external_id.as_deref(), [0; 2]);
            let params = params![
                bucket_value(home),
                scope.project_id.uuid(),
                session.external_id.as_deref(),
                session.user_id.as_deref()
            ];
            db.query_opt(LOCK_BY_EXTERNAL_ID, params).await?
        }
        (row, _) => row,
    };
    match row.as_ref().map(session_row).transpose()? {
        Some(found) if found.project_id != scope.project_id || found.user_id != session.user_id => {
            Err(StoreError::Conflict { field: "session_id" }.into())
        }
        found => Ok(found),
    }
}
