//! The same requests in a small and in a large database of the same server, whose sessions all have 1,000 messages.

use std::time::Instant;

use anyhow::{Result, bail};

use super::{
    DatabaseServer,
    conversations::{Conversations, id},
    reads::{list_path, recent_path},
    start_chatstore,
};
use crate::bench::{
    Bench, Target,
    client::request,
    load::{block_on, send_all},
    reads::{get_requests, page_path, thousands},
    server_process::{API_KEY, ServerProcess},
    store::{SESSIONS, create_sessions, message_body, messages_path},
};

const CONNECTIONS: usize = 16;
const MESSAGES_EACH: usize = 1_000;
const SMALL_SESSIONS: usize = 100;
const DRAWS: usize = 10_000;

/// A server under test on a database of some size.
struct Filled {
    chatstore: ServerProcess,
    conversations: Conversations,
    shown: String,
}

impl Filled {
    /// Sends one request for every session.
    fn each(&self, request: impl Fn(&str) -> Vec<u8>) -> Result<()> {
        let make = |index: usize| request(&id(index));
        let sent = send_all(self.chatstore.port(), CONNECTIONS, self.conversations.sessions, false, make);
        block_on(sent).map(drop)
    }

    /// Requests for sessions that are drawn from all.
    fn draw(&self, request: impl Fn(&str) -> Vec<u8>) -> Vec<Vec<u8>> {
        self.conversations.random_ids(DRAWS).map(|id| request(&id)).collect()
    }
}

pub(in crate::bench) fn size(bench: &mut Bench) -> Result<()> {
    let server = DatabaseServer::start()?;
    let sessions = bench.plan.postgres_messages_large / MESSAGES_EACH;
    let conversations = |sessions| Conversations { sessions, messages_each: MESSAGES_EACH, minutes_apart: 6 };
    let small = fill(bench, &server, "small", conversations(SMALL_SESSIONS))?;
    let started = Instant::now();
    let large = fill(bench, &server, "large", conversations(sessions))?;
    let took = started.elapsed().as_secs_f64();
    bench.report.fact(format!("PostgreSQL: filling a database with {} messages by COPY", large.shown), took, "s");
    let stores = [&small, &large];
    let body = message_body();
    let append = |id: &str| request("POST", &messages_path(id), API_KEY, &body);
    let page = |id: &str| request("GET", &page_path(id), API_KEY, "");
    let listed = |path: fn() -> String| move |_: &Filled| get_requests([path()]);
    for store in stores {
        store.each(page)?;
    }
    judge(bench, &server, stores, "page of 50", |store| store.draw(page))?;
    judge(bench, &server, stores, "a user's 50 sessions", listed(list_path))?;
    judge(bench, &server, stores, "50 sessions by update", listed(recent_path))?;
    // The first write of a page after a checkpoint, and the first of a session in an hour, cost more than the next.
    for store in stores {
        store.each(append)?;
    }
    judge(bench, &server, stores, "append one message", |store| store.draw(append))?;
    small.chatstore.stop()?;
    large.chatstore.stop()?;
    Ok(())
}

/// Fills a database and starts a server on it that has not filled it.
fn fill(bench: &Bench, server: &DatabaseServer, name: &str, conversations: Conversations) -> Result<Filled> {
    let database = server.create(name)?;
    let chatstore = start_chatstore(bench, &format!("postgres-fill-{name}"), &database)?;
    create_sessions(&chatstore, SESSIONS)?;
    chatstore.stop()?;
    conversations.store(&database)?;
    let chatstore = start_chatstore(bench, &format!("postgres-{name}"), &database)?;
    let shown = thousands(conversations.sessions * conversations.messages_each);
    Ok(Filled { chatstore, conversations, shown })
}

/// Holds one kind of request to the aim that it costs the same in both, PostgreSQL's part included.
fn judge(
    bench: &mut Bench,
    server: &DatabaseServer,
    stores: [&Filled; 2],
    kind: &str,
    requests: impl Fn(&Filled) -> Vec<Vec<u8>>,
) -> Result<()> {
    let targets = stores.map(|store| {
        let name = format!("PostgreSQL: {kind}, {}", store.shown);
        Target::with_database(name, &store.chatstore, server, requests(store))
    });
    let measured = bench.take_turns(CONNECTIONS, &targets)?;
    let [near, far] = &measured[..] else { bail!("two targets, two measurements") };
    let cpu = (far.cpu_us + far.database_cpu_us) / (near.cpu_us + near.database_cpu_us);
    let [small, large] = stores;
    let sizes = format!("{kind}, {} messages / {}", large.shown, small.shown);
    bench.report.at_most(format!("PostgreSQL: CPU of {sizes}"), 1.2, " ×", cpu);
    bench.report.at_most(format!("PostgreSQL: p50 of {sizes}"), 1.2, " ×", far.p50_over(near));
    bench.report.measurements(&measured);
    Ok(())
}
