//! Making, changing, rotating and revoking keys. Each is noted in the audit log.

use anyhow::{Context as _, bail};
use chatstore_core::api_keys::{ApiKey, ApiKeyPatch, Authority, PresentedKey};
use chatstore_core::clock::Ctx;
use chatstore_core::limits::{NAME_BYTES_MAX, USER_ID_BYTES_MAX};
use chatstore_core::rates::ClassRates;
use chatstore_core::store::{Store, StoreError};

use super::show::find;
use super::{CreateArgs, RotateArgs, UpdateArgs};
use crate::arguments::{check_name, expiry, expiry_or_none, grace_end, key_id, scopes};
use crate::audit::{Deed, audited};
use crate::projects;
use crate::settings::print;

pub(super) async fn create(store: &dyn Store, ctx: &Ctx, args: &CreateArgs) -> anyhow::Result<()> {
    let presented = PresentedKey::generate(ctx);
    audited(store, ctx, "keys create", async |deed| {
        check_name("--name", &args.name, NAME_BYTES_MAX)?;
        if let Some(user) = &args.user {
            check_name("--user", user, USER_ID_BYTES_MAX)?;
        }
        let now = ctx.now();
        let scopes = scopes(&args.scopes)?;
        let expires_at = args.expires.as_deref().map(|text| expiry(text, now)).transpose()?;
        let limits = args.limits.over(Default::default())?.unwrap_or_default();
        let (origins, addresses) = (args.places.origins()?, args.places.addresses()?);
        let project = projects::find_or_create(store, ctx, &args.project).await?;
        let mut key = ApiKey::new(&presented, project.project_id, &args.name, scopes, now);
        key.user_id.clone_from(&args.user);
        key.expires_at = expires_at;
        key.settings.limits_by_operator = limits != ClassRates::default();
        key.settings.limits = limits;
        key.settings.allowed_origins = origins.unwrap_or_default();
        key.settings.allowed_addresses = addresses.unwrap_or_default();
        deed.concerns_key(&key);
        store.create_api_key(key.clone(), None).await.context("the key was not stored")?;
        deed.is_done();
        let until = key.expires_at.map_or("for ever".to_owned(), |at| format!("until {at}"));
        let (id, scopes, project) = (key.key_id, key.scopes, project.name);
        eprintln!("Key {id} for project {project} may {scopes}, {until}. It is shown this once:");
        print(&format!("{}\n", presented.expose())).context("the key could not be printed; revoke it and make another")
    })
    .await
}

pub(super) async fn update(store: &dyn Store, ctx: &Ctx, args: &UpdateArgs) -> anyhow::Result<()> {
    let key = audited(store, ctx, "keys update", async |deed| {
        let before = found(store, deed, &args.id).await?;
        let now = ctx.now();
        let limits = args.limits.over(before.settings.limits)?;
        let patch = ApiKeyPatch {
            name: args.name.clone(),
            scopes: args.scopes.as_deref().map(scopes).transpose()?,
            expires_at: args.expires.as_deref().map(|text| expiry_or_none(text, now)).transpose()?,
            limits_by_operator: limits.as_ref().map(|limits| *limits != ClassRates::default()),
            limits,
            allowed_origins: args.places.origins()?,
            allowed_addresses: args.places.addresses()?,
        };
        if patch == ApiKeyPatch::default() {
            bail!("say what is to be changed; `chatstore keys update --help` shows what can be");
        }
        check_name("--name", patch.name.as_deref().unwrap_or(&before.name), NAME_BYTES_MAX)?;
        Ok(store.update_api_key(&Authority::host(), &before.key_id, patch, now).await?)
    });
    let key = key.await?;
    eprintln!("Changed the key {} ({}).", key.key_id, key.name);
    Ok(())
}

pub(super) async fn rotate(store: &dyn Store, ctx: &Ctx, args: &RotateArgs) -> anyhow::Result<()> {
    audited(store, ctx, "keys rotate", async |deed| {
        let before = found(store, deed, &args.id).await?;
        let now = ctx.now();
        let until = grace_end(&args.grace, now)?;
        let presented = PresentedKey::rotate(ctx, &before.key_id).context("the key's id is not one of ours")?;
        let rotated =
            store.rotate_api_key(&Authority::host(), &before.key_id, presented.digest(), until, now, None).await;
        let key = match rotated {
            Err(StoreError::Conflict { .. }) => bail!("the key {} is revoked; make another", before.key_id),
            rotated => rotated?.value,
        };
        deed.is_done();
        let before = match key.previous {
            Some(previous) => format!("the one before works until {}", previous.expires_at),
            None => "the one before works no more".to_owned(),
        };
        eprintln!("The key {} ({}) has a new secret; {before}. It is shown this once:", key.key_id, key.name);
        print(&format!("{}\n", presented.expose())).context("the key could not be printed; rotate it once more")
    })
    .await
}

pub(super) async fn revoke(store: &dyn Store, ctx: &Ctx, id: &str) -> anyhow::Result<()> {
    let now = ctx.now();
    let key = audited(store, ctx, "keys revoke", async |deed| {
        let before = found(store, deed, id).await?;
        Ok(store.revoke_api_key(&Authority::host(), &before.key_id, now).await?)
    });
    let key = key.await?;
    eprintln!("Key {} ({}) is revoked since {}.", key.key_id, key.name, key.revoked_at.unwrap_or(now));
    Ok(())
}

/// The key that is to be changed.
async fn found(store: &dyn Store, deed: &mut Deed, id: &str) -> anyhow::Result<ApiKey> {
    let id = key_id(id)?;
    deed.is_meant_for(&id);
    let (key, _) = find(store, &id).await?;
    deed.concerns_key(&key);
    Ok(key)
}
