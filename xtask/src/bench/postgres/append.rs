//! Appends of one message, beside pgbench appending the same with one statement and one commit each.

use anyhow::{Result, bail, ensure};

use super::{
    Database, DatabaseServer, Pgbench,
    conversations::{Conversations, RANDOM_SESSION, SESSION_ID, SESSIONS_MAX, hour, now_us, project},
    start_chatstore,
};
use crate::bench::{
    Bench, Target,
    client::request,
    report::{Measurement, Report},
    server_process::{API_KEY, StoreCounters},
    store::{CONTENT, message_body, messages_path},
};

const CONNECTIONS: [usize; 4] = [1, 16, 64, 256];
/// All of this hour: the first append of another hour changes an index, which would be most of what is measured.
const CONVERSATIONS: Conversations = Conversations { sessions: SESSIONS_MAX, messages_each: 10, minutes_apart: 0 };
/// Sessions that are drawn before the draw repeats itself.
const DRAWS: usize = 10_000;

/// One statement that writes what an append writes: the counters of the session, and the message.
fn append_script() -> String {
    format!(
        "{RANDOM_SESSION}with moved as (
    update sessions s
    set last_seq = s.last_seq + 1, message_count = s.message_count + 1,
        stored_bytes = s.stored_bytes + octet_length(:content::text) + 2,
        updated_at = greatest(s.updated_at, :now_us), updated_hour = greatest(s.updated_hour, :now_hour),
        last_message_at = greatest(s.last_message_at, :now_us),
        active_hour = case when s.last_message_at is null then :now_hour else greatest(s.active_hour, :now_hour) end
    where s.bucket = :bucket and s.session_id = {SESSION_ID} and s.project_id = :project and s.deleted_at is null
    returning s.bucket, s.session_id, s.last_seq
)
insert into messages (bucket, session_id, seq, message_id, parent_id, role, kind, status, content, payload, metadata,
    context, external_id, token_count, version, created_at, updated_at)
select m.bucket, m.session_id, m.last_seq, overlay(uuidv7()::text placing lpad(:n, 4, '0') from 33)::uuid, null, 'user',
    'message', 'completed', :content::text, null, '{{}}', null, null, null, 1, :now_us::bigint, :now_us::bigint
from moved m
returning seq;
"
    )
}

fn append_variables(database: &Database) -> Result<Vec<(String, String)>> {
    let now_us = now_us(database)?;
    let variables = [
        ("sessions", CONVERSATIONS.sessions.to_string()),
        ("project", project(database)?),
        ("content", CONTENT.to_owned()),
        ("now_us", now_us.to_string()),
        ("now_hour", hour(now_us).to_string()),
    ];
    Ok(variables.map(|(name, value)| (name.to_owned(), value)).to_vec())
}

/// One message a request at several numbers of connections, all on one database.
pub(in crate::bench) fn append(bench: &mut Bench) -> Result<()> {
    let server = DatabaseServer::start()?;
    let database = server.create("append")?;
    start_chatstore(bench, "postgres-migrate", &database)?.stop()?;
    CONVERSATIONS.store(&database)?;
    for connections in CONNECTIONS {
        let (measured, counters) = append_at(bench, &server, &database, connections)?;
        report_append(&mut bench.report, connections, &measured, counters)?;
    }
    let places = "select sum(last_seq) = (select count(*) from messages) from sessions";
    ensure!(database.run(places)? == "t", "the messages are not as many as the sessions say");
    let hot = "select 100.0 * n_tup_hot_upd / n_tup_upd from pg_stat_user_tables where relname = 'sessions'";
    bench.report.fact("PostgreSQL: updates of sessions that were heap-only", database.run(hot)?.parse()?, "%");
    Ok(())
}

fn append_at(
    bench: &Bench,
    server: &DatabaseServer,
    database: &Database,
    connections: usize,
) -> Result<(Vec<Measurement>, Option<StoreCounters>)> {
    let chatstore = start_chatstore(bench, &format!("postgres-append-{connections}"), database)?;
    let body = message_body();
    let append = |session: String| request("POST", &messages_path(&session), API_KEY, &body);
    let appends = CONVERSATIONS.random_ids(DRAWS).map(append).collect();
    let script = bench.workspace.root().join("append.sql");
    let pgbench = Pgbench::new(server, database, script, &append_script(), append_variables(database)?)?;
    let targets = [
        Target::with_database("PostgreSQL: append one message", &chatstore, server, appends),
        Target::pgbench("  pgbench, one statement an append", pgbench),
        Target::new("  bare echo of its body", &bench.echo, vec![request("POST", "/echo", API_KEY, &body)]),
    ];
    let measured = bench.take_turns(connections, &targets)?;
    drop(targets);
    Ok((measured, chatstore.stop()?))
}

fn report_append(
    report: &mut Report,
    connections: usize,
    measured: &[Measurement],
    counters: Option<StoreCounters>,
) -> Result<()> {
    let [append, pgbench, echo] = measured else { bail!("three targets, three measurements") };
    let name = format!("PostgreSQL: appends / pgbench, {connections} connections");
    let rate = append.rate_over(pgbench);
    match connections {
        // Ours indexes the words of the message, too.
        64 => report.at_least(name, 0.7, " ×", Some(rate)),
        256 => report.at_least(name, 1.3, " ×", Some(rate)),
        _ => report.fact(name, rate, "×"),
    }
    let name = format!("PostgreSQL: CPU of an append / bare echo, {connections} connections");
    let cpu = append.cpu_us / echo.cpu_us;
    match connections {
        64 => report.at_most(name, 4.0, " ×", cpu),
        _ => report.fact(name, cpu, "×"),
    }
    let database = append.database_cpu_us / pgbench.database_cpu_us;
    report.fact(format!("PostgreSQL: its own CPU of an append / pgbench, {connections} connections"), database, "×");
    let per_commit = counters.map_or(0.0, |counters| counters.appends as f64 / counters.commits.max(1) as f64);
    report.fact(format!("PostgreSQL: appends that share a commit, {connections} connections"), per_commit, "");
    report.measurements(measured);
    Ok(())
}
