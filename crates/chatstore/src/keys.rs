//! `chatstore keys`: API keys from the host, beside a running server.

use anyhow::{Context as _, bail};
use chatstore_core::api_keys::{ApiKey, KeyScopes, Permission, PresentedKey};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::limits::{NAME_BYTES_MAX, USER_ID_BYTES_MAX};
use chatstore_core::projects::DEFAULT_PROJECT;
use chatstore_core::store::{Store, StoreError};
use clap::Subcommand;

use crate::engine;
use crate::projects::{self, check_name};
use crate::settings::{StoreSettings, print};

#[derive(Subcommand)]
pub(crate) enum KeysAction {
    /// Make a key: the key alone goes to standard output, and is never shown again.
    Create {
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
        #[arg(long)]
        expires: Option<String>,
        #[command(flatten)]
        settings: StoreSettings,
    },
    /// List all keys; the secrets are not known any more.
    List {
        #[command(flatten)]
        settings: StoreSettings,
    },
    /// Revoke a key; running servers refuse it within a second.
    Revoke {
        /// The key's id: the part between the first two underscores, as `keys list` shows it.
        id: String,
        #[command(flatten)]
        settings: StoreSettings,
    },
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn keys(action: KeysAction) -> anyhow::Result<()> {
    let ctx = Ctx::system();
    let settings = match &action {
        KeysAction::Create { settings, .. } | KeysAction::List { settings } | KeysAction::Revoke { settings, .. } => {
            settings
        }
    };
    let config = settings.load()?;
    let open = match &action {
        KeysAction::Create { .. } => engine::open_shared(&config, &ctx).await?,
        KeysAction::List { .. } | KeysAction::Revoke { .. } => engine::open_existing(&config, &ctx).await?,
    };
    let store = open.store.as_ref();
    let result = match action {
        KeysAction::Create { name, project, scopes, user, expires, .. } => {
            create(store, &ctx, NewKey { name, project, scopes, user, expires }).await
        }
        KeysAction::List { .. } => list(store, ctx.now()).await,
        KeysAction::Revoke { id, .. } => revoke(store, &id, ctx.now()).await,
    };
    store.close().await;
    result
}

struct NewKey {
    name: String,
    project: String,
    scopes: String,
    user: Option<String>,
    expires: Option<String>,
}

async fn create(store: &dyn Store, ctx: &Ctx, new: NewKey) -> anyhow::Result<()> {
    check_name("--name", &new.name, NAME_BYTES_MAX)?;
    if let Some(user) = &new.user {
        check_name("--user", user, USER_ID_BYTES_MAX)?;
    }
    let known = Permission::ALL.map(Permission::as_str).join(", ");
    let scopes = match KeyScopes::parse(&new.scopes) {
        Ok(scopes) if !scopes.is_empty() => scopes,
        Ok(_) => bail!("--scopes names no scope; there are {known}"),
        Err(name) => bail!("--scopes: there is no scope `{name}`; there are {known}"),
    };
    let now = ctx.now();
    let expires_at = new.expires.as_deref().map(|text| expiry(text, now)).transpose()?;
    let project = projects::find_or_create(store, ctx, &new.project).await?;
    let key = PresentedKey::generate(ctx);
    let stored = ApiKey {
        key_id: key.key_id().to_owned(),
        project_id: project.project_id,
        name: new.name,
        digest: key.digest(),
        scopes,
        user_id: new.user,
        created_at: now,
        expires_at,
        revoked_at: None,
    };
    store.create_api_key(stored).await.context("the key was not stored")?;
    let until = expires_at.map_or("for ever".to_owned(), |at| format!("until {at}"));
    eprintln!("Key {} for project {} may {scopes}, {until}. It is shown this once:", key.key_id(), project.name);
    print(&format!("{}\n", key.expose())).context("the key could not be printed; revoke it and make another")
}

async fn list(store: &dyn Store, now: Timestamp) -> anyhow::Result<()> {
    let keys = store.list_api_keys().await?;
    let mut rows = vec![["ID", "NAME", "PROJECT", "SCOPES", "USER", "STATE", "CREATED"].map(ToOwned::to_owned)];
    for (key, project) in keys {
        let state = match (key.revoked_at, key.expires_at) {
            (Some(at), _) => format!("revoked {}", day(at)),
            (None, Some(at)) if at <= now => format!("expired {}", day(at)),
            (None, Some(at)) => format!("until {}", day(at)),
            (None, None) => "active".to_owned(),
        };
        let user = key.user_id.unwrap_or_else(|| "-".to_owned());
        let cells = [key.key_id, key.name, project, key.scopes.to_string(), user, state, day(key.created_at)];
        rows.push(cells.map(|cell| cell.replace(char::is_control, "?")));
    }
    print(&table(&rows))?;
    Ok(())
}

fn day(at: Timestamp) -> String {
    at.to_string().chars().take(16).collect::<String>().replace('T', " ")
}

/// Columns as wide as their widest cell.
fn table(rows: &[[String; 7]]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (n, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

async fn revoke(store: &dyn Store, id: &str, now: Timestamp) -> anyhow::Result<()> {
    // Somebody may well paste the whole key, which is then not repeated.
    let whole = PresentedKey::parse(id);
    let id = whole.as_ref().map_or(id, PresentedKey::key_id);
    if whole.is_none() && id.len() > 32 {
        bail!("that is no id of a key; `chatstore keys list` shows them");
    }
    match store.revoke_api_key(id, now).await {
        Ok(key) => {
            eprintln!("Key {} ({}) is revoked since {}.", key.key_id, key.name, key.revoked_at.unwrap_or(now));
            Ok(())
        }
        Err(StoreError::NotFound) => bail!("there is no key with the id `{id}`; `chatstore keys list` shows them"),
        Err(error) => Err(error.into()),
    }
}

fn expiry(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    let form = || format!("--expires must be a number with s, m, h, d or w, such as 30d, not `{text}`");
    let unit = text.chars().last().with_context(form)?;
    let seconds: i64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => bail!(form()),
    };
    let count: i64 = text[..text.len() - 1].parse().ok().filter(|count| *count > 0).with_context(form)?;
    let us = count.checked_mul(seconds).and_then(|s| s.checked_mul(1_000_000)).with_context(form)?;
    Ok(now.plus_micros(us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiries_are_read() {
        let now = Timestamp::from_micros(0).unwrap();
        assert_eq!(expiry("30d", now).unwrap().as_micros(), 30 * 86_400_000_000);
        assert_eq!(expiry("2w", now).unwrap(), expiry("14d", now).unwrap());
        for text in ["", "d", "30", "-1d", "0d", "1y", "1é", "99999999999999d"] {
            assert!(expiry(text, now).is_err(), "{text}");
        }
    }
}
