//! Where the values of settings come from, and which source wins.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::ArgMatches;
use toml::{Table, Value as Toml};

use super::typo::{nearest, refuse_typos};
use super::{ConfigError, SETTINGS, Setting, dotenv};

/// The origin of a value that nobody set.
pub(super) const DEFAULT_ORIGIN: &str = "default";

/// The defaults, which stand nowhere else.
pub(super) const DEFAULTS: &str = include_str!("../../config.default.toml");

/// One name under which a setting may be given: its own or, for a secret, that of a file that holds it.
pub(super) struct Key {
    pub(super) setting: &'static Setting,
    pub(super) is_file: bool,
    pub(super) name: String,
    pub(super) env: String,
    pub(super) flag: String,
}

/// Every accepted name, in the order of the table.
pub(super) static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    let key = |setting: &'static Setting, is_file: bool| {
        let name = format!("{}{}", setting.name, if is_file { "_file" } else { "" });
        Key { setting, is_file, env: name.to_uppercase(), flag: name.replace('_', "-"), name }
    };
    SETTINGS
        .iter()
        .flat_map(|setting| [Some(key(setting, false)), setting.secret.then(|| key(setting, true))])
        .flatten()
        .collect()
});

/// What the outside says about the settings: flags, environment and working directory.
#[derive(Clone, Default)]
pub struct Sources {
    flags: BTreeMap<String, String>,
    env: BTreeMap<String, OsString>,
    cwd: PathBuf,
}

impl Sources {
    /// No flags and no environment; files are looked for in `cwd`.
    pub fn new(cwd: impl Into<PathBuf>) -> Self {
        Self { cwd: cwd.into(), ..Self::default() }
    }

    /// The given flags, and the environment and working directory of this process.
    pub fn from_process(matches: &ArgMatches) -> Self {
        let mut sources = Self::new("").with_matches(matches);
        // A name that is not text cannot be a setting.
        sources.env = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        sources
    }

    /// Adds the flags of [`super::command_args`] that were given.
    #[must_use]
    pub fn with_matches(mut self, matches: &ArgMatches) -> Self {
        let names = KEYS.iter().map(|key| key.name.as_str()).chain(["config", "env_file"]);
        for name in names {
            // A command without these arguments has no values for them.
            if let Ok(Some(value)) = matches.try_get_one::<String>(name) {
                self.flags.insert(name.to_owned(), value.clone());
            }
        }
        self
    }

    /// Adds a flag by the name of its setting, such as `rate_limit`, or `config` or `env_file`.
    #[must_use]
    pub fn with_flag(mut self, name: &str, value: &str) -> Self {
        self.flags.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a variable of the environment.
    #[must_use]
    pub fn with_env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    fn env_text(&self, name: &'static str) -> Result<Option<&str>, ConfigError> {
        let Some(value) = self.env.get(name).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        let text = value.to_str().ok_or_else(|| ConfigError::Invalid {
            name,
            origin: format!("environment {name}"),
            accepted: "valid UTF-8".to_owned(),
            given: None,
        })?;
        Ok(Some(text))
    }

    /// The path given by flag or environment, with what gave it.
    fn named_file(&self, flag: &str, env: &'static str) -> Result<Option<(String, String)>, ConfigError> {
        if let Some(path) = self.flags.get(flag) {
            return Ok(Some((path.clone(), format!("flag --{}", flag.replace('_', "-")))));
        }
        Ok(self.env_text(env)?.map(|path| (path.to_owned(), format!("environment {env}"))))
    }

    /// The named file, which must exist, or else the usual one, which need not; with its path as it was given.
    fn document(&self, named: Option<(String, String)>, usual: &str) -> Result<Option<Document>, ConfigError> {
        let is_named = named.is_some();
        let (place, origin) = named.unwrap_or_else(|| (usual.to_owned(), format!("the usual name {usual}")));
        match std::fs::read_to_string(self.cwd.join(&place)) {
            Ok(text) => Ok(Some(Document { place, text: text.trim_start_matches('\u{feff}').to_owned() })),
            Err(error) if !is_named && error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(reason) => Err(ConfigError::Unreadable { origin, reason }),
        }
    }
}

/// A file that was read, with its path as it was given.
pub(super) struct Document {
    pub(super) place: String,
    pub(super) text: String,
}

/// A value, still as text, with where it came from.
#[derive(Clone)]
pub(super) struct Value {
    pub(super) text: String,
    pub(super) origin: String,
    /// Whether it may stand for a text: of TOML, only what is in quotes.
    pub(super) is_text: bool,
}

impl Value {
    pub(super) fn text(text: impl Into<String>, origin: String) -> Self {
        Self { text: text.into(), origin, is_text: true }
    }
}

type Layer = BTreeMap<&'static str, Value>;

/// The value of every setting that has one, by the name of the setting.
pub(super) fn resolve(sources: &Sources) -> Result<BTreeMap<&'static str, Value>, ConfigError> {
    let env_file = sources.document(sources.named_file("env_file", "ENV_FILE")?, ".env")?;
    let env_file_vars = env_file.as_ref().map(dotenv::variables).transpose()?.unwrap_or_default();
    refuse_typos(sources.env.keys(), "the environment", false)?;
    if let Some(document) = &env_file {
        refuse_typos(env_file_vars.keys(), &document.place, true)?;
    }

    let config_file = sources.named_file("config", "CONFIG_FILE")?.or_else(|| {
        let value = env_file_vars.get("CONFIG_FILE").filter(|value| !value.text.is_empty())?;
        Some((value.text.clone(), format!("CONFIG_FILE in {}", value.origin)))
    });
    let config_file = sources.document(config_file, "chatstore.toml")?;
    let defaults = Document { place: DEFAULT_ORIGIN.to_owned(), text: DEFAULTS.to_owned() };

    let layers = [
        flag_layer(sources),
        environment_layer(sources)?,
        env_file_layer(&env_file_vars),
        config_file.as_ref().map(toml_layer).transpose()?.unwrap_or_default(),
        toml_layer(&defaults)?,
    ];
    let mut values = BTreeMap::new();
    for setting in SETTINGS {
        for layer in &layers {
            if let Some(value) = pick(setting, layer, &sources.cwd)? {
                values.insert(setting.name, value);
                break;
            }
        }
    }
    Ok(values)
}

/// The value that one layer gives to a setting, read from its file where the layer names one.
fn pick(setting: &'static Setting, layer: &Layer, cwd: &Path) -> Result<Option<Value>, ConfigError> {
    let file_key = KEYS.iter().find(|key| key.is_file && key.setting.name == setting.name);
    let file = file_key.and_then(|key| layer.get(key.name.as_str()));
    match (layer.get(setting.name), file) {
        (direct, None) => Ok(direct.cloned()),
        (Some(direct), Some(file)) => {
            Err(ConfigError::Twice { name: setting.name, direct: direct.origin.clone(), file: file.origin.clone() })
        }
        (None, Some(file)) => match std::fs::read_to_string(cwd.join(&file.text)) {
            Ok(text) => Ok(Some(Value::text(text.trim_end_matches(['\r', '\n']), file.origin.clone()))),
            Err(reason) => Err(ConfigError::Unreadable { origin: file.origin.clone(), reason }),
        },
    }
}

fn flag_layer(sources: &Sources) -> Layer {
    let given = KEYS.iter().filter_map(|key| Some((key, sources.flags.get(&key.name)?)));
    given.map(|(key, text)| (key.name.as_str(), Value::text(text, format!("flag --{}", key.flag)))).collect()
}

fn environment_layer(sources: &Sources) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for key in KEYS.iter() {
        if let Some(text) = sources.env_text(&key.env)? {
            layer.insert(&key.name, Value::text(text, format!("environment {}", key.env)));
        }
    }
    Ok(layer)
}

fn env_file_layer(variables: &BTreeMap<String, Value>) -> Layer {
    let given = KEYS.iter().filter_map(|key| Some((key.name.as_str(), variables.get(&key.env)?.clone())));
    given.filter(|(_, value)| !value.text.is_empty()).collect()
}

fn toml_layer(document: &Document) -> Result<Layer, ConfigError> {
    let table: Table = document.text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().map_or(0, |span| span.start.min(document.text.len()));
        ConfigError::Syntax {
            place: document.place.clone(),
            line: 1 + document.text.as_bytes()[..before].iter().filter(|&&byte| byte == b'\n').count(),
            // `Display` would quote the line, which may hold a secret.
            reason: error.message().to_owned(),
        }
    })?;
    let mut layer = Layer::new();
    for (name, value) in table {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            let nearest = nearest(&name, KEYS.iter().map(|key| key.name.as_str()));
            return Err(ConfigError::UnknownKey {
                nearest: nearest.filter(|&(_, far)| far <= name.len() / 2).map(|(name, _)| name.to_owned()),
                key: name,
                place: document.place.clone(),
            });
        };
        let origin = document.place.clone();
        let (text, is_text) = match value {
            Toml::String(text) => (text, true),
            Toml::Integer(number) => (number.to_string(), false),
            Toml::Boolean(truth) => (truth.to_string(), false),
            Toml::Float(_) | Toml::Datetime(_) | Toml::Array(_) | Toml::Table(_) => {
                let accepted = "a text in quotes, a whole number, true or false".to_owned();
                return Err(ConfigError::Invalid { name: &key.name, origin, accepted, given: None });
            }
        };
        if key.is_file && !is_text {
            let accepted = "a path in quotes".to_owned();
            return Err(ConfigError::Invalid { name: &key.name, origin, accepted, given: None });
        }
        layer.insert(&key.name, Value { text, origin, is_text });
    }
    Ok(layer)
}
