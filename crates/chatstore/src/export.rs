//! `chatstore export`.
use crate::settings::StoreSettings;
use clap::Args;
#[derive(Args)]
pub(crate) struct ExportArgs {
    file: Option<std::path::PathBuf>,
    #[command(flatten)]
    settings: StoreSettings,
}
pub(crate) fn export(args: ExportArgs) -> anyhow::Result<()> {
    let _ = (args.file, args.settings.load()?);
    Ok(())
}
