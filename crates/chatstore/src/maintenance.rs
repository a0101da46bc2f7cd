//! `chatstore migrate`, `config` and `backup`.

use std::path::Path;

use anyhow::bail;
use chatstore_core::clock::Ctx;
use chatstore_sqlite::LockFile;
use clap::Subcommand;

use crate::engine::database_path;
use crate::settings::{ServeSettings, StoreSettings, print};

#[derive(Subcommand)]
pub(crate) enum MigrateAction {
    /// Show which migrations are applied; works beside a running server.
    Status(StoreSettings),
    /// Apply what is pending; no server may be running.
    Up(StoreSettings),
}

pub(crate) fn migrate(action: MigrateAction) -> anyhow::Result<()> {
    match action {
        MigrateAction::Status(settings) => {
            let config = settings.load()?;
            let mut text = String::new();
            for step in chatstore_sqlite::migration_status(database_path(&config)?)? {
                let state = step.applied_at.map_or("pending".to_owned(), |at| format!("applied {at}"));
                text.push_str(&format!("{:04} {:<24} {state}\n", step.version, step.name));
            }
            print(&text)?;
        }
        MigrateAction::Up(settings) => {
            let config = settings.load()?;
            let path = database_path(&config)?;
            chatstore_sqlite::prepare_directory(path)?;
            let _lock = LockFile::acquire(path, "migrate")?;
            let applied = chatstore_sqlite::migrate(path, &Ctx::system())?;
            match applied.as_slice() {
                [] => eprintln!("{} is up to date.", path.display()),
                names => eprintln!("Applied to {}: {}.", path.display(), names.join(", ")),
            }
        }
    }
    Ok(())
}

pub(crate) fn backup(file: &Path, settings: &StoreSettings) -> anyhow::Result<()> {
    let config = settings.load()?;
    let path = database_path(&config)?;
    if !path.exists() {
        bail!("there is no database at {}; set DATABASE_URL to the one you mean", path.display());
    }
    let made = chatstore_sqlite::backup(path, file)?;
    eprintln!(
        "Wrote and checked {}: {} sessions, {} messages, {} bytes.",
        file.display(),
        made.sessions,
        made.messages,
        made.bytes
    );
    Ok(())
}

pub(crate) fn print_config(settings: &ServeSettings) -> anyhow::Result<()> {
    let listing = settings.load()?.listing();
    let name_width = listing.iter().map(|setting| setting.name.len()).max().unwrap_or(0);
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let value_width = listing.iter().map(|setting| shown(&setting.value).chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut group = "";
    for setting in &listing {
        if setting.group != group {
            group = setting.group;
            text.push_str(&format!("\n# {group}\n"));
        }
        let (name, value, origin) = (setting.name, shown(&setting.value), &setting.origin);
        text.push_str(&format!("{name:name_width$}  {value:value_width$}  ({origin})\n"));
    }
    print(text.trim_start())?;
    Ok(())
}
