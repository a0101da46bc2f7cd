//! The rows by which sessions are found through their metadata: derived, written with the session.

use chatstore_core::ids::SessionId;
use chatstore_core::sessions::Session;
use sha2::{Digest as _, Sha256};

use crate::columns::bucket_value;
use crate::params::params;
use crate::pool::{Db, Failure};

const INSERT_METADATA: &str = "insert into session_metadata (bucket, session_id, project_id, pair_digest)
    select $1, $2, $3, pair_digest from unnest($4::bytea[]) pair_digest";
const DELETE_METADATA: &str = "delete from session_metadata where bucket = $1 and session_id = $2";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[INSERT_METADATA, DELETE_METADATA];

pub(super) async fn insert_metadata(db: &Db, session: &Session) -> Result<(), Failure> {
    let digests: Vec<_> = session.metadata.scalars().iter().map(|(key, value)| pair_digest(key, value)).collect();
    if digests.is_empty() {
        return Ok(());
    }
    let params = params![
        bucket_value(session.session_id.bucket()),
        session.session_id.uuid(),
        session.project_id.uuid(),
        digests.iter().map(<[u8; 32]>::as_slice).collect::<Vec<_>>(),
    ];
    db.execute(INSERT_METADATA, params).await?;
    Ok(())
}

pub(super) async fn delete_metadata(db: &Db, session_id: SessionId) -> Result<(), Failure> {
    db.execute(DELETE_METADATA, params![bucket_value(session_id.bucket()), session_id.uuid()]).await?;
    Ok(())
}

/// What stands for a top-level scalar of metadata in the index.
pub(crate) fn pair_digest(key: &str, value: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((key.len() as u64).to_be_bytes());
    hash.update(key.as_bytes());
    hash.update(value.as_bytes());
    hash.finalize().into()
}
