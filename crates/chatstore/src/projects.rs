//! `chatstore projects`: tenants from the host, beside a running server.

use anyhow::{Context as _, anyhow, bail};
use chatstore_core::clock::Ctx;
use chatstore_core::limits::NAME_BYTES_MAX;
use chatstore_core::projects::{Project, ProjectPatch, TokenSecret};
use chatstore_core::store::{Store, StoreError};
use clap::{Args, Subcommand};

use crate::arguments::{LimitArgs, QuotaArgs, check_name, grace_end};
use crate::audit::audited;
use crate::import::progress::counted;
use crate::patience::patiently;
use crate::settings::{StoreSettings, print};
use crate::tables::{NOTHING, limits, minute, properties, table};
use crate::{engine, pages};

#[derive(Subcommand)]
pub(crate) enum ProjectsAction {
    /// List all projects.
    List(StoreSettings),
    /// Show a project with its limits and quotas, and what it holds.
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        settings: StoreSettings,
    },
    /// Make a project.
    Create {
        /// What it is to be called.
        name: String,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        quotas: QuotaArgs,
        #[command(flatten)]
        settings: StoreSettings,
    },
    /// Change a project; running servers follow within a second.
    Update(UpdateArgs),
    /// Delete a project for good: its keys, its sessions and all messages in them.
    Delete {
        /// Its name.
        name: String,
        /// Do it.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        settings: StoreSettings,
    },
    /// Give a project a new secret for its user tokens (HS256): the secret alone goes to standard output, and is never
    /// shown again.
    TokenSecret(TokenSecretArgs),
}

#[derive(Args)]
pub(crate) struct UpdateArgs {
    /// Its name.
    name: String,
    /// What it is to be called from now on.
    #[arg(long = "name", id = "new_name", value_name = "NAME")]
    new_name: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    quotas: QuotaArgs,
    #[command(flatten)]
    settings: StoreSettings,
}

#[derive(Args)]
pub(crate) struct TokenSecretArgs {
    /// The project's name.
    name: String,
    /// How long tokens that the secret before signed stay valid: a number with s, m, h, d or w.
    #[arg(long, default_value = "24h", value_name = "TIME")]
    grace: String,
    /// Take the project's secrets away; what they signed is refused at once.
    #[arg(long, conflicts_with = "grace")]
    remove: bool,
    #[command(flatten)]
    settings: StoreSettings,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn projects(action: ProjectsAction) -> anyhow::Result<()> {
    let ctx = Ctx::system();
    let settings = match &action {
        ProjectsAction::List(settings)
        | ProjectsAction::Show { settings, .. }
        | ProjectsAction::Create { settings, .. }
        | ProjectsAction::Delete { settings, .. } => settings,
        ProjectsAction::Update(args) => &args.settings,
        ProjectsAction::TokenSecret(args) => &args.settings,
    };
    let config = settings.load()?;
    let open = match &action {
        ProjectsAction::Create { .. } => engine::open_shared(&config, &ctx).await?,
        _ => engine::open_existing(&config, &ctx).await?,
    };
    let store = open.store.as_ref();
    let result = match &action {
        ProjectsAction::List(_) => list(store).await,
        ProjectsAction::Show { name, .. } => show(store, name).await,
        ProjectsAction::Create { name, limits, quotas, .. } => create(store, &ctx, name, limits, quotas).await,
        ProjectsAction::Update(args) => update(store, &ctx, args).await,
        ProjectsAction::Delete { name, yes, .. } => delete(store, &ctx, name, *yes).await,
        ProjectsAction::TokenSecret(args) => rotate_token_secret(store, &ctx, args).await,
    };
    store.close().await;
    result
}

/// The project of this name.
pub(crate) async fn find(store: &dyn Store, name: &str) -> anyhow::Result<Project> {
    let found = store.get_project_by_name(name).await?;
    found.with_context(|| format!("there is no project named `{name}`; `chatstore projects list` shows them"))
}

/// The project of this name, made if there is none.
pub(crate) async fn find_or_create(store: &dyn Store, ctx: &Ctx, name: &str) -> anyhow::Result<Project> {
    check_name("--project", name, NAME_BYTES_MAX)?;
    if let Some(project) = store.get_project_by_name(name).await? {
        return Ok(project);
    }
    let now = ctx.now();
    let made = audited(store, ctx, "projects create", async |deed| {
        match store.create_project(Project::new(ctx.new_project_id(now), name, now)).await {
            Ok(project) => {
                deed.concerns(&project);
                Ok(Some(project))
            }
            // Another process was faster.
            Err(StoreError::Conflict { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    });
    if let Some(project) = made.await? {
        eprintln!("Made the project {name}.");
        return Ok(project);
    }
    find(store, name).await
}

async fn list(store: &dyn Store) -> anyhow::Result<()> {
    let rows = pages::projects(store).await?.into_iter().map(|project| {
        let own = |is_own: bool, text: &str| if is_own { text } else { NOTHING }.to_owned();
        let settings = &project.settings;
        [
            project.project_id.to_string(),
            project.name.clone(),
            own(settings.limits != Default::default(), "own"),
            own(settings.quotas != Default::default(), "own"),
            minute(project.created_at),
        ]
    });
    print(&table(["ID", "NAME", "LIMITS", "QUOTAS", "CREATED"], rows.collect()))?;
    Ok(())
}

async fn show(store: &dyn Store, name: &str) -> anyhow::Result<()> {
    let project = find(store, name).await?;
    let usage = store.get_project_usage(project.project_id).await?;
    let (settings, secrets) = (&project.settings, project.token_secrets.len() as u64);
    let number = |quota: Option<u64>| quota.map(|number| number.to_string());
    let mut lines = vec![("id", Some(project.project_id.to_string())), ("name", Some(project.name.clone()))];
    lines.extend(limits(&settings.limits));
    lines.extend([
        ("sessions a user", number(settings.quotas.sessions_per_user)),
        ("messages a session", number(settings.quotas.messages_per_session)),
        ("bytes at most", number(settings.quotas.project_bytes)),
        ("token secrets", (secrets > 0).then(|| secrets.to_string())),
        ("token public keys", number(Some(settings.tokens.public_keys.len() as u64).filter(|keys| *keys > 0))),
        ("token audience", settings.tokens.audience.clone()),
        ("token issuer", settings.tokens.issuer.clone()),
        ("created", Some(project.created_at.to_string())),
        ("updated", Some(project.updated_at.to_string())),
        ("sessions", Some(usage.sessions.to_string())),
        ("messages", Some(usage.messages.to_string())),
        ("bytes", Some(usage.bytes.to_string())),
    ]);
    print(&properties(lines))?;
    Ok(())
}

async fn create(
    store: &dyn Store,
    ctx: &Ctx,
    name: &str,
    limits: &LimitArgs,
    quotas: &QuotaArgs,
) -> anyhow::Result<()> {
    let project = audited(store, ctx, "projects create", async |deed| {
        check_name("the name", name, NAME_BYTES_MAX)?;
        let now = ctx.now();
        let mut project = Project::new(ctx.new_project_id(now), name, now);
        project.settings.limits = limits.over(Default::default())?.unwrap_or_default();
        project.settings.quotas = quotas.over(Default::default())?.unwrap_or_default();
        let project = store.create_project(project).await.map_err(|error| taken(error, name))?;
        deed.concerns(&project);
        Ok(project)
    });
    let project = project.await?;
    eprintln!("Made the project {name} with the id {}.", project.project_id);
    Ok(())
}

async fn update(store: &dyn Store, ctx: &Ctx, args: &UpdateArgs) -> anyhow::Result<()> {
    let project = audited(store, ctx, "projects update", async |deed| {
        let before = find(store, &args.name).await?;
        deed.concerns(&before);
        let patch = ProjectPatch {
            name: args.new_name.clone(),
            limits: args.limits.over(before.settings.limits)?,
            quotas: args.quotas.over(before.settings.quotas)?,
            tokens: None,
        };
        if patch == ProjectPatch::default() {
            bail!("say what is to be changed; `chatstore projects update --help` shows what can be");
        }
        let name = args.new_name.as_deref().unwrap_or(&before.name);
        check_name("--name", name, NAME_BYTES_MAX)?;
        store.update_project(before.project_id, patch, ctx.now()).await.map_err(|error| taken(error, name))
    });
    eprintln!("Changed the project {}.", project.await?.name);
    Ok(())
}

/// A refused name, in words.
fn taken(error: StoreError, name: &str) -> anyhow::Error {
    match error {
        StoreError::Conflict { .. } => anyhow!("there is a project named `{name}` already"),
        error => error.into(),
    }
}

async fn delete(store: &dyn Store, ctx: &Ctx, name: &str, yes: bool) -> anyhow::Result<()> {
    let project = find(store, name).await?;
    if !yes {
        let usage = store.get_project_usage(project.project_id).await?;
        bail!(
            "the project {name} has {} with {}, which would be gone for good; add --yes to delete it",
            counted(usage.sessions, "session"),
            counted(usage.messages, "message")
        );
    }
    let deleted = audited(store, ctx, "projects delete", async |deed| {
        deed.concerns(&project);
        match store.delete_project(project.project_id, ctx.now()).await {
            Err(StoreError::Invalid { .. }) => bail!("the project {name} cannot be deleted: API_KEY speaks for it"),
            result => Ok(result?),
        }
    });
    deleted.await?;
    eprintln!("Deleted the project {name}; its keys are revoked.");
    // A running server would do it, too; where there is none, nothing should be left for the next start.
    while patiently(|| store.erase_deleted_projects(ctx.now())).await.context(
        "its sessions are out of reach, and a server deletes them in the background; deleting them here stopped",
    )? {}
    eprintln!("Its sessions are deleted; a running server takes the texts out of the database.");
    Ok(())
}

async fn rotate_token_secret(store: &dyn Store, ctx: &Ctx, args: &TokenSecretArgs) -> anyhow::Result<()> {
    let secret = (!args.remove).then(|| TokenSecret::generate(ctx));
    let project = audited(store, ctx, "projects token-secret", async |deed| {
        let project = find(store, &args.name).await?;
        deed.concerns(&project);
        let now = ctx.now();
        let until = if args.remove { now } else { grace_end(&args.grace, now)? };
        Ok(store.rotate_token_secret(project.project_id, secret, until, now).await?)
    });
    let project = project.await?;
    let Some(secret) = secret else {
        eprintln!("The project {} has no secret for user tokens any more.", project.name);
        return Ok(());
    };
    let before = match project.token_secrets.get(1).and_then(|secret| secret.expires_at) {
        Some(at) => format!("; the one before works until {at}"),
        None => String::new(),
    };
    eprintln!("The project {} has a new secret for user tokens{before}. It is shown this once:", project.name);
    print(&format!("{}\n", secret.expose())).context("the secret could not be printed; make another")
}
