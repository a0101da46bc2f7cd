//! `chatstore serve`: from settings to a running server, and back down in order.

use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chatstore_core::api_keys::{ApiKey, KeyScopes, PresentedKey};
use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::store::Store;
use chatstore_server::access::AccessSettings;
use chatstore_server::app::{App, RequestLimits};
use chatstore_server::auth::last_used;
use chatstore_server::config::Config;
use chatstore_server::embedder::Embedder;
use chatstore_server::listener::{self, ListenAddr, Listener, ListenerLimits};
use chatstore_server::worker::{self, WorkerPace};
use chatstore_server::{router, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::audit::audited;
use crate::engine::{self, OpenStore};
use crate::settings::ServeSettings;

/// How long the background work gets to give back what it has borrowed, and events of the audit log to be stored.
const WORKER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the store gets to close after the last request.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(1_500);

pub(crate) fn serve(settings: &ServeSettings) -> anyhow::Result<()> {
    let config = settings.load()?;
    let _telemetry = telemetry::init(config.log_level, config.log_format, std::io::stdout().is_terminal())
        .context("cannot start the log")?;
    log_panics();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if config.worker_threads > 0 {
        runtime.worker_threads(config.worker_threads);
    }
    let runtime = runtime.enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(run(&config));
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

/// A panic is logged with its place alone: its message may hold what a client sent.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a panic was caught");
    }));
}

async fn run(config: &Config) -> anyhow::Result<()> {
    let ctx = Ctx::system();
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone()).context("cannot listen for signals")?;
    let embedder = config.embeddings.clone().map(|source| Embedder::new(source, ctx.clone())).transpose();
    let embedder = embedder.map_err(anyhow::Error::msg)?.map(Arc::new);
    // Locked first, for its sentence says more than that of a taken port; bound before a key is
    // made, for a key that nobody could use would be shown and lost.
    let mut lock = engine::lock(config, "serve")?;
    let listener = bind(config).await?;
    let url = listener.local_addr();
    if let Some(lock) = &mut lock {
        lock.announce(&reachable(&url)).context("cannot write the lock file")?;
    }
    let opened = tokio::select! {
        opened = engine::open_patiently(config, &ctx, lock) => opened?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let OpenStore { store, lock, shown } = opened;
    let access = access(config, store.as_ref()).await?;
    let has_root_key = access.api_key.is_some();
    let limits = RequestLimits::from(config);
    let app = App::new(store.clone(), ctx.clone(), access, limits, shutdown.clone()).await?;
    let app = app.with_embeddings(embedder, config.default_dimensions.map(usize::from));
    let first_key = if has_root_key { None } else { make_first_key(&app).await? };
    tracing::info!(url, database = shown, version = env!("CARGO_PKG_VERSION"), "listening");
    greet(&url, &shown, has_root_key, first_key.as_ref());
    if let Some(key) = &first_key {
        note_first_key(&app, key).await;
    }
    let limits = listener_limits(config);
    let worker = worker::start(app.clone(), WorkerPace::default());
    let last_uses = last_used::start(app.clone(), last_used::FLUSH_PAUSE);
    listener::serve(listener, router::router(app.clone()), limits, shutdown).await;
    // They were told to stop at the same time as the listener: most often they have ended long ago.
    let background = tokio::time::timeout(WORKER_TIMEOUT, async { tokio::join!(worker, last_uses) });
    let events = tokio::time::timeout(WORKER_TIMEOUT, app.audit.finish());
    let (background, events) = tokio::join!(background, events);
    // With it goes this server's entry in Redis, if it has one.
    drop(app);
    if background.is_err() {
        tracing::warn!("the background work took too long to end; the next start makes up for it");
    }
    if events.is_err() {
        tracing::error!("events of the audit log could not be stored in time");
    }
    let closed = tokio::time::timeout(CLOSE_TIMEOUT, store.close()).await;
    let stats = store.stats();
    if closed.is_err() {
        tracing::warn!("the store took too long to close; the next start makes up for it");
    }
    tracing::info!(commits = stats.commits, appends = stats.appends, "store closed");
    drop(lock);
    Ok(())
}

async fn bind(config: &Config) -> anyhow::Result<Listener> {
    let address = match &config.unix_socket {
        Some(path) => ListenAddr::Unix(path.clone()),
        None => ListenAddr::Tcp(resolve(config).await?),
    };
    Listener::bind(&address).await.with_context(|| format!("cannot listen on {address} (HOST, PORT, UNIX_SOCKET)"))
}

async fn resolve(config: &Config) -> anyhow::Result<SocketAddr> {
    if let Ok(ip) = config.host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, config.port));
    }
    let mut found = tokio::net::lookup_host((config.host.as_str(), config.port))
        .await
        .with_context(|| format!("HOST `{}` is no address and no name that resolves", config.host))?;
    found.next().with_context(|| format!("HOST `{}` resolves to nothing", config.host))
}

fn listener_limits(config: &Config) -> ListenerLimits {
    ListenerLimits {
        first_byte_timeout: config.first_byte_timeout,
        header_read_timeout: config.header_read_timeout,
        idle_timeout: config.idle_timeout,
        write_stall_timeout: config.write_stall_timeout,
        connections_max: config.connections_max,
        drain_timeout: config.drain_timeout,
        ..ListenerLimits::default()
    }
}

/// The first signal drains; a second one ends the process at once.
fn stop_on_signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "Ctrl-C",
            }
        };
        let name = next().await;
        tracing::info!(signal = name, "stopping: no new connections, running requests finish");
        shutdown.cancel();
        next().await;
        std::process::exit(130);
    });
    Ok(())
}

/// Who may do what. A stored key in `API_KEY` counts as what it is.
async fn access(config: &Config, store: &dyn Store) -> anyhow::Result<AccessSettings> {
    let mut access = AccessSettings::from(config);
    if let Some(key) = &access.api_key
        && is_stored(store, key.expose()).await?
    {
        tracing::warn!("API_KEY holds a stored key: its own scopes, user and expiry count, not all scopes");
        access.api_key = None;
    }
    Ok(access)
}

/// Whether a key made by `keys create` was put into `API_KEY`: it must not outlive its revocation there.
async fn is_stored(store: &dyn Store, key: &str) -> anyhow::Result<bool> {
    let Some(presented) = PresentedKey::parse(key) else { return Ok(false) };
    Ok(store.get_api_key(presented.key_id()).await?.is_some())
}

/// Makes a key with all scopes if there has never been one.
async fn make_first_key(app: &App) -> anyhow::Result<Option<PresentedKey>> {
    let key = PresentedKey::generate(&app.ctx);
    let stored = ApiKey::new(&key, ProjectId::DEFAULT, "first key", KeyScopes::all(), app.ctx.now());
    Ok(app.store.create_first_api_key(stored).await?.then_some(key))
}

/// Notes that the key was made, once it is shown: it will never be made again.
async fn note_first_key(app: &App, key: &PresentedKey) {
    let noted = audited(app.store.as_ref(), &app.ctx, "serve", async |deed| {
        deed.is_meant_for(key.key_id());
        Ok(())
    });
    if let Err(error) = noted.await {
        tracing::error!(error = format!("{error:#}"), "the first key is not in the audit log");
    }
}

/// The address as this host reaches it.
pub(crate) fn reachable(url: &str) -> String {
    url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
}

/// Tells a person where everything is: on standard error, apart from the log. A new key is shown
/// there always, the rest only to a terminal.
fn greet(url: &str, database: &str, has_root_key: bool, first_key: Option<&PresentedKey>) {
    let mut err = std::io::stderr().lock();
    if first_key.is_none() && !err.is_terminal() {
        return;
    }
    let (curl, base) = match url.strip_prefix("unix:") {
        Some(socket) => (format!("curl --unix-socket {socket}"), "http://localhost".to_owned()),
        None => ("curl".to_owned(), reachable(url)),
    };
    let key = match first_key {
        Some(key) => format!("{}   <- shown this once: keep it", key.expose()),
        None if has_root_key => "the one in API_KEY".to_owned(),
        None => "made before; `chatstore keys create --name NAME` makes another".to_owned(),
    };
    let sample = match first_key {
        Some(key) => key.expose(),
        None => "$API_KEY",
    };
    let text = format!(
        "\n  Chatstore {version}\n\n  Docs  {base}/docs\n  Data  {database}\n  Key   {key}\n\n  Try it:\n  \
         {curl} -H 'X-API-Key: {sample}' -H 'Content-Type: application/json' \
         -d '{{\"session_name\": \"Hello\"}}' {base}/api/v1/sessions\n\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    let text =
        if first_key.is_none() { text.replace("'X-API-Key: $API_KEY'", "\"X-API-Key: $API_KEY\"") } else { text };
    // Nobody reads it if this fails.
    let _ = err.write_all(text.as_bytes());
}
