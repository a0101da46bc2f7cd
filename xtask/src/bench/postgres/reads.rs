//! Pages and lists, beside pgbench running the statements that PostgreSQL gets for them.

use anyhow::{Result, bail};

use super::{
    Database, DatabaseServer, Pgbench,
    conversations::{Conversations, id},
    start_chatstore,
    statement::Statement,
};
use crate::bench::{
    Bench, Target,
    reads::{PAGE, get_requests, page_path},
    server_process::ServerProcess,
    store::{SESSIONS, USER, create_sessions, get_page},
};

const CONNECTIONS: usize = 16;
const CONVERSATIONS: Conversations = Conversations { sessions: 1_000, messages_each: 100, minutes_apart: 6 };
const DRAWS: usize = 10_000;
/// The session that a statement is found with; no other value in it is like its bucket.
const EXAMPLE: usize = 789;

/// A page of one user's 1,000 sessions, in the order of their creation.
pub(super) fn list_path() -> String {
    format!("/api/v1/sessions?user_id={USER}&limit={PAGE}")
}

/// A page of all sessions of a project, the last updated first. The 1,000 of the user were all made in the last hour,
/// and an hour is sorted when it is asked for.
pub(super) fn recent_path() -> String {
    format!("/api/v1/sessions?limit={PAGE}&sort=updated_at&order=desc")
}

/// Every kind of read, each in turns with pgbench.
pub(in crate::bench) fn reads(bench: &mut Bench) -> Result<()> {
    let server = DatabaseServer::start()?;
    let database = server.create("reads")?;
    let chatstore = start_chatstore(bench, "postgres-reads", &database)?;
    create_sessions(&chatstore, SESSIONS)?;
    CONVERSATIONS.store(&database)?;
    let reads = Reads { server: &server, database: &database, chatstore: &chatstore };
    let pages = CONVERSATIONS.random_ids(DRAWS).map(|session| page_path(&session)).collect();
    let page = reads.measure(bench, "page of 50 messages", &page_path(&id(EXAMPLE)), pages)?;
    let list = reads.measure(bench, "a user's 50 sessions", &list_path(), vec![list_path()])?;
    let recent = reads.measure(bench, "50 sessions by update", &recent_path(), vec![recent_path()])?;
    chatstore.stop()?;
    let report = &mut bench.report;
    report.at_least("PostgreSQL: pages of 50 / pgbench of the same query", 0.6, " ×", Some(page));
    report.fact("PostgreSQL: a user's 50 sessions / pgbench of the same query", list, "×");
    report.fact("PostgreSQL: 50 sessions by update / pgbench of the same query", recent, "×");
    Ok(())
}

/// What reads are measured on.
struct Reads<'a> {
    server: &'a DatabaseServer,
    database: &'a Database,
    chatstore: &'a ServerProcess,
}

impl Reads<'_> {
    /// Measures one kind of read; gives its rate as a multiple of pgbench's with the statement of the example.
    fn measure(&self, bench: &mut Bench, name: &str, example: &str, paths: Vec<String>) -> Result<f64> {
        let request = || get_page(self.chatstore, example, PAGE).map(drop);
        let (script, mut variables) = Statement::of(self.server, self.database, request)?.into_script(EXAMPLE);
        variables.push(("sessions".to_owned(), CONVERSATIONS.sessions.to_string()));
        let path = bench.workspace.root().join("read.sql");
        let pgbench = Pgbench::new(self.server, self.database, path, &script, variables)?;
        let targets = [
            Target::with_database(format!("PostgreSQL: {name}"), self.chatstore, self.server, get_requests(paths)),
            Target::pgbench("  pgbench of the same query", pgbench),
        ];
        let measured = bench.take_turns(CONNECTIONS, &targets)?;
        let [read, pgbench] = &measured[..] else { bail!("two targets, two measurements") };
        let ratio = read.rate_over(pgbench);
        bench.report.measurements(&measured);
        Ok(ratio)
    }
}
