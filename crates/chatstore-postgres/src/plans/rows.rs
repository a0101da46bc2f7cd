//! Rows for the plans: sessions of users and projects of very different sizes, and their messages,
//! which stand far from each other as in a table that many sessions write.

use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::ids::{Bucket, ProjectId, SessionId};
use chatstore_core::page::SessionPosition;
use chatstore_core::sessions::SessionSort;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::columns::bucket_value;
use crate::params::params;
use crate::sessions::metadata::pair_digest;

/// The user with a tenth of all sessions.
pub(super) const ADA: &str = "ada";
/// A pair in the metadata of every session, and one that few have.
pub(super) const COMMON: (&str, &str) = ("app", "chat");
pub(super) const RARE: (&str, &str) = ("ticket", "7");
/// Sessions have up to this many messages, but for the longest.
const MESSAGES_MAX: i64 = 97;
const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3_600 * SECOND_US;

const INSERT_PROJECTS: &str = "insert into projects (project_id, name, created_at, updated_at, deleted_at, erased_at)
    select project_id, 'project ' || n, n, n, null, null from unnest($1::uuid[]) with ordinality p(project_id, n)
    union all select gen_random_uuid(), 'small project ' || n, n, n, case when n % 10 = 0 then n end,
        case when n % 20 = 0 then n end from generate_series(1, 2000) n";
/// Most are of one project, the others of a hundred.
const INSERT_API_KEYS: &str = "insert into api_keys (key_id, project_id, name, digest, scopes, created_at, updated_at)
    select 'key' || n, case when n % 5 = 0 then p.ids[1 + n % 100] else $1 end, '', sha256(''), 'read', n, n
    from generate_series(1, 5000) n, (select array(select project_id from projects limit 100) ids) p";
/// One actor and one action are in most of them, others in few.
const INSERT_AUDIT_EVENTS: &str = "insert into audit_events
    (event_id, project_id, created_at, actor, actor_id, action, outcome)
    select lpad(to_hex(n), 32, '0')::uuid, case when n % 3 = 0 then gen_random_uuid() else $1 end, n, 'api_key',
        case when n % 2 = 0 then 'key1' when n % 11 > 0 then 'key' || n % 5000 end,
        case when n % 4 > 0 then 'delete_session' else 'action ' || n % 100 end, 'ok'
    from generate_series(1, 50000) n";
const INSERT_SESSIONS: &str = "insert into sessions
    (bucket, session_id, project_id, user_id, session_name, is_favorite, metadata, external_id, last_seq,
     message_count, version, created_at, updated_at, last_message_at, updated_hour, active_hour)
    select bucket, session_id, project_id, user_id, 'a session', n % 100 = 0, '{}',
        case when n % 2 = 0 then 'external ' || n end, last_seq, last_seq, 1, created_at, updated_at,
        case when last_seq > 0 then updated_at end, updated_at / 3600000000, active_at / 3600000000
    from unnest($1::smallint[], $2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
        $8::bigint[]) with ordinality
        as s(bucket, session_id, project_id, user_id, last_seq, created_at, updated_at, active_at, n)";
const INSERT_METADATA: &str = "insert into session_metadata (bucket, session_id, project_id, pair_digest)
    select bucket, session_id, project_id, pair_digest
    from unnest($1::uuid[], $2::bytea[]) p(id, pair_digest) join sessions on session_id = id";
const INSERT_ERASURES: &str = "insert into session_erasures (bucket, session_id, erased_seq)
    select bucket, session_id, 0 from sessions order by session_id limit 1000";
/// One message of each session after the other, then the rest of the longest.
const INSERT_MESSAGES: &str = "insert into messages
    (bucket, session_id, seq, message_id, role, kind, status, content, metadata, external_id, version, created_at,
     updated_at)
    select bucket, session_id, seq, (left(md5(session_id::text || seq), 28) || right(session_id::text, 4))::uuid,
        case seq % 2 when 0 then 'assistant' else 'user' end, 'message', 'completed', 'some words of a message', '{}',
        case when seq % 10 = 0 then 'external ' || seq end, 1, created_at + seq, created_at + seq
    from generate_series(1, $1) seq
        cross join lateral (select * from sessions where last_seq >= seq offset 0) s
    union all
    select bucket, session_id, seq, (left(md5(session_id::text || seq), 28) || right(session_id::text, 4))::uuid,
        'user', 'message', 'completed', 'some words of a message', '{}', null, 1, created_at + seq, created_at + seq
    from sessions, generate_series($1 + 1, last_seq) seq where last_seq > $1";

/// A word that few messages have, one that all have, and both in the lexemes of a user and a project.
const INSERT_TEXTS: &str = "insert into message_texts (bucket, session_id, seq, project_id, created_at, lexemes)
    select m.bucket, m.session_id, m.seq, s.project_id, m.created_at, array_to_tsvector(array[
        'word·' || s.user_id, case when m.created_at % 1000 = 0 then 'rare·' || s.user_id else 'other·' || s.user_id end])
    from messages m join sessions s using (bucket, session_id) where s.user_id is not null";
const INSERT_MODELS: &str = "insert into embedding_models (project_id, model_id, model, dimensions)
    select project_id, project_id, 'model of ' || name, 3 from projects";
const INSERT_VECTORS: &str = "insert into message_embeddings
    (bucket, session_id, seq, model_id, part, project_id, user_id, message_id, created_at, dimensions,
        is_made, embedding)
    select m.bucket, m.session_id, m.seq, s.project_id, 0, s.project_id, s.user_id, m.message_id, m.created_at, 3, true,
        array[1, m.created_at % 1009, m.created_at % 997]::real[]::vector
    from messages m join sessions s using (bucket, session_id) where m.seq % 10 = 0";
const INSERT_JOBS: &str = "insert into embedding_jobs
    (bucket, session_id, seq, message_id, project_id, version, attempts, due_at, queued_at, is_backfill, parked_reason)
    select m.bucket, m.session_id, m.seq, m.message_id, s.project_id, 1, 0, m.created_at, m.created_at,
        m.created_at % 3 = 0, case when m.created_at % 100 = 0 then 'a reason' end
    from messages m join sessions s using (bucket, session_id) where m.seq % 20 = 1";
const INSERT_RECORDS: &str = "insert into idempotency_records
    (bucket, project_id, claim_id, place, fingerprint, target, places, retry, created_at, expires_at)
    select m.bucket, s.project_id, sha256(uuid_send(m.message_id)), case when m.seq % 3 = 0 then m.seq else 0 end,
        sha256(''), m.session_id::text, m.seq::text, 0, m.created_at, m.created_at + 86400000000
    from messages m join sessions s using (bucket, session_id) where m.seq % 10 = 3";

/// Where a session stands.
#[derive(Clone)]
pub(super) struct SessionKey {
    pub(super) session_id: SessionId,
    pub(super) project_id: ProjectId,
    pub(super) user_id: Option<String>,
    pub(super) last_seq: i64,
    pub(super) created_at: i64,
    updated_at: i64,
    active_at: i64,
}

/// The sessions of a database, before and after they are stored there.
pub(super) struct Rows {
    pub(super) sessions: Vec<SessionKey>,
    others: [ProjectId; 2],
}

impl Rows {
    /// `count` sessions, the first of which has `longest` messages.
    pub(super) fn new(count: i64, longest: i64) -> Self {
        let start = Timestamp::parse("2026-01-01T00:00:00Z").expect("a time");
        let ctx = Ctx::fixed(start, 0, 7);
        let others = [ctx.new_project_id(start), ctx.new_project_id(start)];
        let session = |n: i64| {
            let project_id = match n % 20 {
                17 | 18 => others[0],
                19 => others[1],
                _ => ProjectId::DEFAULT,
            };
            let user_id = match n % 12 {
                0 => Some(ADA.to_owned()),
                1 => None,
                _ => Some(format!("user {}", n % 307)),
            };
            let bucket = match &user_id {
                Some(user_id) => Bucket::of_user(project_id, user_id),
                None => Bucket::from(u16::from_be_bytes(ctx.random())),
            };
            let created_at = start.plus_micros(n * 130 * SECOND_US);
            let last_seq = if n == 0 { longest } else { n * 31 % MESSAGES_MAX };
            // The first and the last to be created are not the first and the last to be active.
            let updated_at = created_at.as_micros() + n * 7_919 % 1_000 * HOUR_US;
            let active_at = if last_seq > 0 { updated_at } else { created_at.as_micros() };
            let session_id = ctx.new_session_id(created_at, bucket);
            let created_at = created_at.as_micros();
            SessionKey { session_id, project_id, user_id, last_seq, created_at, updated_at, active_at }
        };
        Self { sessions: (0..count).map(session).collect(), others }
    }

    pub(super) fn messages(&self) -> i64 {
        self.sessions.iter().map(|session| session.last_seq).sum()
    }

    pub(super) fn sessions_of_ada(&self) -> usize {
        self.sessions.iter().filter(|session| session.user_id.as_deref() == Some(ADA)).count()
    }

    /// The session with the most messages.
    pub(super) fn longest(&self) -> &SessionKey {
        &self.sessions[0]
    }

    /// The session in the middle of the list of the default project, or of Ada's sessions there.
    pub(super) fn middle(&self, of_ada: bool, sort: SessionSort) -> SessionPosition {
        let listed = |session: &&SessionKey| {
            session.project_id == ProjectId::DEFAULT && (!of_ada || session.user_id.as_deref() == Some(ADA))
        };
        let sorted_by = |session: &SessionKey| match sort {
            SessionSort::CreatedAt => session.created_at,
            SessionSort::UpdatedAt => session.updated_at,
            SessionSort::LastMessageAt => session.active_at,
        };
        let mut listed: Vec<_> = self.sessions.iter().filter(listed).map(|s| (sorted_by(s), s.session_id)).collect();
        listed.sort_unstable();
        let (sorted_by, session_id) = listed[listed.len() / 2];
        SessionPosition { sorted_by: Timestamp::from_micros(sorted_by).expect("a time"), session_id }
    }

    /// Stores them and their messages. The indexes of messages are made last if `quickly`: that
    /// takes half the time, and plans that were made before are made anew.
    pub(super) async fn store(&self, owner: &Client, quickly: bool) {
        let list = |of: fn(&SessionKey) -> i64| self.sessions.iter().map(of).collect::<Vec<_>>();
        let ids: Vec<Uuid> = self.sessions.iter().map(|session| session.session_id.uuid()).collect();
        execute(owner, INSERT_PROJECTS, params![self.others.map(ProjectId::uuid).to_vec()]).await;
        execute(owner, INSERT_API_KEYS, params![ProjectId::DEFAULT.uuid()]).await;
        execute(owner, INSERT_AUDIT_EVENTS, params![ProjectId::DEFAULT.uuid()]).await;
        let sessions = params![
            self.sessions.iter().map(|session| bucket_value(session.session_id.bucket())).collect::<Vec<_>>(),
            ids,
            self.sessions.iter().map(|session| session.project_id.uuid()).collect::<Vec<_>>(),
            self.sessions.iter().map(|session| session.user_id.clone()).collect::<Vec<_>>(),
            list(|session| session.last_seq),
            list(|session| session.created_at),
            list(|session| session.updated_at),
            list(|session| session.active_at),
        ];
        execute(owner, INSERT_SESSIONS, sessions).await;
        let common = vec![pair_digest(COMMON.0, COMMON.1); ids.len()];
        let rare = (0..ids.len()).map(|n| pair_digest(RARE.0, &(n % 500).to_string())).collect();
        for digests in [common, rare] {
            let digests: Vec<_> = digests.iter().map(<[u8; 32]>::as_slice).collect();
            execute(owner, INSERT_METADATA, params![ids, digests]).await;
        }
        execute(owner, INSERT_ERASURES, &[]).await;
        let indexes = if quickly { drop_indexes(owner).await } else { Vec::new() };
        execute(owner, INSERT_MESSAGES, params![MESSAGES_MAX]).await;
        for sql in [INSERT_MODELS, INSERT_VECTORS, INSERT_JOBS, INSERT_TEXTS, INSERT_RECORDS] {
            execute(owner, sql, &[]).await;
        }
        for index in indexes {
            owner.batch_execute(&index).await.expect("an index can be made again");
        }
    }
}

async fn execute(client: &Client, sql: &str, params: &[crate::params::Param<'_>]) {
    client.execute_typed(sql, params).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Drops the indexes of messages and of their words, and tells how they are made.
async fn drop_indexes(owner: &Client) -> Vec<String> {
    let sql = "select indexdef from pg_indexes
        where tablename = 'messages' or indexname in ('message_texts_lexemes', 'message_texts_pkey')";
    let rows = owner.query(sql, &[]).await;
    let definitions = rows.expect("the catalogue can be read").iter().map(|row| row.get(0)).collect();
    let drop = "alter table messages drop constraint messages_pkey; \
        alter table message_texts drop constraint message_texts_pkey; \
        drop index messages_message_id, messages_external_id, message_texts_lexemes; set maintenance_work_mem = '256MB'";
    owner.batch_execute(drop).await.expect("the owner may drop indexes");
    definitions
}
