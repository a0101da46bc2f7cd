//! What server stands at the other end, and whether it will do.

use std::time::Duration;

use tokio_postgres::{Client, Error};

use crate::connect::Target;
use crate::error::{OpenError, open_error_at};

/// The oldest PostgreSQL that is served, and the newest that is tested.
const MAJORS: std::ops::RangeInclusive<i32> = 16..=18;
/// The first pgvector without its known defects of security and of damaged indexes.
const PGVECTOR_ADVISED: [u32; 3] = [0, 8, 4];

const SELECT_SERVER: &str = "select current_setting('server_version'), current_setting('server_version_num')::int4, \
     getdatabaseencoding()::text, \
     (select extversion from pg_catalog.pg_extension where extname = 'vector'), \
     (select rolsuper or rolbypassrls from pg_catalog.pg_roles where rolname = current_user), \
     current_setting('fsync') = 'on', current_setting('synchronous_commit')";

/// Every role may ask this, unless the server's operator has revoked it.
const SELECT_IDENTITY: &str = "select system_identifier::text || '/' || current_database() from pg_control_system()";
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What tells the database at `url` from every other one, by whatever name, role or pooler it is reached.
///
/// # Errors
/// A sentence for the operator: the database cannot be reached or the role may not ask.
pub async fn identity(url: &str) -> Result<String, OpenError> {
    let target = Target::parse(url)?;
    let client = target.connect(CONNECT_TIMEOUT).await?;
    let row = client.query_typed_one(SELECT_IDENTITY, &[]).await;
    row.and_then(|row| row.try_get(0)).map_err(open_error_at(target.shown()))
}

/// A server and the rights that a connection has there: for the log of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerReport {
    /// The version in the server's words.
    pub version: String,
    /// The number before the point.
    pub major: i32,
    /// The version of pgvector in this database; `None` if it is not installed.
    pub pgvector: Option<String>,
    /// Whether row security does not hold for the role: it is a superuser or exempt.
    pub unrestricted: bool,
    /// Whether commits reach the disk.
    pub fsync: bool,
    /// What a commit waits for, unless a connection sets it.
    pub synchronous_commit: String,
}

impl ServerReport {
    /// Asks the server.
    ///
    /// # Errors
    /// A sentence: the server is too old, or the database does not hold every text.
    pub(crate) async fn read(client: &Client, shown: &str) -> Result<Self, OpenError> {
        let (report, encoding) = Self::select(client).await.map_err(open_error_at(shown))?;
        if report.major < *MAJORS.start() {
            return Err(OpenError::new(format!(
                "{shown} runs PostgreSQL {}, which is too old; upgrade it to {} or newer",
                report.version,
                MAJORS.start()
            )));
        }
        if encoding != "UTF8" {
            return Err(OpenError::new(format!(
                "{shown} is encoded in {encoding} and cannot hold every text; create the database with encoding 'UTF8'"
            )));
        }
        Ok(report)
    }

    async fn select(client: &Client) -> Result<(Self, String), Error> {
        let row = client.query_typed_one(SELECT_SERVER, &[]).await?;
        let number: i32 = row.try_get(1)?;
        let report = Self {
            version: row.try_get(0)?,
            major: number / 10_000,
            pgvector: row.try_get(3)?,
            unrestricted: row.try_get(4)?,
            fsync: row.try_get(5)?,
            synchronous_commit: row.try_get(6)?,
        };
        Ok((report, row.try_get(2)?))
    }

    /// What the operator should change, a sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.major > *MAJORS.end() {
            warnings.push(format!(
                "PostgreSQL {} is newer than {}, the newest that this version is tested with",
                self.version,
                MAJORS.end()
            ));
        }
        if let Some(version) = self.pgvector.as_deref().filter(|version| numbers(version) < PGVECTOR_ADVISED) {
            warnings.push(format!(
                "pgvector {version} has known defects; install 0.8.4 or newer and run `alter extension vector update`"
            ));
        }
        if self.unrestricted {
            warnings.push(
                "the database role is a superuser or bypasses row security; use one that may only read and write rows"
                    .to_owned(),
            );
        }
        if !self.fsync {
            warnings.push(
                "fsync is off: acknowledged messages are lost when the database's machine fails; turn it on".to_owned(),
            );
        }
        warnings
    }
}

/// The first three numbers of a version, 0 where there is none.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> ServerReport {
        ServerReport {
            version: "18.4".to_owned(),
            major: 18,
            pgvector: Some("0.8.5".to_owned()),
            unrestricted: false,
            fsync: true,
            synchronous_commit: "on".to_owned(),
        }
    }

    #[test]
    fn a_sound_server_gives_no_warning() {
        assert_eq!(sound().warnings(), Vec::<String>::new());
        assert_eq!(ServerReport { pgvector: None, ..sound() }.warnings(), Vec::<String>::new());
        assert_eq!(ServerReport { pgvector: Some("0.10.0".to_owned()), ..sound() }.warnings(), Vec::<String>::new());
        assert_eq!(ServerReport { pgvector: Some("1.0".to_owned()), ..sound() }.warnings(), Vec::<String>::new());
    }

    #[test]
    fn each_weakness_gives_its_warning() {
        let weak = [
            (ServerReport { major: 19, version: "19beta1".to_owned(), ..sound() }, "19beta1 is newer"),
            (ServerReport { pgvector: Some("0.8.3".to_owned()), ..sound() }, "pgvector 0.8.3"),
            (ServerReport { pgvector: Some("0.7".to_owned()), ..sound() }, "pgvector 0.7"),
            (ServerReport { unrestricted: true, ..sound() }, "superuser"),
            (ServerReport { fsync: false, ..sound() }, "fsync is off"),
        ];
        for (report, part) in weak {
            let warnings = report.warnings();
            assert!(warnings.len() == 1 && warnings[0].contains(part), "{part}: {warnings:?}");
        }
    }
}
