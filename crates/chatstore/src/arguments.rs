//! Words that several commands take: names, ids of keys, lengths of time, limits, quotas and whose tokens count.

use anyhow::{Context as _, anyhow, bail};
use chatstore_core::api_keys::{KeyScopes, Permission, PresentedKey};
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::limits::{KEY_RANGES_MAX, NAME_BYTES_MAX, ROTATION_GRACE_SECONDS_MAX, TOKEN_KEYS_MAX};
use chatstore_core::projects::{ProjectPatch, ProjectSettings, TokenAlgorithm, TokenPublicKey, TokenSettings};
use chatstore_core::rates::{ClassRates, RATES_ACCEPTED, Rates};
use chatstore_core::store::Quotas;
use chatstore_server::auth::{check_public_key, parse_address_range};
use chatstore_server::config::{QUOTA_MAX, parse_origin};
use clap::Args;

/// Takes away what was set before.
const NONE: &str = "none";
/// Characters of a key's id.
const KEY_ID_CHARS: usize = 12;

/// Refuses a name that a list could not show.
pub(crate) fn check_name(flag: &str, text: &str, bytes_max: usize) -> anyhow::Result<()> {
    if text.is_empty() || text.len() > bytes_max || text.contains(char::is_control) {
        bail!("{flag} must have 1 to {bytes_max} bytes and no control characters");
    }
    Ok(())
}

/// Refuses a name that a project must not have. That of a deleted one becomes its id, so no other may be called so.
pub(crate) fn check_project_name(flag: &str, text: &str) -> anyhow::Result<()> {
    check_name(flag, text, NAME_BYTES_MAX)?;
    if ProjectId::parse(text).is_some() {
        bail!("{flag} must not read as an id (a UUID)");
    }
    Ok(())
}

/// The id of a key, also where somebody pasted the whole key. What may hold a secret is not repeated.
pub(crate) fn key_id(text: &str) -> anyhow::Result<String> {
    match PresentedKey::parse(text) {
        Some(whole) => Ok(whole.key_id().to_owned()),
        None if text.len() > KEY_ID_CHARS => bail!("that is no id of a key; `chatstore keys list` shows them"),
        None => Ok(text.to_owned()),
    }
}

/// Reads the scopes of a key.
pub(crate) fn scopes(text: &str) -> anyhow::Result<KeyScopes> {
    let known = Permission::ALL.map(Permission::as_str).join(", ");
    match KeyScopes::parse(text) {
        Ok(scopes) if !scopes.is_empty() => Ok(scopes),
        Ok(_) => bail!("--scopes names no scope; there are {known}"),
        Err(name) => bail!("--scopes: there is no scope `{name}`; there are {known}"),
    }
}

/// When something ends that lasts from `now` for as long as `text` says.
pub(crate) fn expiry(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    let us = microseconds("--expires", text)?;
    if us == 0 {
        bail!("--expires must be longer than nothing; `keys revoke` ends a key at once");
    }
    Ok(now.plus_micros(us))
}

/// The same, or nothing where `none` is said.
pub(crate) fn expiry_or_none(text: &str, now: Timestamp) -> anyhow::Result<Option<Timestamp>> {
    if text == NONE { Ok(None) } else { expiry(text, now).map(Some) }
}

/// Until when a secret that is replaced `now` stays valid.
pub(crate) fn grace_end(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    let us = microseconds("--grace", text)?;
    if us.unsigned_abs() > ROTATION_GRACE_SECONDS_MAX * 1_000_000 {
        bail!("--grace must be at most {} days", ROTATION_GRACE_SECONDS_MAX / 86_400);
    }
    Ok(now.plus_micros(us))
}

fn microseconds(flag: &str, text: &str) -> anyhow::Result<i64> {
    let form = || format!("{flag} must be a number with s, m, h, d or w, such as 30d, not `{text}`");
    let unit = text.chars().last().with_context(form)?;
    let seconds: i64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        'w' => 7 * 86_400,
        _ => bail!(form()),
    };
    let digits = &text[..text.len() - 1];
    let count: i64 = digits.parse().ok().filter(|_| digits.bytes().all(|b| b.is_ascii_digit())).with_context(form)?;
    count.checked_mul(seconds).and_then(|s| s.checked_mul(1_000_000)).with_context(form)
}

/// The limits of a key or project.
#[derive(Args)]
pub(crate) struct LimitArgs {
    /// How often it may read, such as 100/minute; `off` is as often as it likes, `none` as the settings say.
    #[arg(long, value_name = "RATE")]
    limit_reads: Option<String>,
    /// The same for writes.
    #[arg(long, value_name = "RATE")]
    limit_writes: Option<String>,
    /// The same for searches.
    #[arg(long, value_name = "RATE")]
    limit_search: Option<String>,
}

impl LimitArgs {
    /// These limits, and where nothing is said those of `before`; nothing if nothing is said at all.
    pub(crate) fn over(&self, mut before: ClassRates) -> anyhow::Result<Option<ClassRates>> {
        let given = [
            ("--limit-reads", &self.limit_reads, &mut before.reads),
            ("--limit-writes", &self.limit_writes, &mut before.writes),
            ("--limit-search", &self.limit_search, &mut before.search),
        ];
        let mut is_said = false;
        for (flag, text, rates) in given {
            let Some(text) = text else { continue };
            is_said = true;
            *rates = rates_or_none(flag, text)?;
        }
        Ok(is_said.then_some(before))
    }
}

fn rates_or_none(flag: &str, text: &str) -> anyhow::Result<Option<Rates>> {
    if text == NONE {
        return Ok(None);
    }
    Rates::parse(text).map(Some).with_context(|| format!("{flag} must be {RATES_ACCEPTED}; or off or none"))
}

/// What a project has of its own.
#[derive(Args)]
pub(crate) struct ProjectArgs {
    #[command(flatten)]
    limits: LimitArgs,
    /// How often all of its keys and users together may ask for anything; `none` is as often as they like.
    #[arg(long, value_name = "RATE")]
    limit_total: Option<String>,
    #[command(flatten)]
    quotas: QuotaArgs,
    #[command(flatten)]
    tokens: TokenArgs,
}

impl ProjectArgs {
    /// What is to be changed of `before`.
    pub(crate) fn patch(&self, before: &ProjectSettings) -> anyhow::Result<ProjectPatch> {
        let total = self.limit_total.as_deref();
        Ok(ProjectPatch {
            name: None,
            limits: self.limits.over(before.limits.clone())?,
            total_limit: total.map(|text| rates_or_none("--limit-total", text)).transpose()?,
            quotas: self.quotas.over(before.quotas)?,
            tokens: self.tokens.over(before.tokens.clone())?,
        })
    }
}

/// Whose user tokens a project believes.
#[derive(Args)]
pub(crate) struct TokenArgs {
    /// A key that verifies its user tokens, such as EdDSA=key.pem (EdDSA, ES256 or RS256, and a file with PEM or a
    /// JWK); may be given more than once, and replaces all that were there.
    #[arg(long = "public-key", value_name = "ALG=FILE")]
    public_keys: Vec<String>,
    /// Take its public keys away; what they verify is refused within a second.
    #[arg(long, conflicts_with = "public_keys")]
    no_public_keys: bool,
    /// What `aud` of its user tokens must contain; `none` is `chatstore`.
    #[arg(long, value_name = "TEXT")]
    token_audience: Option<String>,
    /// What `iss` of its user tokens must be; `none` is anything.
    #[arg(long, value_name = "TEXT")]
    token_issuer: Option<String>,
}

impl TokenArgs {
    /// These, and where nothing is said what was `before`; nothing if nothing is said at all.
    fn over(&self, mut before: TokenSettings) -> anyhow::Result<Option<TokenSettings>> {
        let given = [
            ("--token-audience", &self.token_audience, &mut before.audience),
            ("--token-issuer", &self.token_issuer, &mut before.issuer),
        ];
        for (flag, text, place) in given {
            let Some(text) = text else { continue };
            check_name(flag, text, NAME_BYTES_MAX)?;
            *place = (text != NONE).then(|| text.clone());
        }
        if self.public_keys.len() > TOKEN_KEYS_MAX {
            bail!("--public-key may be given at most {TOKEN_KEYS_MAX} times");
        }
        let replaces_keys = self.no_public_keys || !self.public_keys.is_empty();
        if replaces_keys {
            before.public_keys = self.public_keys.iter().map(|text| public_key(text)).collect::<Result<_, _>>()?;
        }
        let is_said = replaces_keys || self.token_audience.is_some() || self.token_issuer.is_some();
        Ok(is_said.then_some(before))
    }
}

/// Reads a public key that is given as its algorithm and its file.
fn public_key(text: &str) -> anyhow::Result<TokenPublicKey> {
    let named = text.split_once('=').and_then(|(name, file)| {
        let algorithm = match name {
            "EdDSA" => TokenAlgorithm::EdDSA,
            "ES256" => TokenAlgorithm::ES256,
            "RS256" => TokenAlgorithm::RS256,
            _ => return None,
        };
        Some((algorithm, file))
    });
    let (algorithm, file) = named.context("--public-key must be EdDSA=FILE, ES256=FILE or RS256=FILE")?;
    let public_key = std::fs::read_to_string(file).with_context(|| format!("--public-key: cannot read {file}"))?;
    let key = TokenPublicKey { key_id: None, algorithm, public_key: public_key.trim().to_owned() };
    check_public_key(&key).map_err(|fault| anyhow!("--public-key: {file} must {fault}"))?;
    Ok(key)
}

/// The quotas of a project.
#[derive(Args)]
pub(crate) struct QuotaArgs {
    /// How many sessions each of its users may have; `none` is as the settings say.
    #[arg(long, value_name = "NUMBER")]
    quota_sessions_per_user: Option<String>,
    /// How many messages each of its sessions may have.
    #[arg(long, value_name = "NUMBER")]
    quota_messages_per_session: Option<String>,
    /// How many bytes its messages may have together.
    #[arg(long, value_name = "NUMBER")]
    quota_project_bytes: Option<String>,
}

impl QuotaArgs {
    /// These quotas, and where nothing is said those of `before`; nothing if nothing is said at all.
    pub(crate) fn over(&self, mut before: Quotas) -> anyhow::Result<Option<Quotas>> {
        let given = [
            ("--quota-sessions-per-user", &self.quota_sessions_per_user, &mut before.sessions_per_user),
            ("--quota-messages-per-session", &self.quota_messages_per_session, &mut before.messages_per_session),
            ("--quota-project-bytes", &self.quota_project_bytes, &mut before.project_bytes),
        ];
        let mut is_said = false;
        for (flag, text, quota) in given {
            let Some(text) = text else { continue };
            is_said = true;
            let number = text.parse().ok().filter(|number| (1..=QUOTA_MAX).contains(number));
            *quota = match (text.as_str(), number) {
                (NONE, _) => None,
                (_, Some(number)) => Some(number),
                (_, None) => bail!("{flag} must be a whole number from 1 to {QUOTA_MAX}, or none"),
            };
        }
        Ok(is_said.then_some(before))
    }
}

/// From where a key may be used.
#[derive(Args)]
pub(crate) struct PlaceArgs {
    /// An origin such as `https://app.example` from which a browser may use it; may be given more than once. `none` is
    /// every one.
    #[arg(long = "origin", value_name = "ORIGIN")]
    origins: Vec<String>,
    /// An address or range such as 203.0.113.0/24 from which it may be used; may be given more than once. `none` is
    /// every one.
    #[arg(long = "address", value_name = "RANGE")]
    addresses: Vec<String>,
}

impl PlaceArgs {
    /// The origins, if any are said.
    pub(crate) fn origins(&self) -> anyhow::Result<Option<Vec<String>>> {
        places("--origin", &self.origins, "an origin such as https://app.example", parse_origin)
    }

    /// The ranges of addresses, if any are said.
    pub(crate) fn addresses(&self) -> anyhow::Result<Option<Vec<String>>> {
        places("--address", &self.addresses, "an IP address, or a range such as 203.0.113.0/24", |text| {
            parse_address_range(text).map(|range| range.trunc().to_string())
        })
    }
}

fn places(
    flag: &str,
    given: &[String],
    accepted: &str,
    parse: fn(&str) -> Option<String>,
) -> anyhow::Result<Option<Vec<String>>> {
    if given.len() > KEY_RANGES_MAX {
        bail!("{flag} may be given at most {KEY_RANGES_MAX} times");
    }
    match given {
        [] => Ok(None),
        [one] if one == NONE => Ok(Some(Vec::new())),
        given => {
            let parsed: Option<Vec<String>> = given.iter().map(|text| parse(text)).collect();
            Ok(Some(parsed.with_context(|| format!("{flag} must be {accepted}, or none"))?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        let now = Timestamp::from_micros(0).unwrap();
        assert_eq!(expiry("30d", now).unwrap().as_micros(), 30 * 86_400_000_000);
        assert_eq!(expiry("2w", now).unwrap(), expiry("14d", now).unwrap());
        for text in ["", "d", "30", "-1d", "+1d", "0d", "1y", "1é", "é", "99999999999999d"] {
            assert!(expiry(text, now).is_err(), "{text}");
        }
        assert_eq!(expiry_or_none("none", now).unwrap(), None);
        assert_eq!(grace_end("0s", now).unwrap(), now);
        assert_eq!(grace_end("30d", now).unwrap(), expiry("30d", now).unwrap());
        assert!(grace_end("31d", now).is_err());
    }

    #[test]
    fn limits_and_quotas_change_what_is_said_and_nothing_else() {
        let rates = |text| Rates::parse(text);
        let before = ClassRates { reads: rates("1/second"), writes: rates("2/second"), search: None };
        let args = LimitArgs { limit_reads: None, limit_writes: Some("none".into()), limit_search: Some("off".into()) };
        let after = ClassRates { reads: rates("1/second"), writes: None, search: Some(Rates::OFF) };
        assert_eq!(args.over(before.clone()).unwrap(), Some(after));
        let silent = LimitArgs { limit_reads: None, limit_writes: None, limit_search: None };
        assert_eq!(silent.over(before).unwrap(), None);

        let quotas = |sessions: Option<&str>| QuotaArgs {
            quota_sessions_per_user: sessions.map(str::to_owned),
            quota_messages_per_session: None,
            quota_project_bytes: Some("7".into()),
        };
        let before = Quotas { sessions_per_user: Some(1), messages_per_session: Some(2), project_bytes: None };
        let after = Quotas { sessions_per_user: None, project_bytes: Some(7), ..before };
        assert_eq!(quotas(Some("none")).over(before).unwrap(), Some(after));
        for wrong in ["0", "-1", "many", "9007199254740993", ""] {
            assert!(quotas(Some(wrong)).over(before).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_may_hold_a_secret_is_not_repeated() {
        let ctx = chatstore_core::clock::Ctx::system();
        let key = PresentedKey::generate(&ctx);
        assert_eq!(key_id(key.expose()).unwrap(), key.key_id());
        assert_eq!(key_id(key.key_id()).unwrap(), key.key_id());
        let secret = key.expose().split('_').nth(2).unwrap();
        for text in [format!("{}x", key.expose()), secret.to_owned()] {
            assert!(!key_id(&text).unwrap_err().to_string().contains(secret));
        }
    }
}
