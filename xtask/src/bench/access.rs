//! What it costs to know who asks and to count it: the guard beside a bare echo, refusals beside each other, and the
//! memory that a flood of addresses takes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use chatstore_core::{api_keys::PresentedKey, clock::Ctx};
use serde_json::Value;

use super::{
    Bench, Target,
    client::{Connection, request},
    load::{block_on, send_all},
    postgres::DatabaseServer,
    report::{Measurement, median},
    server_process::{API_KEY, ServerProcess},
};
use crate::redis::RedisServer;

const CONNECTIONS: usize = 16;
/// Passes the guard, then names nothing: 404 before the store is asked.
const GUARDED: &str = "/api/v1/messages/none";
/// The same answer without a guard.
const UNGUARDED: &str = "/nothing";
/// High enough to refuse nobody: what is measured is the counting.
const RATE: &str = "1000000000/second";
const LIMITS: [(&str, &str); 2] = [("RATE_LIMIT", RATE), ("RATE_LIMIT_GLOBAL", RATE)];
const FLOOD_CONNECTIONS: usize = 32;

pub(super) fn access(bench: &mut Bench) -> Result<()> {
    guard(bench)?;
    refusals(bench)?;
    flood(bench)
}

/// Authentication and limits, as the difference of two requests that are answered alike.
fn guard(bench: &mut Bench) -> Result<()> {
    let redis = RedisServer::start()?;
    let counted = [LIMITS[0], LIMITS[1], ("RATE_LIMIT_STORE", redis.url())];
    let plain = start(bench, "guard", &[])?;
    let memory = start(bench, "guard-limits", &LIMITS)?;
    let shared = start(bench, "guard-redis", &counted)?;
    let keys = [&plain, &memory, &shared].map(|server| new_key(server, "guard"));
    let guarded = |name: &str, server, key: &Result<Key>| -> Result<Target<'_>> {
        let Ok(key) = key else { bail!("{name}: no key could be made") };
        let headers = format!("{}\r\nX-User-Id: bench-user", key.secret);
        Ok(Target::new(name, server, vec![request("GET", GUARDED, &headers, "")]).answering(404))
    };
    let targets = [
        Target::new("404 without a guard", &plain, vec![request("GET", UNGUARDED, "none", "")]).answering(404),
        guarded("404 behind the guard, a stored key", &plain, &keys[0])?,
        guarded("404 behind the guard, key, user, address and all limited", &memory, &keys[1])?,
        guarded("404 behind the guard, the same in Redis", &shared, &keys[2])?,
        Target::new("  bare echo of 2 bytes", &bench.echo, vec![request("POST", "/echo", API_KEY, "{}")]),
    ];
    let measured = bench.take_turns(CONNECTIONS, &targets)?;
    drop(targets);
    let [bare, keyed, limited, in_redis, echo] = &measured[..] else { bail!("five targets, five measurements") };
    let added = |row: &Measurement| (row.cpu_us - bare.cpu_us) / echo.cpu_us;
    let report = &mut bench.report;
    report.fact("authentication adds, of the CPU of a bare echo", added(keyed), "×");
    report.at_most("authentication and limits in process add, of the CPU of a bare echo", 1.0, " ×", added(limited));
    report.fact("authentication and limits in Redis add, of the CPU of a bare echo", added(in_redis), "×");
    report.measurements(&measured);
    for server in [plain, memory, shared] {
        server.stop()?;
    }
    Ok(())
}

/// A key as the API made it.
struct Key {
    key_id: String,
    secret: String,
}

fn new_key(server: &ServerProcess, name: &str) -> Result<Key> {
    let body = format!("{{\"name\":\"{name}\",\"scopes\":[\"read\"]}}");
    let create = |_| request("POST", "/api/v1/admin/keys", API_KEY, &body);
    let bodies = block_on(send_all(server.port(), 1, 1, true, create))?;
    let made: Value = serde_json::from_slice(bodies.first().context("no answer")?)?;
    let text = |field: &str| Ok::<_, anyhow::Error>(made[field].as_str().context("no such field")?.to_owned());
    Ok(Key { key_id: text("key_id")?, secret: text("secret")? })
}

fn start(bench: &Bench, name: &str, settings: &[(&str, &str)]) -> Result<ServerProcess> {
    let folder = bench.workspace.copy(&bench.seeded.folder, name)?;
    let database = format!("sqlite:{}", folder.join("chatstore.db").display());
    ServerProcess::start_with(&bench.binary, &folder, &database, settings)
}

/// Unknown, wrong and revoked keys, one after the other on one connection: whoever measures them must not tell them
/// apart.
fn refusals(bench: &mut Bench) -> Result<()> {
    let settings = [("RATE_LIMIT_FAILED_AUTH", "off"), ("LOG_LEVEL", "warn")];
    let server = start(bench, "refusals", &settings)?;
    refusals_on(bench, "SQLite", &server)?;
    server.stop()?;
    let databases = DatabaseServer::start()?;
    let database = databases.create("refusals")?;
    let folder = bench.workspace.folder("refusals-postgres")?;
    let server = ServerProcess::start_with(&bench.binary, &folder, &database.url(), &settings)?;
    refusals_on(bench, "PostgreSQL", &server)?;
    server.stop().map(drop)
}

fn refusals_on(bench: &mut Bench, engine: &str, server: &ServerProcess) -> Result<()> {
    let ctx = Ctx::system();
    let (good, revoked) = (new_key(server, "good")?, new_key(server, "revoked")?);
    let revoke = format!("/api/v1/admin/keys/{}/revoke", revoked.key_id);
    block_on(send_all(server.port(), 1, 1, false, |_| request("POST", &revoke, API_KEY, "")))?;
    let rounds = bench.plan.refusals;
    let mut times = [const { Vec::new() }; 3];
    block_on(async {
        let mut connection = Connection::new(server.port());
        for round in 0..rounds {
            let wrong = PresentedKey::rotate(&ctx, &good.key_id).context("the id of a key")?;
            let keys =
                [PresentedKey::generate(&ctx).expose().to_owned(), wrong.expose().to_owned(), revoked.secret.clone()];
            // Each stands in each place as often as the others.
            for place in 0..3 {
                let kind = (round + place) % 3;
                let bytes = request("GET", GUARDED, &keys[kind], "");
                let sent = Instant::now();
                let response = connection.exchange(&bytes).await?;
                times[kind].push(sent.elapsed().as_secs_f64() * 1e6);
                ensure!(response.status == 401, "a refusal was expected: {}", response.describe());
            }
        }
        Ok(())
    })?;
    let medians = times.map(median);
    let (least, most) = medians.iter().fold((f64::MAX, 0.0_f64), |(low, high), us| (low.min(*us), high.max(*us)));
    let report = &mut bench.report;
    for (name, us) in ["unknown", "wrong", "revoked"].into_iter().zip(medians) {
        report.fact(format!("{engine}: refusal of a key that is {name}, median of {rounds}"), us, "µs");
    }
    report.at_most(format!("{engine}: between the medians of these refusals"), 100.0, " µs", most - least);
    Ok(())
}

/// Requests from ever new addresses, as a trusted proxy would pass them on.
fn flood(bench: &mut Bench) -> Result<()> {
    let settings = [("RATE_LIMIT", "30/minute"), ("TRUSTED_PROXIES", "1"), ("LOG_LEVEL", "warn")];
    let server = start(bench, "flood", &settings)?;
    let addresses = bench.plan.flood_addresses;
    let ask = |index: usize| {
        let [a, b, c, d] = u32::try_from(index).unwrap_or(u32::MAX).to_be_bytes();
        let headers = format!("none\r\nX-Forwarded-For: {}.{b}.{c}.{d}", 11 + a);
        request("GET", "/docs/", &headers, "")
    };
    // The first ones grow what any load grows.
    block_on(send_all(server.port(), FLOOD_CONNECTIONS, addresses / 20, false, &ask))?;
    let before = server.rss_mib()?;
    block_on(send_all(server.port(), FLOOD_CONNECTIONS, addresses, false, |index| ask(index + addresses / 20)))?;
    std::thread::sleep(Duration::from_millis(200));
    let grown = server.rss_mib()? - before;
    server.stop()?;
    bench.report.fact("addresses of the flood", addresses as f64, "");
    bench.report.at_most("memory grown by the flood of addresses", 32.0, " MiB", grown);
    Ok(())
}
