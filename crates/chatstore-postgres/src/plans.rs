//! Proof of the plans: every statement fits the schema, and walks keys at a million messages, in
//! tables that grew after it was prepared, and behind a pooler.

mod access_lists;
mod appends;
mod explain;
mod rows;
mod searches;
mod session_lists;

use chatstore_core::ids::{Bucket, ProjectId};
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

use crate::columns::bucket_value;
use crate::embeddings::source::{DELETE_VECTORS_OF_RETIRED, HAS_VECTORS};
use crate::params::params;
use crate::testing::TestDatabase;
use crate::{api_keys, archive, audit, embeddings, idempotency, messages, projects, search, sessions};
use access_lists::{OF_ACCESS, check_access_lists};
use appends::check_batch;
use explain::{Explained, Node, Planner, Planning};
use rows::{ADA, Rows};
use searches::check_searches;
use session_lists::{Form, every_form};

/// Every statement but those of session lists, which are made from pieces.
fn statements() -> Vec<&'static str> {
    [
        sessions::STATEMENTS,
        sessions::metadata::STATEMENTS,
        sessions::list::STATEMENTS,
        sessions::erase::STATEMENTS,
        messages::STATEMENTS,
        messages::append::STATEMENTS,
        messages::append::alone::STATEMENTS,
        messages::append::fresh::STATEMENTS,
        messages::append::named::STATEMENTS,
        idempotency::STATEMENTS,
        messages::insert::STATEMENTS,
        api_keys::STATEMENTS,
        projects::STATEMENTS,
        audit::STATEMENTS,
        archive::STATEMENTS,
        search::STATEMENTS,
        search::texts::STATEMENTS,
        search::reindex::STATEMENTS,
        search::hnsw::STATEMENTS,
        embeddings::STATEMENTS,
        embeddings::vectors::STATEMENTS,
        embeddings::jobs::STATEMENTS,
        embeddings::source::STATEMENTS,
        crate::STATEMENTS,
    ]
    .concat()
}

/// Statements that list a small table, or ask whether it is empty: nothing that a request does.
const OF_WHOLE_TABLES: [&str; 10] = [
    "from installation",
    "exists (select 1 from api_keys)",
    "select k.key_id from api_keys k where k.revoked_at is null",
    "text_index",
    "embedding_source",
    "retired_embedding_models",
    "distinct d.dimensions from embedding_models",
    "from pg_catalog.",
    "reindexes",
    "is_backfill = true, queued_at = null, parked_reason = null",
];
/// A look at the queue, which is short as a rule.
const OF_QUEUE: [&str; 1] = ["from embedding_jobs where is_backfill and"];
/// Statements that walk a project, or take the first row of an index.
const OF_NO_BUCKET: [&str; 5] = [
    "where s.project_id = $1 and s.session_id >",
    "where s.project_id = $1 and s.deleted_at is null",
    "from sessions where project_id = $1 and deleted_at is null",
    "skip locked",
    "ctid",
];

/// A connection of the role that owns the database.
async fn owner(database: &TestDatabase) -> Client {
    let (client, connection) = tokio_postgres::connect(&database.owner_url(), NoTls).await.expect("a server answers");
    tokio::spawn(connection);
    client
}

fn assert_none(faults: &[String]) {
    assert!(
        faults.is_empty(),
        "{} faults, the first of them:\n{}",
        faults.len(),
        faults[..faults.len().min(12)].join("\n")
    );
}

#[tokio::test]
async fn every_statement_fits_the_schema() {
    let database = TestDatabase::create().await;
    let client = owner(&database).await;
    for sql in statements() {
        client.prepare(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    for Form { sql, .. } in every_form(&Rows::new(20, 1)) {
        client.prepare(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

#[tokio::test]
async fn statements_walk_keys_among_a_million_messages() {
    let database = TestDatabase::create().await;
    let rows = Rows::new(24_000, 100_000);
    assert!(rows.messages() > 1_000_000);
    let owner = owner(&database).await;
    rows.store(&owner, true).await;
    owner.batch_execute("analyze").await.expect("the owner may analyze");
    let mut faults = Vec::new();
    for planning in [Planning::Ours, Planning::Pooled] {
        let planner = Planner::connect(&database.url(), planning).await;
        check_session_lists(&planner, &rows, &mut faults).await;
        check_message_lists(&planner, &rows, &mut faults).await;
        check_exports(&planner, &rows, &mut faults).await;
        check_access_lists(&planner, &rows, &mut faults).await;
        // A planner that thinks they are few sorts one user's sessions, one that thinks a model's
        // vectors are many looks for one of them anywhere, and one that thinks a project's jobs are
        // most of all reads all.
        let except: &[_] = match planning {
            Planning::Pooled => {
                &[archive::EXPORT_SESSIONS_OF_USER, HAS_VECTORS, DELETE_VECTORS_OF_RETIRED, embeddings::COUNT_JOBS]
            }
            Planning::Ours | Planning::Once => &[],
        };
        check_keys(&planner, except, &mut faults).await;
        check_batch(&planner, &rows, &mut faults).await;
        check_purge_of_records(&planner, &mut faults).await;
    }
    for planning in [Planning::Once, Planning::Pooled] {
        check_searches(&Planner::connect(&database.url(), planning).await, &rows, &mut faults).await;
    }
    assert_none(&faults);
}

#[tokio::test]
async fn plans_that_were_made_for_empty_tables_still_walk_keys_when_these_have_grown() {
    let database = TestDatabase::create().await;
    let owner = owner(&database).await;
    for table in ["sessions", "session_metadata", "messages"] {
        let sql = format!("alter table {table} set (autovacuum_enabled = false)");
        owner.batch_execute(&sql).await.expect("the owner may change its tables");
    }
    let rows = Rows::new(2_000, 1_000);
    let forms = every_form(&rows);
    let ours = Planner::connect(&database.url(), Planning::Ours).await;
    let mut prepared = Vec::new();
    for (n, form) in forms.iter().enumerate() {
        let statement = ours.prepare(format!("form_{n}"), &form.sql, &form.params()).await;
        ours.explain_prepared(&statement).await;
        prepared.push((form, statement));
    }
    let mut faults = Vec::new();
    check_access_lists(&ours, &rows, &mut faults).await;
    // Erasing has time until the tables are analyzed.
    check_keys(&ours, &[sessions::erase::ERASE_MESSAGES], &mut faults).await;
    rows.store(&owner, false).await;
    for (form, statement) in &prepared {
        faults.extend(form.fault(ours.planning, &ours.explain_prepared(statement).await));
    }
    let pooled = Planner::connect(&database.url(), Planning::Pooled).await;
    for form in &forms {
        faults.extend(form.fault(pooled.planning, &pooled.explain(&form.sql, &form.params()).await));
    }
    check_message_lists(&pooled, &rows, &mut faults).await;
    assert_none(&faults);
}

async fn check_session_lists(planner: &Planner, rows: &Rows, faults: &mut Vec<String>) {
    for form in every_form(rows) {
        let plan = match form.is_unfiltered {
            true => planner.run(&form.sql, &form.params()).await,
            false => planner.explain(&form.sql, &form.params()).await,
        };
        faults.extend(form.fault(planner.planning, &plan));
        if let Some(pages_max) = form.pages_max(rows) {
            faults.extend(fault_of_pages(planner, &form.name, &plan, pages_max));
        }
    }
}

fn fault_of_pages(planner: &Planner, name: &str, plan: &Explained, pages_max: u64) -> Option<String> {
    let (planning, pages) = (planner.planning, plan.pages());
    (pages > pages_max)
        .then(|| format!("{planning:?}: {name}\n  touches {pages} pages, more than {pages_max}: {}", plan.shown()))
}

/// Whether the rows that a step reads are named by a key of their table.
fn walks_key(node: &Node<'_>) -> bool {
    let by = |columns: &[&str]| columns.iter().all(|column| node.walks_by(column));
    match node.table() {
        "messages" => by(&["message_id"]) || by(&["session_id", "seq"]) || by(&["session_id", "external_id"]),
        "sessions" => by(&["session_id"]) || by(&["external_id"]) || by(&["bucket", "user_id"]),
        "session_metadata" => by(&["session_id"]) || by(&["pair_digest"]),
        "session_erasures" => by(&["session_id"]),
        "message_embeddings" => by(&["session_id"]) || by(&["model_id"]),
        "message_texts" => by(&["session_id"]),
        "embedding_jobs" => by(&["session_id"]) || by(&["project_id"]),
        "embedding_models" => by(&["model_id"]) || by(&["model"]) || by(&["project_id"]),
        "api_keys" => by(&["key_id"]) || by(&["project_id"]),
        "idempotency_records" => by(&["claim_id"]),
        "projects" => by(&["project_id"]) || by(&["name"]),
        _ => false,
    }
}

/// What is wrong with the plan of a statement that names its rows by keys.
fn fault_of_keys(sql: &str, plan: &Explained) -> Option<String> {
    let names_rows = !OF_NO_BUCKET.iter().any(|part| sql.contains(part));
    let fault = plan.nodes().iter().find_map(|node| {
        if node.kind() == "Seq Scan" {
            Some("reads a whole table")
        } else if node.kind().contains("Sort") && node.is_above_table() {
            Some("sorts")
        } else if names_rows && node.reads() && !walks_key(node) {
            Some("does not walk by a key")
        } else {
            None
        }
    })?;
    Some(format!("{sql}\n  {fault}: {}", plan.shown()))
}

async fn check_keys(planner: &Planner, except: &[&str], faults: &mut Vec<String>) {
    for sql in statements() {
        let parts = OF_WHOLE_TABLES.iter().chain(&OF_QUEUE).chain(&OF_ACCESS);
        if parts.into_iter().any(|part| sql.contains(part)) || except.contains(&sql) {
            continue;
        }
        let plan = planner.explain_generic(sql).await;
        faults.extend(fault_of_keys(sql, &plan).map(|fault| format!("{:?}: {fault}", planner.planning)));
    }
}

/// The purge of records takes the first of those that have expired, and no more than it was told.
async fn check_purge_of_records(planner: &Planner, faults: &mut Vec<String>) {
    let plan = planner.explain(idempotency::DELETE_EXPIRED, params![i64::MAX, 250_i64]).await;
    let nodes = plan.nodes();
    let has = |kind: &str| nodes.iter().any(|node| node.kind() == kind);
    let mut read = nodes.iter().filter(|node| node.reads());
    let walks = read.all(|node| node.kind() == "Tid Scan" || node.walks_by("expires_at"));
    if !walks || !has("Tid Scan") || !has("Limit") || has("Sort") {
        faults.push(format!(
            "{:?}: the purge of records\n  is no stretch of its index: {}",
            planner.planning,
            plan.shown()
        ));
    }
}

/// Pages of 50 messages, at every depth of the longest session and in another.
async fn check_message_lists(planner: &Planner, rows: &Rows, faults: &mut Vec<String>) {
    let ordinary = rows.sessions.iter().find(|session| session.last_seq > 80).expect("a session with many messages");
    let longest = rows.longest();
    let depths = [(0, i64::MAX), (longest.last_seq / 2, i64::MAX), (longest.last_seq - 60, i64::MAX)];
    let depths = depths.into_iter().chain([(0, longest.last_seq / 2), (0, 60)]);
    let places = depths.map(|(after, before)| (longest, after, before)).chain([(ordinary, 0, i64::MAX)]);
    for (session, after, before) in places {
        for sql in messages::STATEMENTS.iter().filter(|sql| sql.contains("left join lateral")) {
            for (user_id, role) in [(None, None), (session.user_id.as_deref(), None), (None, Some("user"))] {
                let params = params![
                    bucket_value(session.session_id.bucket()),
                    session.session_id.uuid(),
                    session.project_id.uuid(),
                    user_id,
                    after,
                    before,
                    role,
                    51_i64,
                    0_i64,
                ];
                let plan = planner.run(sql, params).await;
                faults.extend(fault_of_keys(sql, &plan).map(|fault| format!("{:?}: {fault}", planner.planning)));
                // Every second message has the role.
                let pages_max = if role.is_some() { 130 } else { 80 };
                faults.extend(fault_of_pages(planner, sql, &plan, pages_max));
            }
        }
    }
}

async fn check_exports(planner: &Planner, rows: &Rows, faults: &mut Vec<String>) {
    let (project_id, after) = (ProjectId::DEFAULT.uuid(), rows.sessions[rows.sessions.len() / 2].session_id.uuid());
    let page = planner.run(archive::EXPORT_SESSIONS, params![project_id, after, 100_i64]).await;
    faults.extend(fault_of_keys(archive::EXPORT_SESSIONS, &page));
    faults.extend(fault_of_pages(planner, archive::EXPORT_SESSIONS, &page, 120));
    let bucket = bucket_value(Bucket::of_user(ProjectId::DEFAULT, ADA));
    let of_user = params![bucket, project_id, ADA, Uuid::nil(), 100_i64];
    let page = planner.run(archive::EXPORT_SESSIONS_OF_USER, of_user).await;
    let pages_max = match planner.planning {
        Planning::Ours => 120,
        // A planner that thinks they are few sorts the user's sessions.
        Planning::Once | Planning::Pooled => 120 + rows.sessions_of_ada() as u64,
    };
    faults.extend(fault_of_pages(planner, archive::EXPORT_SESSIONS_OF_USER, &page, pages_max));
    let longest = rows.longest();
    let params = params![
        bucket_value(longest.session_id.bucket()),
        longest.session_id.uuid(),
        project_id,
        None::<&str>,
        longest.last_seq / 2,
        longest.last_seq,
        100_i64,
    ];
    let page = planner.run(archive::EXPORT_MESSAGES, params).await;
    faults.extend(fault_of_keys(archive::EXPORT_MESSAGES, &page));
    faults.extend(fault_of_pages(planner, archive::EXPORT_MESSAGES, &page, 120));
}
