//! `chatstore projects`: tenants from the host, beside a running server.

use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::page::PageRequest;
use chatstore_core::projects::{Project, ProjectPatch, TokenSecret};
use chatstore_core::sessions::SessionQuery;
use chatstore_core::store::{Scope, Store, StoreError};
use clap::{Args, Subcommand};

use crate::arguments::{ProjectArgs, check_project_name, grace_end};
use crate::audit::audited;
use crate::import::progress::counted;
use crate::patience::patiently;
use crate::settings::{StoreSettings, print};
use crate::tables::{NOTHING, limits, minute, properties, table};
use crate::{engine, pages};

/// How long `delete` waits for a server that is deleting the same sessions.
const ERASE_TIMEOUT: Duration = Duration::from_secs(10);
const ERASE_PAUSE: Duration = Duration::from_millis(50);

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
        own: ProjectArgs,
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
    own: ProjectArgs,
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
        ProjectsAction::Create { name, own, .. } => create(store, &ctx, name, own).await,
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

/// The id of the project of this name, if one is named.
pub(crate) async fn find_id(store: &dyn Store, name: Option<&str>) -> anyhow::Result<Option<ProjectId>> {
    let Some(name) = name else { return Ok(None) };
    Ok(Some(find(store, name).await?.project_id))
}

/// The project of this name, made if there is none.
pub(crate) async fn find_or_create(store: &dyn Store, ctx: &Ctx, name: &str) -> anyhow::Result<Project> {
    if let Some(project) = store.get_project_by_name(name).await? {
        return Ok(project);
    }
    check_project_name("--project", name)?;
    let now = ctx.now();
    let made = audited(store, ctx, "projects create", async |deed| {
        match store.create_project(Project::new(ctx.new_project_id(now), name, now), None).await.map(|made| made.value)
        {
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
            own(settings.limits != Default::default() || settings.total_limit.is_some(), "own"),
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
    lines.push(("limit in total", settings.total_limit.as_ref().map(ToString::to_string)));
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

async fn create(store: &dyn Store, ctx: &Ctx, name: &str, own: &ProjectArgs) -> anyhow::Result<()> {
    let project = audited(store, ctx, "projects create", async |deed| {
        check_project_name("the name", name)?;
        let now = ctx.now();
        let mut project = Project::new(ctx.new_project_id(now), name, now);
        own.patch(&project.settings)?.apply(&mut project, now);
        let project = store.create_project(project, None).await.map_err(|error| taken(error, name))?.value;
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
        let patch = ProjectPatch { name: args.new_name.clone(), ..args.own.patch(&before.settings)? };
        if patch == ProjectPatch::default() {
            bail!("say what is to be changed; `chatstore projects update --help` shows what can be");
        }
        if let Some(name) = &patch.name {
            check_project_name("--name", name)?;
        }
        let name = args.new_name.as_deref().unwrap_or(&before.name);
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
    let erased = erase(store, ctx, project.project_id).await.context(
        "its sessions are out of reach, and a server deletes them in the background; deleting them here stopped",
    )?;
    if erased {
        eprintln!("Its sessions are deleted; a running server takes the texts out of the database.");
    } else {
        eprintln!("Its sessions are out of reach; a running server is deleting the rest of them.");
    }
    Ok(())
}

/// Deletes the sessions of deleted projects, so that nothing is left for the next start of a server; tells whether this
/// project has none any more. A running server does the same, and may have taken the project for itself.
async fn erase(store: &dyn Store, ctx: &Ctx, project_id: ProjectId) -> Result<bool, StoreError> {
    let (scope, query) = (Scope::project(project_id), SessionQuery::default());
    let one = PageRequest { limit: 1, ..PageRequest::default() };
    let mut progressed = Instant::now();
    loop {
        while patiently(|| store.erase_deleted_projects(ctx.now())).await? {
            progressed = Instant::now();
        }
        if patiently(|| store.list_sessions(&scope, &query, &one)).await?.items.is_empty() {
            return Ok(true);
        }
        if progressed.elapsed() >= ERASE_TIMEOUT {
            return Ok(false);
        }
        tokio::time::sleep(ERASE_PAUSE).await;
    }
}

async fn rotate_token_secret(store: &dyn Store, ctx: &Ctx, args: &TokenSecretArgs) -> anyhow::Result<()> {
    let secret = (!args.remove).then(|| TokenSecret::generate(ctx));
    audited(store, ctx, "projects token-secret", async |deed| {
        let project = find(store, &args.name).await?;
        deed.concerns(&project);
        let now = ctx.now();
        let until = if args.remove { now } else { grace_end(&args.grace, now)? };
        let project = store.rotate_token_secret(project.project_id, secret, until, now, None).await?.value;
        deed.is_done();
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
    })
    .await
}
