//! `chatstore import`: conversations from JSON Lines, straight into the store or through a running
//! server.

mod client;
mod direct;
mod http;
mod lines;
pub(crate) mod progress;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chatstore_server::config::Secret;
use clap::Args;
use indicatif::HumanCount;

use self::lines::Lines;
use self::progress::{Progress, counted, rate, seconds};
use crate::settings::StoreSettings;

#[derive(Args)]
pub(crate) struct ImportArgs {
    /// JSON Lines, a conversation a line, plain or gzip; `-` is standard input.
    file: PathBuf,
    /// Send them to the server that runs at this address, such as http://127.0.0.1:8000.
    #[arg(long)]
    url: Option<String>,
    /// The API key for that server, with the scope `admin`; safer in API_KEY or API_KEY_FILE.
    #[arg(id = "key", long = "api-key", value_name = "KEY", requires = "url")]
    key: Option<String>,
    /// The project they go to [default: default]; made if there is none of this name. With --url
    /// the key decides.
    #[arg(long, conflicts_with = "url")]
    project: Option<String>,
    #[command(flatten)]
    settings: StoreSettings,
}

/// What an import did so far.
#[derive(Default)]
struct Tally {
    sessions: u64,
    messages: u64,
    /// Conversations whose session was there before.
    known: u64,
    refused: u64,
}

pub(crate) fn import(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let config = args.settings.load()?;
    // Before anything is made: a mistyped name shall leave no empty database behind.
    let lines = Lines::open(&args.file)?;
    let mut progress = Progress::reading(&lines);
    let mut tally = Tally::default();
    let done = match &args.url {
        None => direct::import(&config, args.project.as_deref(), lines, &mut Report::new(&mut tally, &mut progress)),
        Some(url) => {
            let key = args.key.as_deref().or(config.api_key.as_ref().map(Secret::expose));
            let key = key.context("--url needs an API key: give it in API_KEY, or with --api-key")?;
            http::import(url, key, lines, &mut Report::new(&mut tally, &mut progress))
        }
    };
    let elapsed = progress.finish();
    let Err(error) = done else {
        progress.say(&tally.summary(elapsed));
        return Ok(if tally.refused > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    };
    if tally.is_empty() {
        return Err(error);
    }
    progress.say(&tally.summary(elapsed));
    bail!("{error:#}; what was stored stays, and the same command goes on from there")
}

impl Tally {
    fn is_empty(&self) -> bool {
        self.sessions + self.messages + self.known + self.refused == 0
    }

    fn summary(&self, elapsed: Duration) -> String {
        format!(
            "Imported {} and {} in {} ({} messages/s); {} already there; {} refused.",
            counted(self.sessions, "session"),
            counted(self.messages, "message"),
            seconds(elapsed),
            HumanCount(rate(self.messages, elapsed)),
            self.known,
            counted(self.refused, "line"),
        )
    }
}

/// Where the two ways of importing tell what happened.
struct Report<'a> {
    tally: &'a mut Tally,
    progress: &'a mut Progress,
}

impl<'a> Report<'a> {
    fn new(tally: &'a mut Tally, progress: &'a mut Progress) -> Self {
        Self { tally, progress }
    }

    fn refuse(&mut self, line: u64, reason: &str) {
        self.tally.refused += 1;
        self.progress.say(&format!("line {line}: {reason}"));
    }

    fn tick(&mut self) {
        let tally = &*self.tally;
        self.progress.tick(|elapsed| {
            format!(
                "{}, {} ({} messages/s)",
                counted(tally.sessions, "session"),
                counted(tally.messages, "message"),
                HumanCount(rate(tally.messages, elapsed))
            )
        });
    }
}
