//! `chatstore audit export`: the audit log as JSON Lines, beside a running server.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use chatstore_core::audit::{AuditEvent, AuditQuery};
use chatstore_core::clock::Ctx;
use chatstore_core::store::Store;
use chatstore_server::api::audit::AuditEventResponse;
use clap::Subcommand;

use crate::import::progress::counted;
use crate::settings::StoreSettings;
use crate::{engine, pages, projects};

#[derive(Subcommand)]
pub(crate) enum AuditAction {
    /// Write every event as JSON Lines, the newest first; works beside a running server.
    Export {
        /// Only the events of this project; without it, those of all, also of deleted ones.
        #[arg(long, value_name = "NAME")]
        project: Option<String>,
        /// The file to write; it must not exist [default: standard output].
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        settings: StoreSettings,
    },
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn audit(action: AuditAction) -> anyhow::Result<()> {
    let AuditAction::Export { project, output, settings } = action;
    let config = settings.load()?;
    let open = engine::open_existing(&config, &Ctx::system()).await?;
    let result = export(open.store.as_ref(), project.as_deref(), output).await;
    open.store.close().await;
    result
}

async fn export(store: &dyn Store, project: Option<&str>, output: Option<PathBuf>) -> anyhow::Result<()> {
    let project_id = projects::find_id(store, project).await?;
    let query = AuditQuery { project_id, ..AuditQuery::default() };
    let (out, place): (Box<dyn Write>, _) = match &output {
        Some(file) => {
            let created = File::create_new(file).with_context(|| format!("cannot write {}", file.display()))?;
            (Box::new(created), file.display().to_string())
        }
        None => (Box::new(std::io::stdout().lock()), "standard output".to_owned()),
    };
    let mut out = BufWriter::new(out);
    let mut events = 0;
    let mut position = None;
    loop {
        let page = store.list_audit_events(&query, &pages::page_after(position)).await?;
        events += page.items.len() as u64;
        if let Err(error) = write(&mut out, page.items) {
            // A reader that has gone away (`| head`) has what it wants.
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                return Ok(());
            }
            return Err(error).with_context(|| format!("cannot write to {place}"));
        }
        position = page.next;
        if position.is_none() {
            break;
        }
    }
    eprintln!("Exported {}.", counted(events, "event"));
    Ok(())
}

/// Writes a line for each, with the names that `GET /api/v1/admin/audit` gives them.
fn write(out: &mut impl Write, events: Vec<AuditEvent>) -> std::io::Result<()> {
    for event in events {
        serde_json::to_writer(&mut *out, &AuditEventResponse::from(event))?;
        out.write_all(b"\n")?;
    }
    out.flush()
}
