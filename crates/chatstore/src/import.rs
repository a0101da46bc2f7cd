//! `chatstore import`.
use crate::settings::StoreSettings;
use clap::Args;
use std::process::ExitCode;
#[derive(Args)]
pub(crate) struct ImportArgs {
    file: std::path::PathBuf,
    #[command(flatten)]
    settings: StoreSettings,
}
pub(crate) fn import(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let _ = (args.file, args.settings.load()?);
    Ok(ExitCode::SUCCESS)
}
