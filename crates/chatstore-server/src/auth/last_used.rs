//! When keys were last used: noted in memory, and stored beside the requests, at most once a minute a key.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chatstore_core::clock::Timestamp;
use chatstore_core::store::{Store, StoreError};
use tokio::task::JoinHandle;

use super::credentials::KnownKey;
use crate::app::App;

/// Between two uses of a key that are noted, in microseconds.
const NOTED_EVERY_US: i64 = 60_000_000;
/// Keys whose use is noted at the same time; of more, the use is noted later.
const KEYS_MAX: usize = 10_000;
/// Uses that are stored in one transaction.
const BATCH: usize = 500;
/// Between two transactions.
pub const FLUSH_PAUSE: Duration = Duration::from_secs(5);

/// The uses of keys that were noted a moment ago.
#[derive(Default)]
pub struct LastUses(Mutex<HashMap<String, Use>>);

#[derive(Clone, Copy)]
struct Use {
    at: Timestamp,
    is_stored: bool,
}

impl LastUses {
    /// Notes a use of a key, unless one was noted within the minute.
    pub(super) fn note(&self, known: &KnownKey, now: Timestamp) {
        let is_recent = |at: Timestamp| now < at.plus_micros(NOTED_EVERY_US);
        if known.key.last_used_at.is_some_and(is_recent) || known.is_noted.load(Ordering::Relaxed) {
            return;
        }
        let mut uses = self.uses();
        let key_id = &known.key.key_id;
        let before = uses.get(key_id);
        if before.is_none() && uses.len() >= KEYS_MAX {
            return;
        }
        if before.is_none_or(|before| !is_recent(before.at)) {
            uses.insert(key_id.clone(), Use { at: now, is_stored: false });
        }
        known.is_noted.store(true, Ordering::Relaxed);
    }

    /// Stores what was noted. What the store does not take waits for the next time.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn flush(&self, store: &dyn Store, now: Timestamp) -> Result<(), StoreError> {
        let noted: Vec<(String, Timestamp)> = {
            let mut uses = self.uses();
            uses.retain(|_, it| !it.is_stored || now < it.at.plus_micros(NOTED_EVERY_US));
            uses.iter().filter(|(_, it)| !it.is_stored).map(|(key_id, it)| (key_id.clone(), it.at)).collect()
        };
        for batch in noted.chunks(BATCH) {
            store.note_api_key_uses(batch.to_vec()).await?;
            let mut uses = self.uses();
            for (key_id, at) in batch {
                if let Some(it) = uses.get_mut(key_id).filter(|it| it.at == *at) {
                    it.is_stored = true;
                }
            }
        }
        Ok(())
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<String, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores, every `pause`, when keys were last used, and once more when the application is told to stop.
pub fn start(app: App, pause: Duration) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut is_stopping = false;
        while !is_stopping {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = app.shutdown.cancelled() => is_stopping = true,
            }
            match app.last_uses.flush(app.store.as_ref(), app.ctx.now()).await {
                Ok(()) | Err(StoreError::Busy) => {}
                Err(error) => tracing::warn!(%error, "the last use of keys cannot be stored"),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chatstore_core::api_keys::{ApiKey, KeyScopes, PresentedKey};
    use chatstore_core::clock::Ctx;
    use chatstore_core::ids::ProjectId;
    use chatstore_core::projects::Project;

    fn known(ctx: &Ctx) -> KnownKey {
        let (presented, now) = (PresentedKey::generate(ctx), ctx.now());
        let key = ApiKey::new(&presented, ProjectId::DEFAULT, "a key", KeyScopes::all(), now);
        KnownKey::new(key, Project::new(ProjectId::DEFAULT, "default", now), Duration::ZERO)
    }

    #[test]
    fn uses_take_bounded_room_and_those_of_more_keys_are_noted_later() {
        let ctx = Ctx::fixed(Timestamp::from_micros(0).unwrap(), 1, 1);
        let uses = LastUses::default();
        for _ in 0..KEYS_MAX {
            uses.note(&known(&ctx), ctx.now());
        }
        let one_more = known(&ctx);
        uses.note(&one_more, ctx.now());
        assert_eq!((uses.uses().len(), one_more.is_noted.load(Ordering::Relaxed)), (KEYS_MAX, false));
        uses.uses().clear();
        uses.note(&one_more, ctx.now());
        assert_eq!((uses.uses().len(), one_more.is_noted.load(Ordering::Relaxed)), (1, true));
    }
}
