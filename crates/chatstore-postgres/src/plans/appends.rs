//! What an append costs: its batch walks keys, and moves its session's row without touching an index.

use std::time::{Duration, Instant};

use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::conformance::join_all;
use chatstore_core::ids::{Bucket, ProjectId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{MessageStore as _, NewMessage};
use chatstore_core::sessions::{NewSession, SessionStore as _};
use chatstore_core::store::{Scope, Store as _};
use tokio_postgres::Client;
use uuid::Uuid;

use super::explain::Planner;
use super::rows::Rows;
use super::{fault_of_keys, owner};
use crate::columns::bucket_value;
use crate::messages::append::{APPEND_BATCH, APPEND_BATCH_CHECKED, APPEND_BATCH_CLAIMED};
use crate::params::params;
use crate::testing::{Cluster, Settings, TestDatabase, programs};
use crate::{PostgresOptions, PostgresStore};

/// A batch of appends, each to another session.
pub(super) async fn check_batch(planner: &Planner, rows: &Rows, faults: &mut Vec<String>) {
    let groups = &rows.sessions[..64];
    let count = groups.len();
    let texts = || vec![""; count];
    let nothing = || vec![None::<&str>; count];
    let now_us = || vec![groups[0].created_at; count];
    let params = params![
        groups.iter().map(|group| bucket_value(group.session_id.bucket())).collect::<Vec<_>>(),
        groups.iter().map(|group| group.session_id.uuid()).collect::<Vec<_>>(),
        groups.iter().map(|group| group.project_id.uuid()).collect::<Vec<_>>(),
        nothing(),
        vec![1_i64; count],
        vec![Some(i64::MAX); count],
        vec![None::<i64>; count],
        vec![1_i64; count],
        now_us(),
        vec![0_i64; count],
        (1_i32..).take(count).collect::<Vec<_>>(),
        vec![1_i64; count],
        groups.iter().map(|group| group.session_id.uuid()).collect::<Vec<_>>(),
        vec![None::<Uuid>; count],
        texts(),
        texts(),
        texts(),
        texts(),
        nothing(),
        texts(),
        nothing(),
        nothing(),
        vec![None::<i64>; count],
        now_us(),
        texts(),
        vec![true; count],
    ];
    let claim_ids: Vec<[u8; 32]> = (0..count).map(|n| [n as u8; 32]).collect();
    let digests = || claim_ids.iter().map(<[u8; 32]>::as_slice).collect::<Vec<_>>();
    let group_nos = || (1_i32..).take(count).collect::<Vec<_>>();
    let checks = params![
        group_nos(),
        vec!["external 10"; count],
        group_nos(),
        groups.iter().map(|group| group.session_id.uuid()).collect::<Vec<_>>(),
        vec![false; count],
    ];
    let claims = params![
        group_nos(),
        digests(),
        digests(),
        vec![true; count],
        vec![1_i64; count],
        vec![1_i64; count],
        now_us(),
        now_us(),
    ];
    for (sql, params) in [
        (APPEND_BATCH, params.to_vec()),
        (APPEND_BATCH_CHECKED, [&params[..], checks].concat()),
        (APPEND_BATCH_CLAIMED, [&params[..], checks, claims].concat()),
    ] {
        let plan = planner.explain(sql, &params).await;
        faults.extend(fault_of_keys(sql, &plan).map(|fault| format!("{:?}: {fault}", planner.planning)));
    }
}

#[tokio::test]
async fn an_append_is_a_heap_only_update() {
    const SESSIONS: i64 = 200;
    const ROUNDS: i64 = 20;
    // A long transaction anywhere on a server keeps old versions, and so the room they take.
    let cluster = Cluster::start(&programs(), Settings::fast()).expect("a server can be started");
    let database = TestDatabase::create_on(&cluster.url("postgres")).await;
    let store = PostgresStore::open(&PostgresOptions::new(database.url())).await.expect("a fresh database");
    let noon = Timestamp::parse("2026-01-15T12:00:00Z").expect("a time");
    // Well within an hour: the hours are indexed.
    let (ctx, scope) = (Ctx::fixed(noon, 1_000, 7), Scope::project(ProjectId::DEFAULT));
    let create = |n: i64| {
        let created_at = ctx.now();
        let new = NewSession {
            session_id: ctx.new_session_id(created_at, Bucket::of_user(scope.project_id, &format!("user {n}"))),
            user_id: Some(format!("user {n}")),
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: Some("the one".to_owned()),
            created_at,
        };
        store.create_session(&scope, new, Vec::new(), None)
    };
    let sessions = join_all((0..SESSIONS).map(create)).await;
    let ids: Vec<_> = sessions.into_iter().map(|session| session.expect("it can be stored").value.session_id).collect();
    for _ in 0..ROUNDS {
        let append = |session_id| {
            let new = NewMessage::text(ctx.new_message_id(ctx.now(), session_id), "user", "some words");
            store.append_messages(&scope, session_id, vec![new], ctx.now(), None)
        };
        for stored in join_all(ids.iter().copied().map(append)).await {
            stored.expect("it can be appended");
        }
    }
    store.close().await;
    drop(store);
    let (updates, heap_only) = updates_of_sessions(&owner(&database).await, SESSIONS * ROUNDS).await;
    assert!(heap_only >= 0.95 * updates, "{heap_only} of {updates} updates are heap-only");
}

/// Updates of sessions, and how many of them were heap-only, once the server has counted all
/// messages: it does so when a connection has ended.
async fn updates_of_sessions(owner: &Client, messages: i64) -> (f64, f64) {
    const COUNTED: &str = "select s.n_tup_upd::float8, s.n_tup_hot_upd::float8
        from pg_stat_user_tables s, pg_stat_user_tables m
        where s.relname = 'sessions' and m.relname = 'messages' and m.n_tup_ins = $1";
    let began = Instant::now();
    loop {
        let row = owner.query_opt(COUNTED, &[&messages]).await.expect("statistics can be read");
        if let Some(row) = row {
            return (row.get(0), row.get(1));
        }
        assert!(began.elapsed() < Duration::from_secs(20), "the server has not counted {messages} messages");
    }
}
