//! What is known of keys.

use anyhow::Context as _;
use chatstore_core::api_keys::ApiKey;
use chatstore_core::clock::Timestamp;
use chatstore_core::projects::Project;
use chatstore_core::store::Store;

use crate::arguments::key_id;
use crate::settings::print;
use crate::tables::{NOTHING, limits, minute, properties, table};
use crate::{pages, projects};

/// The key that `id` names, also as a whole key, and its project.
pub(super) async fn find(store: &dyn Store, id: &str) -> anyhow::Result<(ApiKey, Project)> {
    let found = store.get_api_key(id).await?;
    found.with_context(|| format!("there is no key with the id `{id}`; `chatstore keys list` shows them"))
}

pub(super) async fn list(store: &dyn Store, project: Option<&str>, now: Timestamp) -> anyhow::Result<()> {
    let project_id = projects::find_id(store, project).await?;
    let rows = pages::api_keys(store, project_id).await?.into_iter().map(|(key, project)| {
        let (state, scopes) = (state(&key, now), key.scopes.to_string());
        let used = key.last_used_at.map_or_else(|| NOTHING.to_owned(), minute);
        let user = key.user_id.unwrap_or_else(|| NOTHING.to_owned());
        [key.key_id, key.name, project, scopes, user, state, used, minute(key.created_at)]
    });
    let titles = ["ID", "NAME", "PROJECT", "SCOPES", "USER", "STATE", "LAST USED", "CREATED"];
    print(&table(titles, rows.collect()))?;
    Ok(())
}

pub(super) async fn show(store: &dyn Store, id: &str, now: Timestamp) -> anyhow::Result<()> {
    let (key, project) = find(store, &key_id(id)?).await?;
    let places = |places: &[String]| (!places.is_empty()).then(|| places.join(", "));
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let before = key.previous.filter(|previous| now < previous.expires_at);
    let mut lines = vec![
        ("id", Some(key.key_id.clone())),
        ("name", Some(key.name.clone())),
        ("project", Some(project.name)),
        ("scopes", Some(key.scopes.to_string())),
        ("user", key.user_id.clone()),
        ("state", Some(state(&key, now))),
        ("secret before until", time(before.map(|previous| previous.expires_at))),
    ];
    lines.extend(limits(&key.settings.limits));
    lines.extend([
        ("origins", places(&key.settings.allowed_origins)),
        ("addresses", places(&key.settings.allowed_addresses)),
        ("created", Some(key.created_at.to_string())),
        ("updated", Some(key.updated_at.to_string())),
        ("expires", time(key.expires_at)),
        ("revoked", time(key.revoked_at)),
        ("last used", time(key.last_used_at)),
    ]);
    print(&properties(lines))?;
    Ok(())
}

fn state(key: &ApiKey, now: Timestamp) -> String {
    match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {}", minute(at)),
        (None, Some(at)) if at <= now => format!("expired {}", minute(at)),
        (None, Some(at)) => format!("until {}", minute(at)),
        (None, None) => "active".to_owned(),
    }
}
