//! Search by words and by meaning, within users of different sizes and in stores of different sizes, beside what the same
//! machine needs for the bare work: a plain scan of the same vectors in memory, or the bare SQL.

mod corpus;

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rusqlite::Connection;
use serde_json::Value;

use self::corpus::{DIMENSIONS, User, numbers, users};
use super::{
    Bench, Target,
    client::request,
    load::{block_on, send_all},
    postgres::{Database, DatabaseServer, Pgbench, start_chatstore},
    report::{Measurement, median},
    server_process::{API_KEY, ServerProcess},
    store::messages_path,
};

const HITS: usize = 10;
const PATH: &str = "/api/v1/search";
/// Messages of a session, appended at once.
const BATCH: usize = 100;
const FILL_CONNECTIONS: usize = 4;
/// Different queries of each kind.
const QUERIES: usize = 200;
/// The user whose search has aims.
const MEDIUM: usize = 10_000;

/// A store of one size with a server on it.
struct Filled<'a> {
    server: ServerProcess,
    database: Option<&'a DatabaseServer>,
    users: Vec<User>,
    messages: usize,
}

impl<'a> Filled<'a> {
    /// Fills the store behind a server through its API.
    fn fill(server: &ServerProcess, users: &[User]) -> Result<()> {
        let sessions: Vec<(&User, usize)> =
            users.iter().flat_map(|user| (0..user.messages).step_by(BATCH).map(move |from| (user, from))).collect();
        let create = |index: usize| {
            let body = serde_json::json!({"user_id": sessions[index].0.name, "session_name": "s"}).to_string();
            request("POST", "/api/v1/sessions", API_KEY, &body)
        };
        let created = block_on(send_all(server.port(), FILL_CONNECTIONS, sessions.len(), true, create))?;
        let id = |body: &Vec<u8>| -> Result<String> {
            let session: Value = serde_json::from_slice(body)?;
            Ok(session["session_id"].as_str().context("a created session has no `session_id`")?.to_owned())
        };
        let ids = created.iter().map(id).collect::<Result<Vec<_>>>()?;
        let append = |index: usize| {
            let (user, from) = sessions[index];
            let count = BATCH.min(user.messages - from);
            request("POST", &messages_path(&ids[index]), API_KEY, &user.batch(from, count))
        };
        block_on(send_all(server.port(), FILL_CONNECTIONS, sessions.len(), false, append)).map(drop)
    }

    fn target(&self, name: &str, bodies: Vec<String>) -> Target<'_> {
        let requests = bodies.iter().map(|body| request("POST", PATH, API_KEY, body)).collect();
        match self.database {
            Some(database) => Target::with_database(name, &self.server, database, requests),
            None => Target::new(name, &self.server, requests),
        }
    }

    /// The user with so many messages.
    fn user(&self, messages: usize) -> Option<&User> {
        self.users.iter().find(|user| user.messages == messages)
    }

    /// Searches within a user.
    fn within(&self, mode: &str, messages: usize) -> Option<Target<'_>> {
        let user = self.user(messages)?;
        let bodies = (0..QUERIES).map(|n| user.search(mode, n * 37 % messages)).collect();
        Some(self.target(&format!("{mode}, a user's {messages}, {} stored", self.messages), bodies))
    }

    /// Searches over everything.
    fn over_all(&self, mode: &str) -> Target<'_> {
        let users = self.users.iter().cycle().take(QUERIES).zip(0..);
        let bodies = users.map(|(user, n): (&User, usize)| user.search_all(mode, n % user.messages)).collect();
        self.target(&format!("{mode}, all of {}", self.messages), bodies)
    }

    /// Whether something is found, and by meaning the message that is asked for: a measurement of empty answers would
    /// mislead.
    fn check(&self) -> Result<()> {
        let user = self.user(MEDIUM).context("the user that is measured")?;
        for mode in ["text", "vector", "hybrid"] {
            let body = user.search(mode, 1_234);
            let make = |_| request("POST", PATH, API_KEY, &body);
            let answer = block_on(send_all(self.server.port(), 1, 1, true, make))?;
            let answer: Value = serde_json::from_slice(answer.first().context("no answer")?)?;
            let hits = answer["hits"].as_array().context("no hits")?;
            let own = user.words(1_234).join(" ");
            let is_own = |hit: &Value| mode == "text" || hit["message"]["content"] == own.as_str();
            ensure!(hits.iter().any(is_own), "{mode}: not found: {body}");
        }
        Ok(())
    }
}

/// How large the stores are: one, and one whose other users have ten times as much.
fn sizes(bench: &Bench) -> [(Vec<usize>, usize); 2] {
    let [small, large] = [bench.plan.messages_large / 10, bench.plan.messages_large].map(|n| n.max(2 * MEDIUM));
    let most = if large > 200_000 { vec![100, MEDIUM, 100_000] } else { vec![100, MEDIUM] };
    [(vec![100, MEDIUM], small), (most, large)]
}

/// On SQLite.
pub(super) fn sqlite(bench: &mut Bench) -> Result<()> {
    let mut stores = Vec::new();
    for ((measured, messages), name) in sizes(bench).into_iter().zip(["search-small", "search-large"]) {
        let folder = bench.workspace.folder(name)?;
        let server = ServerProcess::start_chatstore(&bench.binary, &folder)?;
        let users = users(&measured, messages);
        Filled::fill(&server, &users)?;
        server.stop()?;
        report_sqlite_sizes(bench, &folder, messages)?;
        let server = ServerProcess::start_chatstore(&bench.binary, &folder)?;
        stores.push(Filled { server, database: None, users, messages });
    }
    let [small, large] = &stores[..] else { bail!("two stores") };
    measure(bench, "SQLite", small, large)?;
    let vector = large.within("vector", MEDIUM).context("the user that is measured")?;
    let user = large.user(MEDIUM).context("the user that is measured")?;
    let mut scan = Scan::of(user);
    let mut ratios = Vec::new();
    for _ in 0..bench.plan.turns.repeats {
        let scanned_ms = scan.run(bench.plan.turns.measure);
        let measured = bench.take_turns(1, &[vector_again(&vector, large)?])?;
        let [searched] = &measured[..] else { bail!("one target, one measurement") };
        ratios.push((searched.p50_ms / scanned_ms, scanned_ms));
    }
    let scanned_ms = median(ratios.iter().map(|(_, ms)| *ms));
    bench.report.fact(format!("a plain scan of {MEDIUM} vectors in memory"), scanned_ms, "ms");
    let ratio = median(ratios.iter().map(|(ratio, _)| *ratio));
    bench.report.at_most("SQLite: vectors of a user of 10 k / a plain scan in memory", 2.0, " ×", ratio);
    drop(vector);
    stores.into_iter().try_for_each(|store| store.server.stop().map(drop))
}

/// The same requests for another turn.
fn vector_again<'a>(target: &Target<'_>, store: &'a Filled<'_>) -> Result<Target<'a>> {
    let mut again = store.within("vector", MEDIUM).context("the user that is measured")?;
    again.name.clone_from(&target.name);
    Ok(again)
}

/// On PostgreSQL.
pub(super) fn postgres(bench: &mut Bench) -> Result<()> {
    let server = DatabaseServer::start()?;
    let mut stores = Vec::new();
    let mut databases = Vec::new();
    for ((measured, messages), name) in sizes(bench).into_iter().zip(["search_small", "search_large"]) {
        let database = server.create(name)?;
        let chatstore = start_chatstore(bench, &format!("postgres-{name}"), &database)?;
        let users = users(&measured, messages);
        Filled::fill(&chatstore, &users)?;
        reindex(bench, &database)?;
        for sql in ["vacuum (analyze)", "checkpoint"] {
            database.run(sql)?;
        }
        report_postgres_sizes(bench, &database, messages)?;
        stores.push(Filled { server: chatstore, database: Some(&server), users, messages });
        databases.push(database);
    }
    let [small, large] = &stores[..] else { bail!("two stores") };
    measure(bench, "PostgreSQL", small, large)?;
    let measured = bench.take_turns(1, &[large.over_all("vector")])?;
    bench.report.at_most("PostgreSQL: vectors of the whole project, p50", 20.0, " ms", measured[0].p50_ms);
    bench.report.measurements(&measured);
    let bare = bare_sql(bench, &server, &databases[1], large.user(MEDIUM).context("the user that is measured")?)?;
    let targets = [
        large.within("vector", MEDIUM).context("the user that is measured")?,
        Target::pgbench("  pgbench of the bare SQL", bare),
    ];
    let measured = bench.take_turns(1, &targets)?;
    drop(targets);
    let [searched, bare] = &measured[..] else { bail!("two targets, two measurements") };
    let ratio = 1.0 / searched.rate_over(bare);
    bench.report.at_most("PostgreSQL: vectors of a user of 10 k / the bare SQL", 2.0, " ×", ratio);
    bench.report.measurements(&measured);
    stores.into_iter().try_for_each(|store| store.server.stop().map(drop))
}

/// What both engines are asked: users of all sizes, and the same user in the small and the large store.
fn measure(bench: &mut Bench, engine: &str, small: &Filled<'_>, large: &Filled<'_>) -> Result<()> {
    small.check()?;
    large.check()?;
    for (mode, most_ms) in [("text", Some(5.0)), ("vector", None), ("hybrid", Some(15.0))] {
        let targets: Vec<Target<'_>> = [small, large].into_iter().filter_map(|s| s.within(mode, MEDIUM)).collect();
        let measured = bench.take_turns(1, &targets)?;
        let [few, many] = &measured[..] else { bail!("two targets, two measurements") };
        report(bench, engine, mode, most_ms, few, many);
        bench.report.measurements(&measured);
    }
    let mut others: Vec<Target<'_>> = Vec::new();
    for mode in ["text", "vector"] {
        others.extend([100, 100_000].into_iter().filter_map(|messages| large.within(mode, messages)));
    }
    others.push(large.over_all("text"));
    let measured = bench.take_turns(1, &others)?;
    bench.report.measurements(&measured);
    Ok(())
}

fn report(bench: &mut Bench, engine: &str, mode: &str, most_ms: Option<f64>, few: &Measurement, many: &Measurement) {
    let report = &mut bench.report;
    report.at_most(format!("{engine}: {mode}, 10 × more of other users, p50"), 1.2, " ×", many.p50_over(few));
    let name = format!("{engine}: {mode} within a user of 10 k, p50");
    match most_ms {
        Some(most_ms) => report.at_most(name, most_ms, " ms", many.p50_ms),
        None => report.fact(name, many.p50_ms, "ms"),
    }
}

/// The bare work of a search by meaning: the inner products of a query with vectors that lie side by side.
struct Scan {
    vectors: Vec<f32>,
    queries: Vec<Vec<f32>>,
}

impl Scan {
    fn of(user: &User) -> Self {
        let vectors = (0..user.messages).flat_map(|message| user.vector(message)).collect();
        Self { vectors, queries: (0..QUERIES).map(|n| user.vector(n * 37 % user.messages)).collect() }
    }

    /// Milliseconds of the median scan.
    fn run(&mut self, length: Duration) -> f64 {
        let (started, mut times) = (Instant::now(), Vec::new());
        while started.elapsed() < length {
            for query in &self.queries {
                let began = Instant::now();
                let best =
                    self.vectors.chunks_exact(DIMENSIONS).map(|vector| dot(query, vector)).fold(f32::MIN, f32::max);
                black_box(best);
                times.push(began.elapsed().as_secs_f64() * 1e3);
            }
        }
        median(times)
    }
}

/// Sixteen sums side by side, which the compiler turns into vector instructions.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    for (one, other) in one.chunks_exact(16).zip(other.chunks_exact(16)) {
        for n in 0..16 {
            sums[n] += one[n] * other[n];
        }
    }
    sums.iter().sum()
}

/// A search within a user as a person would write it.
fn bare_sql<'a>(bench: &Bench, server: &'a DatabaseServer, database: &'a Database, user: &User) -> Result<Pgbench<'a>> {
    let session = format!("select bucket, project_id from sessions where user_id = '{}' limit 1", user.name);
    let row = database.run(&session)?;
    let (bucket, project) = row.split_once('|').context("the user has a session")?;
    let script = format!(
        "select session_id, seq, embedding <=> :vector::vector from message_embeddings
    where bucket = {bucket} and project_id = '{project}' and user_id = '{}'
    order by embedding <=> :vector::vector limit {HITS};\n",
        user.name
    );
    let variables = vec![("vector".to_owned(), numbers(&user.vector(37)))];
    Pgbench::new(server, database, bench.workspace.root().join("vectors.sql"), &script, variables)
}

/// Builds the HNSW index, as the owner.
fn reindex(bench: &Bench, database: &Database) -> Result<()> {
    let started = Instant::now();
    let mut command = std::process::Command::new(&bench.binary);
    let status =
        command.arg("reindex").env("DATABASE_URL", database.url()).current_dir(bench.workspace.root()).output()?;
    ensure!(status.status.success(), "reindex: {}", String::from_utf8_lossy(&status.stderr));
    eprint!(" reindex {:.0} s …", started.elapsed().as_secs_f64());
    Ok(())
}

fn report_sqlite_sizes(bench: &mut Bench, folder: &Path, messages: usize) -> Result<()> {
    let connection = Connection::open(folder.join("chatstore.db"))?;
    for (what, pattern) in [("text index", "message_te%"), ("vectors of 384", "%embedding%"), ("messages", "messages%")]
    {
        let sql =
            "select coalesce(sum(pgsize), 0) from dbstat where name like ?1 or name like 'sqlite_autoindex_' || ?1";
        let bytes: i64 = connection.query_row(sql, [pattern], |row| row.get(0))?;
        bench.report.fact(format!("SQLite: {what} of {messages}, a message"), bytes as f64 / messages as f64, "bytes");
    }
    Ok(())
}

fn report_postgres_sizes(bench: &mut Bench, database: &Database, messages: usize) -> Result<()> {
    for (what, table) in
        [("text index", "message_texts"), ("vectors of 384", "message_embeddings"), ("messages", "messages")]
    {
        for (part, function) in [("table", "pg_table_size"), ("indexes", "pg_indexes_size")] {
            let bytes: f64 = database.run(&format!("select {function}('{table}')"))?.parse()?;
            let name = format!("PostgreSQL: {what} of {messages}, {part}, a message");
            bench.report.fact(name, bytes / messages as f64, "bytes");
        }
    }
    Ok(())
}
