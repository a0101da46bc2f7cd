//! `chatstore keys`: API keys from the host, beside a running server.

mod change;
mod show;

use chatstore_core::clock::Ctx;
use chatstore_core::projects::DEFAULT_PROJECT;
use clap::{Args, Subcommand};

use crate::arguments::{LimitArgs, PlaceArgs};
use crate::engine;
use crate::settings::StoreSettings;

#[derive(Subcommand)]
pub(crate) enum KeysAction {
    /// Make a key: the key alone goes to standard output, and is never shown again.
    Create(CreateArgs),
    /// List all keys; the secrets are not known any more.
    List {
        /// Only the keys of this project.
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
        #[command(flatten)]
        settings: StoreSettings,
    },
    /// Show a key with its limits, and from where it may be used.
    Show(KeyArgs),
    /// Change a key; running servers follow within a second.
    Update(UpdateArgs),
    /// Give a key a new secret: the new key alone goes to standard output, and is never shown again.
    Rotate(RotateArgs),
    /// Revoke a key; running servers refuse it within a second.
    Revoke(KeyArgs),
}

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// What you call it.
    #[arg(long)]
    name: String,
    /// The project it speaks for; made if there is none of this name.
    #[arg(long, default_value = DEFAULT_PROJECT)]
    project: String,
    /// What it may do: read, write, delete, search, admin, operator, separated by commas.
    #[arg(long, default_value = "read,write,delete,search")]
    scopes: String,
    /// The one user it may speak for.
    #[arg(long)]
    user: Option<String>,
    /// How long it works: a number with s, m, h, d or w, such as 30d. For ever if not given.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    places: PlaceArgs,
    #[command(flatten)]
    settings: StoreSettings,
}

#[derive(Args)]
pub(crate) struct KeyArgs {
    /// The key's id: the part between the first two underscores, as `keys list` shows it.
    id: String,
    #[command(flatten)]
    settings: StoreSettings,
}

#[derive(Args)]
pub(crate) struct UpdateArgs {
    /// The key's id.
    id: String,
    /// What you call it.
    #[arg(long)]
    name: Option<String>,
    /// What it may do: read, write, delete, search, admin, operator, separated by commas.
    #[arg(long)]
    scopes: Option<String>,
    /// How long it works from now on, such as 30d; `none` is for ever.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    places: PlaceArgs,
    #[command(flatten)]
    settings: StoreSettings,
}

#[derive(Args)]
pub(crate) struct RotateArgs {
    /// The key's id.
    id: String,
    /// How long the secret before stays valid: a number with s, m, h, d or w; `0s` ends it at once.
    #[arg(long, default_value = "24h", value_name = "TIME")]
    grace: String,
    #[command(flatten)]
    settings: StoreSettings,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn keys(action: KeysAction) -> anyhow::Result<()> {
    let ctx = Ctx::system();
    let settings = match &action {
        KeysAction::Create(args) => &args.settings,
        KeysAction::List { settings, .. } => settings,
        KeysAction::Show(args) | KeysAction::Revoke(args) => &args.settings,
        KeysAction::Update(args) => &args.settings,
        KeysAction::Rotate(args) => &args.settings,
    };
    let config = settings.load()?;
    let open = match &action {
        KeysAction::Create(_) => engine::open_shared(&config, &ctx).await?,
        _ => engine::open_existing(&config, &ctx).await?,
    };
    let store = open.store.as_ref();
    let result = match &action {
        KeysAction::Create(args) => change::create(store, &ctx, args).await,
        KeysAction::List { project, .. } => show::list(store, project.as_deref(), ctx.now()).await,
        KeysAction::Show(args) => show::show(store, &args.id, ctx.now()).await,
        KeysAction::Update(args) => change::update(store, &ctx, args).await,
        KeysAction::Rotate(args) => change::rotate(store, &ctx, args).await,
        KeysAction::Revoke(args) => change::revoke(store, &ctx, &args.id).await,
    };
    store.close().await;
    result
}
