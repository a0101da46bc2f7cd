//! Copying sessions with their messages, several at once so that their commits overlap.

use std::sync::Arc;

use anyhow::anyhow;
use chatstore_core::archive::{ArchiveIdentity, ArchivedSession};
use chatstore_core::sessions::Session;
use chatstore_core::store::{Scope, StoreError};
use tokio::task::JoinSet;

use super::meter::Meter;
use super::pages::{Sessions, embeddings, messages};
use super::{Ends, IN_FLIGHT_MAX, projects};
use crate::patience::Patience;

/// Copies what the target lacks; tells how many sessions it had already.
pub(super) async fn copy(ends: &Ends, meter: &Arc<Meter>) -> anyhow::Result<u64> {
    let mut running = JoinSet::new();
    let mut known = 0;
    for project_id in projects::projects(ends.source.as_ref()).await?.into_keys() {
        let scope = Scope::project(project_id);
        let mut source = Sessions::of(ends.source.as_ref(), &scope);
        let mut target = Sessions::of(ends.target.as_ref(), &scope);
        let mut there = target.next().await?;
        while let Some(session) = source.next().await? {
            while there.as_ref().is_some_and(|there| there.session_id < session.session_id) {
                there = target.next().await?;
            }
            let seq = there.as_ref().filter(|there| there.session_id == session.session_id).map(|there| there.last_seq);
            // One that is whole is passed over unread; the comparison finds what has changed in it.
            if seq.is_some_and(|seq| seq >= session.last_seq) {
                known += 1;
                continue;
            }
            if running.len() >= IN_FLIGHT_MAX {
                settle(running.join_next().await)?;
            }
            running.spawn(copy_session(ends.clone(), scope.clone(), session, seq, meter.clone()));
        }
    }
    while !running.is_empty() {
        settle(running.join_next().await)?;
    }
    Ok(known)
}

fn settle(joined: Option<Result<anyhow::Result<()>, tokio::task::JoinError>>) -> anyhow::Result<()> {
    joined.transpose()?.unwrap_or(Ok(()))
}

/// Copies a session after the place `there`, up to which the target has it.
async fn copy_session(
    ends: Ends,
    scope: Scope,
    session: Session,
    there: Option<i64>,
    meter: Arc<Meter>,
) -> anyhow::Result<()> {
    // The last message that is there goes again: the target refuses to go on from another one.
    let mut after = (there.unwrap_or(0) - 1).max(0);
    let mut patience = Patience::new();
    loop {
        // A part that was refused as busy is read again, which is cheaper than to keep it twice.
        let part = messages(ends.source.as_ref(), &scope, &session, after).await?;
        let last = part.last().map_or(after, |message| message.seq);
        let identity = ArchiveIdentity::SessionId;
        let embeddings = embeddings(ends.source.as_ref(), &scope, &part).await?;
        // What waits for a vector at the source is queued by the server that makes vectors at the target.
        let archived = ArchivedSession { identity, session: session.clone(), messages: part, embeddings, embed: false };
        match ends.target.import_session(&scope, archived).await {
            Ok(imported) => meter.add(u64::from(imported.session), imported.messages),
            Err(error) => {
                patience.after(error).await.map_err(|error| refused(&session, error))?;
                continue;
            }
        }
        if last >= session.last_seq {
            return Ok(());
        }
        (after, patience) = (last, Patience::new());
    }
}

fn refused(session: &Session, error: StoreError) -> anyhow::Error {
    let id = session.session_id;
    match error {
        StoreError::Full => anyhow!("the disk of the target is full; free some space"),
        StoreError::Busy => anyhow!("the target is kept busy by others; wait until that is done"),
        StoreError::Conflict { field } => {
            anyhow!("session {id} cannot be stored: the target has something else with its `{field}`")
        }
        StoreError::Invalid { pointer, detail } => anyhow!("session {id} cannot be stored: {pointer} {detail}"),
        error => anyhow!(error).context(format!("session {id} could not be stored")),
    }
}
