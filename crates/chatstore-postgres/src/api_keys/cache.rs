//! Keys as they were a moment ago. Every request asks for one; a change made by another process is
//! seen when the moment is over, one made here at once.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chatstore_core::api_keys::ApiKey;

/// How long a key is believed: well within the second that a revocation may take.
const BELIEVED: Duration = Duration::from_millis(500);
/// Keys that are remembered; past it all are forgotten, and those in use come back.
const KEYS_MAX: usize = 10_000;

#[derive(Default)]
struct Known {
    keys: HashMap<String, (ApiKey, Instant)>,
    /// Grows when something is forgotten: what was asked for before must not come in after.
    forgotten: u64,
}

/// What is known of keys. Keys that do not exist are not remembered: guesses would fill it.
#[derive(Default)]
pub(crate) struct KeyCache {
    known: Mutex<Known>,
}

/// When a key was asked for.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    at: Instant,
    forgotten: u64,
}

impl KeyCache {
    pub(crate) fn get(&self, key_id: &str) -> Option<ApiKey> {
        let known = self.known();
        let (key, at) = known.keys.get(key_id)?;
        (at.elapsed() < BELIEVED).then(|| key.clone())
    }

    pub(crate) fn asked(&self) -> Asked {
        Asked { at: Instant::now(), forgotten: self.known().forgotten }
    }

    pub(crate) fn put(&self, key: &ApiKey, asked: Asked) {
        let mut known = self.known();
        if known.forgotten != asked.forgotten {
            return;
        }
        if known.keys.len() >= KEYS_MAX {
            known.keys.clear();
        }
        known.keys.insert(key.key_id.clone(), (key.clone(), asked.at));
    }

    pub(crate) fn forget(&self, key_id: &str) {
        let mut known = self.known();
        known.forgotten += 1;
        known.keys.remove(key_id);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
