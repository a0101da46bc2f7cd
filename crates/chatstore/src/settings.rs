//! Settings as arguments of commands.

use std::io::Write as _;

use chatstore_server::config::{Config, ConfigError, Sources, command_args};
use clap::{ArgMatches, Args, Command, FromArgMatches};

/// Every setting.
pub(crate) struct ServeSettings(Sources);

/// The settings of a command that only works on the database.
pub(crate) struct StoreSettings(Sources);

/// The flags such a command takes; the environment and files give it all the others.
const STORE_FLAGS: [&str; 6] =
    ["config", "env_file", "database_url", "database_url_file", "migrate_database_url", "migrate_database_url_file"];

impl ServeSettings {
    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.0)
    }
}

impl StoreSettings {
    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.0)
    }
}

macro_rules! arguments {
    ($name:ident, $keep:expr) => {
        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(Sources::from_process(matches)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0 = Sources::from_process(matches);
                Ok(())
            }
        }

        impl Args for $name {
            fn augment_args(command: Command) -> Command {
                command.args(command_args().into_iter().filter(|arg| $keep(arg.get_id().as_str())))
            }

            fn augment_args_for_update(command: Command) -> Command {
                Self::augment_args(command)
            }
        }
    };
}
arguments!(ServeSettings, |_: &str| true);
arguments!(StoreSettings, |name: &str| STORE_FLAGS.contains(&name));

/// Writes to standard output; a reader that has gone away (`| head`) is no error.
pub(crate) fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
