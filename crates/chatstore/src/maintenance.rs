//! `chatstore migrate`, `config` and `backup`.

use std::path::Path;

use chatstore_core::clock::Ctx;
use clap::Subcommand;

use crate::engine;
use crate::settings::{ServeSettings, StoreSettings, print};

#[derive(Subcommand)]
pub(crate) enum MigrateAction {
    /// Show which migrations are applied; works beside a running server.
    Status(StoreSettings),
    /// Apply what is pending; on SQLite no server may be running.
    Up(StoreSettings),
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn migrate(action: MigrateAction) -> anyhow::Result<()> {
    match action {
        MigrateAction::Status(settings) => {
            let config = settings.load()?;
            let mut text = String::new();
            for step in engine::migration_status(&config).await? {
                let state = step.applied_at.map_or("pending".to_owned(), |at| format!("applied {at}"));
                text.push_str(&format!("{:04} {:<24} {state}\n", step.version, step.name));
            }
            print(&text)?;
        }
        MigrateAction::Up(settings) => {
            let config = settings.load()?;
            let (applied, shown) = engine::migrate(&config, &Ctx::system()).await?;
            match applied.as_slice() {
                [] => eprintln!("{shown} is up to date."),
                names => eprintln!("Applied to {shown}: {}.", names.join(", ")),
            }
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn backup(file: &Path, settings: &StoreSettings) -> anyhow::Result<()> {
    let config = settings.load()?;
    let made = engine::backup(&config, file).await?;
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
