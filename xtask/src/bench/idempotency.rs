//! What it costs to do a request once however often it is sent, and what the Conversations wire costs.

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    Bench, Target,
    client::request,
    load::{NUMBER, block_on, send_all},
    postgres::DatabaseServer,
    report::Measurement,
    server_process::{API_KEY, ServerProcess},
    store::{CONTENT, SESSIONS, create_sessions, message_body, messages_path},
};

/// Where the aim for a keyed append is judged.
const KEYED_CONNECTIONS: usize = 64;
const ITEM_CONNECTIONS: usize = 16;
const ITEMS_CREATED: usize = 20;
const ITEMS_LISTED: usize = 100;
const CONVERSATIONS: usize = 100;

/// A server on each engine, one after the other.
fn on_both(bench: &mut Bench, name: &str, measure: impl Fn(&mut Bench, &On<'_>) -> Result<()>) -> Result<()> {
    let folder = bench.workspace.folder(&format!("{name}-sqlite"))?;
    let server = ServerProcess::start_chatstore(&bench.binary, &folder)?;
    measure(bench, &On { engine: "SQLite", server: &server, database: None })?;
    server.stop()?;
    let databases = DatabaseServer::start()?;
    let database = databases.create(name)?;
    let folder = bench.workspace.folder(&format!("{name}-postgres"))?;
    let server = ServerProcess::start_on(&bench.binary, &folder, &database.url())?;
    measure(bench, &On { engine: "PostgreSQL", server: &server, database: Some(&databases) })?;
    server.stop().map(drop)
}

/// A server and what it stores in.
struct On<'a> {
    engine: &'static str,
    server: &'a ServerProcess,
    database: Option<&'a DatabaseServer>,
}

impl<'a> On<'a> {
    fn target(&self, name: &str, requests: Vec<Vec<u8>>) -> Target<'a> {
        let name = format!("{}: {name}", self.engine);
        match self.database {
            Some(database) => Target::with_database(name, self.server, database, requests),
            None => Target::new(name, self.server, requests),
        }
    }
}

/// Appends with a key, each its own, in turns with appends without.
pub(super) fn idempotency(bench: &mut Bench) -> Result<()> {
    on_both(bench, "idempotency", |bench, on| {
        let sessions = create_sessions(on.server, SESSIONS)?;
        let body = message_body();
        let appends = |api_key: &str| -> Vec<Vec<u8>> {
            sessions.iter().map(|session| request("POST", &messages_path(session), api_key, &body)).collect()
        };
        let keyed = format!("{API_KEY}\r\nIdempotency-Key: bench-{NUMBER}");
        let targets = [
            on.target("append one message", appends(API_KEY)),
            on.target("append one message with an Idempotency-Key", appends(&keyed)).numbered(),
        ];
        let measured = bench.take_turns(KEYED_CONNECTIONS, &targets)?;
        drop(targets);
        let [plain, keyed] = &measured[..] else { bail!("two targets, two measurements") };
        let cpu = |row: &Measurement| row.cpu_us + row.database_cpu_us;
        let name = |what: &str| format!("{}: {what} with a key / without, {KEYED_CONNECTIONS} connections", on.engine);
        bench.report.at_most(name("CPU of an append (with the database's)"), 1.3, " ×", cpu(keyed) / cpu(plain));
        bench.report.at_most(name("time of an append, by throughput,"), 1.3, " ×", 1.0 / keyed.rate_over(plain));
        bench.report.measurements(&measured);
        Ok(())
    })
}

/// Items created 20 at once and listed 100 a page, each beside an echo of as many bytes.
pub(super) fn items(bench: &mut Bench) -> Result<()> {
    on_both(bench, "items", |bench, on| {
        let item = json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": CONTENT}]});
        let body = json!({ "items": vec![item; ITEMS_CREATED] }).to_string();
        let conversations = create_conversations(on.server)?;
        let paths: Vec<String> = conversations.iter().map(|id| format!("/v1/conversations/{id}/items")).collect();
        let creates: Vec<_> = paths.iter().map(|path| request("POST", path, API_KEY, &body)).collect();
        let fills = paths.len() * ITEMS_LISTED / ITEMS_CREATED;
        block_on(send_all(on.server.port(), ITEM_CONNECTIONS, fills, false, |n| creates[n % creates.len()].clone()))?;
        let list = |path: &String| request("GET", &format!("{path}?limit={ITEMS_LISTED}"), API_KEY, "");
        let lists: Vec<_> = paths.iter().map(list).collect();
        let pages = block_on(send_all(on.server.port(), 1, 1, true, |_| lists[0].clone()))?;
        let page = pages.first().context("no page")?;
        let listed: Value = serde_json::from_slice(page)?;
        let count = listed["data"].as_array().map_or(0, Vec::len);
        anyhow::ensure!(count == ITEMS_LISTED, "a page held {count} items");
        let echo_of_page = request("GET", &format!("/echo-page/{}", page.len()), API_KEY, "");
        for (name, requests, echo) in [
            ("items.list of 100", lists, echo_of_page),
            ("items.create of 20", creates, request("POST", "/echo", API_KEY, &body)),
        ] {
            let targets =
                [on.target(name, requests), Target::new("  bare echo of as many bytes", &bench.echo, vec![echo])];
            let measured = bench.take_turns(ITEM_CONNECTIONS, &targets)?;
            drop(targets);
            let [row, echo] = &measured[..] else { bail!("two targets, two measurements") };
            let ratio = row.cpu_us / echo.cpu_us;
            bench.report.fact(format!("{}: CPU of {name} / echo of as many bytes", on.engine), ratio, "×");
            bench.report.measurements(&measured);
        }
        Ok(())
    })
}

fn create_conversations(server: &ServerProcess) -> Result<Vec<String>> {
    let create = |_| request("POST", "/v1/conversations", API_KEY, "{}");
    let bodies = block_on(send_all(server.port(), ITEM_CONNECTIONS, CONVERSATIONS, true, create))?;
    let id = |body: &Vec<u8>| {
        let conversation: Value = serde_json::from_slice(body)?;
        Ok(conversation["id"].as_str().context("a conversation without an id")?.to_owned())
    };
    bodies.iter().map(id).collect()
}
