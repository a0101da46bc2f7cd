//! The application under test: a fresh store of one engine, its personas, and the router.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use chatstore_core::api_keys::{ApiKey, Authority, KeyScopes, PresentedKey};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::Project;
use chatstore_core::store::Store;
use chatstore_postgres::testing::TestDatabase;
use chatstore_postgres::{PostgresOptions, PostgresStore};
use chatstore_server::access::AccessSettings;
use chatstore_server::app::{App, RequestLimits};
use chatstore_server::config::Secret;
use chatstore_server::listener::{self, ListenAddr, Listener, ListenerLimits};
use chatstore_server::router;
use chatstore_sqlite::{SqliteOptions, SqliteStore, Synchronous};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::client::Client;

/// The key in `API_KEY`.
pub(crate) const ROOT_KEY: &str = "root-key-of-the-tests";
/// Microseconds between two readings of the clock.
pub(crate) const STEP_US: i64 = 1_000;

/// The stores the suite runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Sqlite,
    /// By a role that may only read and write rows.
    Postgres,
}

/// Where a store stands; it goes when the test ends.
enum Place {
    Folder(TempDir),
    Database(#[expect(dead_code, reason = "it is kept, not read")] TestDatabase),
}

impl Engine {
    async fn open(self) -> (Arc<dyn Store>, Place) {
        match self {
            Self::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("chatstore.db");
                chatstore_sqlite::migrate(&path, &Ctx::system()).unwrap();
                let mut options = SqliteOptions::new(path);
                // Nothing here pulls the plug, and waiting for the disk is most of a test's time.
                options.synchronous = Synchronous::Normal;
                (Arc::new(SqliteStore::open(&options).unwrap()), Place::Folder(folder))
            }
            Self::Postgres => {
                let database = TestDatabase::create().await;
                let mut options = PostgresOptions::new(database.url());
                options.connections_max = 4;
                // Who waits for one of so few on a busy machine is not refused.
                options.acquire_timeout = Duration::from_secs(30);
                let store = PostgresStore::open(&options).await.unwrap();
                (Arc::new(store), Place::Database(database))
            }
        }
    }
}

/// Makes each check of a file one test an engine. A check that is not listed is dead code, which
/// the lints refuse.
macro_rules! api_tests {
    ($($name:ident)*) => {
        $crate::app::api_tests!(@on sqlite, Sqlite, $($name)*);
        $crate::app::api_tests!(@on postgres, Postgres, $($name)*);
    };
    (@on $module:ident, $engine:ident, $($name:ident)*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $name() {
                    super::$name($crate::app::TestApp::start($crate::app::Engine::$engine).await).await;
                }
            )*
        }
    };
}
pub(crate) use api_tests;

/// A running application. `default` is the project of `API_KEY`, `other` a second one.
pub(crate) struct TestApp {
    pub(crate) engine: Engine,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) ctx: Ctx,
    pub(crate) other: ProjectId,
    pub(crate) router: Router,
    pub(crate) shutdown: CancellationToken,
    personas: Arc<Personas>,
    place: Arc<Place>,
}

struct Personas {
    alice: String,
    bob: String,
    reader: String,
    writer: String,
    stranger: String,
    revoked: String,
    expired: String,
}

/// Limits that no test meets by accident.
pub(crate) fn limits() -> RequestLimits {
    RequestLimits {
        content_bytes_max: 1 << 20,
        body_bytes_max: 16 << 20,
        request_timeout: Duration::from_secs(60),
        body_read_timeout: Duration::from_secs(60),
        body_bytes_per_second_min: 0,
    }
}

impl TestApp {
    /// An application on a fresh store.
    pub(crate) async fn start(engine: Engine) -> Self {
        let ctx = Ctx::fixed(Timestamp::parse("2026-01-15T12:00:00Z").unwrap(), STEP_US, 7);
        let (store, place) = engine.open().await;
        let created_at = ctx.now();
        let other = ctx.new_project_id(created_at);
        store.create_project(Project::new(other, "other", created_at), None).await.unwrap();
        let default = ProjectId::DEFAULT;
        let key = async |project_id, scopes: &str, user_id: Option<&str>| {
            store_key(&*store, &ctx, (project_id, scopes, user_id), None).await
        };
        let all = "read,write,delete,search,admin,operator";
        let personas = Personas {
            alice: key(default, all, Some("alice")).await,
            bob: key(default, all, Some("bob")).await,
            reader: key(default, "read", None).await,
            writer: key(default, "read,write", None).await,
            stranger: key(other, all, None).await,
            revoked: key(default, all, None).await,
            expired: store_key(&*store, &ctx, (default, all, None), Some(ctx.now())).await,
        };
        let revoked = PresentedKey::parse(&personas.revoked).unwrap();
        store.revoke_api_key(&Authority::host(), revoked.key_id(), ctx.now()).await.unwrap();
        let (router, shutdown) = build(store.clone(), &ctx, access(), limits()).await;
        let (personas, place) = (Arc::new(personas), Arc::new(place));
        Self { engine, store, ctx, other, router, shutdown, personas, place }
    }

    /// The same application with another store in front of its own, or with other limits.
    pub(crate) async fn rebuild(
        &self,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
        limits: RequestLimits,
    ) -> Self {
        self.rebuild_with(wrap, access(), limits).await
    }

    /// The same application with other settings of access.
    pub(crate) async fn with_access(&self, access: AccessSettings) -> Self {
        self.rebuild_with(|store| store, access, limits()).await
    }

    /// The same application with both.
    pub(crate) async fn rebuild_with(
        &self,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
        access: AccessSettings,
        limits: RequestLimits,
    ) -> Self {
        let store = wrap(self.store.clone());
        let (router, shutdown) = build(store.clone(), &self.ctx, access, limits).await;
        let (personas, place) = (self.personas.clone(), self.place.clone());
        let (engine, ctx, other) = (self.engine, self.ctx.clone(), self.other);
        Self { engine, store, ctx, other, router, shutdown, personas, place }
    }

    /// All bytes of the files of SQLite.
    pub(crate) fn file_bytes(&self) -> Vec<u8> {
        let Place::Folder(folder) = &*self.place else { panic!("PostgreSQL has files of its own") };
        let files = std::fs::read_dir(folder.path()).unwrap();
        files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
    }

    /// Stores a key and gives its text.
    pub(crate) async fn key(&self, project_id: ProjectId, scopes: &str, user_id: Option<&str>) -> String {
        store_key(&*self.store, &self.ctx, (project_id, scopes, user_id), None).await
    }

    /// A client that presents `key`.
    pub(crate) fn client(&self, key: &str) -> Client {
        self.anon().with("x-api-key", key)
    }

    /// Nobody: no key.
    pub(crate) fn anon(&self) -> Client {
        Client::new(self.router.clone())
    }

    /// The operator, with the key of `API_KEY`.
    pub(crate) fn admin(&self) -> Client {
        self.client(ROOT_KEY)
    }

    /// A user of the default project; the key is bound to the user.
    pub(crate) fn alice(&self) -> Client {
        self.client(&self.personas.alice)
    }

    /// Another user of the default project.
    pub(crate) fn bob(&self) -> Client {
        self.client(&self.personas.bob)
    }

    /// May only read.
    pub(crate) fn reader(&self) -> Client {
        self.client(&self.personas.reader)
    }

    /// May read and write, not delete.
    pub(crate) fn writer(&self) -> Client {
        self.client(&self.personas.writer)
    }

    /// Everything, in the other project.
    pub(crate) fn stranger(&self) -> Client {
        self.client(&self.personas.stranger)
    }

    /// The text of a revoked key.
    pub(crate) fn revoked_key(&self) -> &str {
        &self.personas.revoked
    }

    /// The text of an expired key.
    pub(crate) fn expired_key(&self) -> &str {
        &self.personas.expired
    }

    /// The text of a key that works.
    pub(crate) fn alice_key(&self) -> &str {
        &self.personas.alice
    }

    /// Serves the application on a socket of its own and connects to it.
    pub(crate) async fn connect(&self) -> (TcpStream, DropGuard) {
        let listener = Listener::bind(&ListenAddr::Tcp(([127, 0, 0, 1], 0).into())).await.unwrap();
        let address = listener.tcp_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(listener::serve(listener, self.router.clone(), ListenerLimits::default(), stop.clone()));
        (TcpStream::connect(address).await.unwrap(), stop.drop_guard())
    }
}

/// Settings of access under which nothing is limited and `ROOT_KEY` works.
pub(crate) fn access() -> AccessSettings {
    AccessSettings { api_key: Some(Secret::new(ROOT_KEY)), ..AccessSettings::default() }
}

async fn build(
    store: Arc<dyn Store>,
    ctx: &Ctx,
    access: AccessSettings,
    limits: RequestLimits,
) -> (Router, CancellationToken) {
    let shutdown = CancellationToken::new();
    let app = App::new(store, ctx.clone(), access, limits, shutdown.clone()).await.unwrap();
    (router::router(app), shutdown)
}

async fn store_key(
    store: &dyn Store,
    ctx: &Ctx,
    (project_id, scopes, user_id): (ProjectId, &str, Option<&str>),
    expires_at: Option<Timestamp>,
) -> String {
    let presented = PresentedKey::generate(ctx);
    let scopes = KeyScopes::parse(scopes).unwrap();
    let key = ApiKey::new(&presented, project_id, "a key", scopes, ctx.now());
    store.create_api_key(ApiKey { user_id: user_id.map(ToOwned::to_owned), expires_at, ..key }, None).await.unwrap();
    presented.expose().to_owned()
}
