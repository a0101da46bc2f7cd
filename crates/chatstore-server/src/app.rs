//! What handlers share: the store, the clock, the secrets in use and the limits of a request.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use chatstore_core::api_keys::KeyDigest;
use chatstore_core::clock::Ctx;
use chatstore_core::page::CursorKey;
use chatstore_core::store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::access::AccessSettings;
use crate::admission::Admission;
use crate::audit::AuditLog;
use crate::auth::last_used::LastUses;
use crate::auth::{Credentials, Failures};
use crate::config::Config;
use crate::embedder::Embedder;
use crate::quotas::ProjectUsages;
use crate::rate_limit::Limiter;
use crate::sdk_tries::SdkTries;

/// The model of vectors that come without one, where no embedding source names another.
const DEFAULT_MODEL: &str = "default";

/// The limits of one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Bytes of one message's content.
    pub content_bytes_max: usize,
    /// Bytes of a body.
    pub body_bytes_max: usize,
    /// How long a request may take in all.
    pub request_timeout: Duration,
    /// How long a body may take to arrive.
    pub body_read_timeout: Duration,
    /// Bytes a second at which a body must arrive, once it has had a few seconds.
    pub body_bytes_per_second_min: u64,
}

impl From<&Config> for RequestLimits {
    fn from(config: &Config) -> Self {
        Self {
            content_bytes_max: config.content_bytes_max,
            body_bytes_max: config.body_bytes_max,
            request_timeout: config.request_timeout,
            body_read_timeout: config.body_read_timeout,
            body_bytes_per_second_min: config.body_bytes_per_second_min,
        }
    }
}

/// Shared by all handlers; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<AppState>);

/// The inside of [`App`].
pub struct AppState {
    /// The engine.
    pub store: Arc<dyn Store>,
    /// Time, ids and randomness.
    pub ctx: Ctx,
    /// Signs the cursors of lists.
    pub cursor_key: CursorKey,
    /// Who may do what, and how much, as it was set.
    pub access: AccessSettings,
    /// Digest of `API_KEY`, which always works.
    pub root_key: Option<KeyDigest>,
    /// Keys and projects as they are.
    pub credentials: Credentials,
    /// Failed attempts to authenticate.
    pub failures: Failures,
    /// When keys were last used.
    pub last_uses: LastUses,
    /// Counts requests against their limits.
    pub limiter: Limiter,
    /// Lets requests in.
    pub admission: Admission,
    /// What is on its way to the audit log.
    pub audit: AuditLog,
    /// What projects hold, as of a moment ago.
    pub usages: ProjectUsages,
    /// Tries of SDKs that were refused or failed, and those at work.
    pub sdk_tries: SdkTries,
    /// The limits of one request.
    pub limits: RequestLimits,
    /// Cancelled when the process is told to stop.
    pub shutdown: CancellationToken,
    /// Bytes of the bodies that are being received.
    pub bodies_bytes: AtomicUsize,
    /// The OpenAPI document as served.
    pub openapi: Bytes,
    /// The embedding source, if there is one.
    pub embedder: Option<Arc<Embedder>>,
    /// The model of vectors that come without one.
    pub default_model: String,
    /// The length of its vectors; without it, the first one decides.
    pub default_dimensions: Option<usize>,
}

impl App {
    /// Puts an application together.
    ///
    /// # Errors
    /// If the store cannot give its cursor key.
    pub async fn new(
        store: Arc<dyn Store>,
        ctx: Ctx,
        access: AccessSettings,
        limits: RequestLimits,
        shutdown: CancellationToken,
    ) -> Result<Self, StoreError> {
        let cursor_key = store.cursor_key().await?;
        let openapi = Bytes::from(crate::openapi::document_text());
        let root_key = access.api_key.as_ref().map(|key| KeyDigest::of(key.expose()));
        Ok(Self(Arc::new(AppState {
            credentials: Credentials::new(store.clone(), ctx.clone(), access.secret_key.clone()),
            failures: Failures::new(access.failed_auth_rates.clone(), ctx.clone()),
            last_uses: LastUses::default(),
            limiter: Limiter::start(&access, ctx.clone(), &cursor_key).await,
            admission: Admission::new(access.requests_max, ctx.clone()),
            audit: AuditLog::default(),
            usages: ProjectUsages::new(store.clone(), ctx.clone()),
            sdk_tries: SdkTries::new(ctx.clone(), access.openai.sdk_retry_dedupe),
            access,
            store,
            ctx,
            cursor_key,
            root_key,
            limits,
            shutdown,
            bodies_bytes: AtomicUsize::new(0),
            openapi,
            embedder: None,
            default_model: DEFAULT_MODEL.to_owned(),
            default_dimensions: None,
        })))
    }

    /// The same with what is known of embeddings: the source, if there is one, and the length of the default model's
    /// vectors, if it is fixed.
    ///
    /// # Panics
    /// If the application is shared already.
    #[must_use]
    pub fn with_embeddings(mut self, embedder: Option<Arc<Embedder>>, dimensions: Option<usize>) -> Self {
        let state = Arc::get_mut(&mut self.0).expect("an application is put together before it is shared");
        if let Some(embedder) = &embedder {
            embedder.model().clone_into(&mut state.default_model);
        }
        state.embedder = embedder;
        state.default_dimensions = dimensions;
        self
    }

    /// Tells the worker that messages wait for their vectors; another replica's worker looks by itself.
    pub fn embedding_queued(&self) {
        if let Some(embedder) = &self.embedder {
            embedder.wake();
        }
    }
}

impl Deref for App {
    type Target = AppState;

    fn deref(&self) -> &AppState {
        &self.0
    }
}
