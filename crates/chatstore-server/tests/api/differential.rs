//! Both engines answer alike: thousands of generated requests go to both, and every answer is
//! compared byte for byte.
//!
//! Both sides have a clock that moves by the same steps and bytes from the same seed, so ids and
//! times are the same without any help. Only the signature of a cursor is an installation's own.
//! `DIFFERENTIAL_OPERATIONS` sends more, `DIFFERENTIAL_SEED` repeats what a failure prints.

mod search;
mod values;
mod world;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::ids::{ProjectId, SessionId};
use chatstore_core::store::{Scope, Store};
use chatstore_server::app::App;
use chatstore_server::router;
use http_body_util::BodyExt as _;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::app::{Engine, ROOT_KEY, TestApp, access, limits};
use values::Dice;
use world::World;

const OPERATIONS: u64 = 3_000;
/// Between two readings of the clock: a run takes some days, so that hours pass.
const STEP_US: i64 = 37_000_000;

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Persona {
    Operator,
    Project,
    Alice,
    Bob,
    Reader,
    Writer,
    Stranger,
    Revoked,
    Expired,
    Unknown,
    Nobody,
}

/// A request for both sides.
#[derive(Clone, Debug)]
struct Operation {
    persona: Persona,
    method: Method,
    path: String,
    /// A cursor of each side.
    cursors: Option<[String; 2]>,
    headers: Vec<(&'static str, String)>,
    body: Option<String>,
}

/// One engine and what stands before it.
struct Side {
    app: TestApp,
    router: Router,
    keys: Vec<(Persona, String)>,
    _shutdown: CancellationToken,
}

impl Side {
    async fn start(engine: Engine, seed: u64) -> Self {
        let app = TestApp::start(engine).await;
        let (default, all) = (ProjectId::DEFAULT, "read,write,delete,search,admin,operator");
        let keys = vec![
            (Persona::Operator, ROOT_KEY.to_owned()),
            (Persona::Project, app.key(default, "read,write,delete,search,admin", None).await),
            (Persona::Alice, app.key(default, all, Some("alice")).await),
            (Persona::Bob, app.key(default, "read,write,delete,search,admin", Some("bob")).await),
            (Persona::Reader, app.key(default, "read", None).await),
            (Persona::Writer, app.key(default, "read,write", None).await),
            (Persona::Stranger, app.key(app.other, all, None).await),
            (Persona::Revoked, app.revoked_key().to_owned()),
            (Persona::Expired, app.expired_key().to_owned()),
            (Persona::Unknown, "cs_no_key".to_owned()),
        ];
        let shutdown = CancellationToken::new();
        let ctx = Ctx::fixed(Timestamp::parse("2026-01-16T12:00:00Z").unwrap(), STEP_US, seed);
        let served = App::new(app.store.clone(), ctx, access(), limits(), shutdown.clone()).await.unwrap();
        Self { app, router: router::router(served), keys, _shutdown: shutdown }
    }

    /// Sends without the checks of the suite's client, which cannot read every number that is kept.
    async fn send(&self, operation: &Operation, side: usize) -> Answer {
        let mut path = operation.path.clone();
        if let Some(cursors) = &operation.cursors {
            path.push_str(if path.contains('?') { "&cursor=" } else { "?cursor=" });
            path.push_str(&cursors[side]);
        }
        let mut request = Request::builder().method(operation.method.clone()).uri(path);
        let key = self.keys.iter().find(|(persona, _)| *persona == operation.persona);
        if let Some((_, key)) = key {
            request = request.header("x-api-key", key);
        }
        for (name, value) in &operation.headers {
            request = request.header(*name, value.as_bytes());
        }
        let body = operation.body.clone().map_or_else(Body::empty, Body::from);
        let Ok(response) = self.router.clone().call(request.body(body).unwrap()).await;
        let (parts, body) = response.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }
}

/// What a side answered.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    /// Path and cursor of the next page.
    fn next(&self) -> Option<(&str, &str)> {
        let link = self.headers.get("link")?.to_str().unwrap();
        let (path, cursor) = link.strip_prefix('<')?.strip_suffix(">; rel=\"next\"")?.split_once("cursor=").unwrap();
        Some((path.trim_end_matches(['?', '&']), cursor))
    }

    /// All that must be the same on both sides: all but the signature of the cursor.
    fn comparable(&self) -> String {
        let mut text = self.status.to_string();
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != "link") {
            text.push_str(&format!("\n{name}: {}", String::from_utf8_lossy(value.as_bytes())));
        }
        if let Some((path, cursor)) = self.next() {
            text.push_str(&format!("\nlink: {path} {}", position(cursor)));
        }
        format!("{text}\n\n{}", self.comparable_body())
    }

    /// A search has its cursor in the body.
    fn comparable_body(&self) -> String {
        const FIELD: &str = ",\"next_cursor\":\"";
        match self.body.rsplit_once(FIELD) {
            // The last field of the answer, and no text of a message.
            Some((before, cursor)) if cursor.ends_with("\"}") && self.body.starts_with("{\"hits\":") => {
                format!("{before}{FIELD}{}", position(cursor.trim_end_matches("\"}")))
            }
            _ => self.body.clone(),
        }
    }
}

/// The place that a cursor names.
fn position(cursor: &str) -> String {
    const SIGNATURE_BYTES: usize = 16;
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).unwrap();
    format!("{:02x?}", &bytes[..bytes.len() - SIGNATURE_BYTES])
}

/// The end of a long text is rarely what differs.
fn shown(text: &str) -> String {
    text.chars().take(3_000).collect()
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

#[tokio::test]
async fn both_engines_give_the_same_answers() {
    let seed = setting("DIFFERENTIAL_SEED").unwrap_or_else(|| u64::from(u32::from_be_bytes(Ctx::system().random())));
    let operations = setting("DIFFERENTIAL_OPERATIONS").unwrap_or(OPERATIONS);
    let (sqlite, postgres) = tokio::join!(Side::start(Engine::Sqlite, seed), Side::start(Engine::Postgres, seed));
    let mut world = World::new(Dice::new(seed), sqlite.app.other);
    for n in 1..=operations {
        let operation = world.next_operation();
        let answers = tokio::join!(sqlite.send(&operation, 0), postgres.send(&operation, 1));
        let (left, right) = (answers.0.comparable(), answers.1.comparable());
        assert!(
            left == right && answers.0.status < 500,
            "DIFFERENTIAL_SEED={seed}, operation {n} of {operations}: {}\n\nSQLite: {}\n\nPostgreSQL: {}",
            shown(&format!("{operation:?}")),
            shown(&left),
            shown(&right)
        );
        world.learn(&operation, [&answers.0, &answers.1]);
    }
    let tally = world.tally();
    assert!(tally.iter().all(|(_, counts)| counts.succeeded > 0), "some operation never succeeded: {tally:?}");
    for project_id in [ProjectId::DEFAULT, sqlite.app.other] {
        assert_same_rows(&*sqlite.app.store, &*postgres.app.store, project_id, seed).await;
    }
}

/// All that both engines hold of a project, tombstones and hidden fields included.
async fn assert_same_rows(sqlite: &dyn Store, postgres: &dyn Store, project_id: ProjectId, seed: u64) {
    let scope = Scope::project(project_id);
    let mut after: Option<SessionId> = None;
    loop {
        let pages =
            (sqlite.export_sessions(&scope, after, 100).await, postgres.export_sessions(&scope, after, 100).await);
        let (left, right) = (pages.0.unwrap(), pages.1.unwrap());
        assert_eq!(left, right, "DIFFERENTIAL_SEED={seed}");
        for session in &left {
            let (id, last_seq) = (session.session_id, session.last_seq);
            let left = sqlite.export_messages(&scope, id, 0, last_seq, 100_000).await.unwrap();
            let right = postgres.export_messages(&scope, id, 0, last_seq, 100_000).await.unwrap();
            assert_eq!(left, right, "DIFFERENTIAL_SEED={seed}, session {id}");
        }
        let Some(last) = left.last() else { return };
        after = Some(last.session_id);
    }
}
