//! The binary: `serve` and the tools around it.

mod agent;
mod arguments;
mod audit;
mod copy;
mod engine;
mod export;
mod health;
mod import;
mod keys;
mod maintenance;
mod pages;
mod patience;
mod projects;
mod reindex;
mod serve;
mod settings;
mod tables;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::settings::{ServeSettings, StoreSettings};

/// A page of messages costs a quarter less with it than with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Durable storage for AI chat applications: sessions and messages over REST.
#[derive(Parser)]
#[command(name = "chatstore", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start the server.
    Serve(ServeSettings),
    /// Bring the database's schema up to date, or tell how it stands.
    Migrate {
        #[command(subcommand)]
        action: maintenance::MigrateAction,
    },
    /// Make, change, rotate and revoke API keys; works beside a running server.
    Keys {
        #[command(subcommand)]
        action: keys::KeysAction,
    },
    /// Make, change and delete projects; works beside a running server.
    Projects {
        #[command(subcommand)]
        action: projects::ProjectsAction,
    },
    /// Read the audit log; works beside a running server.
    Audit {
        #[command(subcommand)]
        action: audit::AuditAction,
    },
    /// List every setting with its value and where that came from; secrets are not shown.
    Config(ServeSettings),
    /// Store conversations from a file of JSON Lines, plain or gzip.
    Import(import::ImportArgs),
    /// Write every conversation of a project as JSON Lines; works beside a running server.
    Export(export::ExportArgs),
    /// Copy everything from one database into another, such as from SQLite to PostgreSQL.
    Copy(copy::CopyArgs),
    /// Make the index of words and the embeddings anew; works beside a running server.
    Reindex(reindex::ReindexArgs),
    /// Write a checked copy of the database; works beside a running server.
    Backup {
        /// The file to write; it must not exist.
        file: PathBuf,
        #[command(flatten)]
        settings: StoreSettings,
    },
    /// Ask a running server whether it is ready: exit status 0 if so, else 1.
    Health(health::HealthArgs),
    /// Print the OpenAPI document.
    Openapi,
    /// Print the version of the program and its engines.
    Version,
    /// Print a script that completes commands in a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("chatstore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(settings) => serve::serve(&settings)?,
        Command::Migrate { action } => maintenance::migrate(action)?,
        Command::Keys { action } => keys::keys(action)?,
        Command::Projects { action } => projects::projects(action)?,
        Command::Audit { action } => audit::audit(action)?,
        Command::Config(settings) => maintenance::print_config(&settings)?,
        Command::Import(args) => return import::import(args),
        Command::Export(args) => export::export(args)?,
        Command::Copy(args) => return copy::copy(args),
        Command::Reindex(args) => reindex::reindex(args)?,
        Command::Backup { file, settings } => maintenance::backup(&file, &settings)?,
        Command::Health(args) => health::health(&args)?,
        Command::Openapi => settings::print(&chatstore_server::openapi::document_text())?,
        Command::Version => settings::print(&version())?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "chatstore", &mut script);
            settings::print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn version() -> String {
    format!("chatstore {} ({})\n", env!("CARGO_PKG_VERSION"), engine::compiled_in())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
