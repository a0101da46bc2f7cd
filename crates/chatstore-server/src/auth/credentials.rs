//! Keys and projects as they were a moment ago, and as they are.
//!
//! A change made by another process is seen when the moment is over, one made here at once. What is remembered lets
//! callers in; whom it refuses is looked up anew, for a key may have been made or changed meanwhile.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use chatstore_core::api_keys::{ApiKey, KeyDigest};
use chatstore_core::clock::{Ctx, Timestamp};
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::Project;
use chatstore_core::store::{Store, StoreError};
use tokio::sync::OwnedMutexGuard;

use super::bindings::Bindings;
use super::tokens::TokenKeys;
use crate::config::Secret;

/// How long a key or project is believed: well within the second that a revocation may take.
const BELIEVED: Duration = Duration::from_millis(500);
/// Keys, and projects, that are remembered; past it the stale ones are forgotten, or else all, and those in use return.
const REMEMBERED_MAX: usize = 10_000;
/// How long what is remembered refuses without being looked up anew, where an address has failed too often.
const REFUSES: Duration = Duration::from_millis(50);
/// The part of the time that may go into listing ids is one of so many.
const LISTING_SHARE: u32 = 10;

/// A key with its project.
#[derive(Debug)]
pub struct KnownKey {
    /// The key.
    pub key: ApiKey,
    /// Its project.
    pub project: Arc<Project>,
    /// Where it may be used.
    pub(super) bindings: Bindings,
    pub(super) asked: LastAsked,
    /// Whether its use was noted since it was read.
    pub(super) is_noted: AtomicBool,
}

impl KnownKey {
    pub(super) fn new(key: ApiKey, project: Project, asked_at: Duration) -> Self {
        let bindings = Bindings::of(&key.settings);
        Self {
            key,
            project: Arc::new(project),
            bindings,
            asked: LastAsked::at(asked_at),
            is_noted: AtomicBool::new(false),
        }
    }

    /// Whether it opens for this secret at `now`.
    pub(super) fn admits(&self, digest: &KeyDigest, now: Timestamp) -> bool {
        self.key.accepts(digest, now) & self.key.is_active(now)
    }

    /// Whether it opened for this secret once, and was not revoked.
    pub(super) fn has_admitted(&self, digest: &KeyDigest) -> bool {
        let is_previous = self.key.previous.is_some_and(|previous| previous.digest.matches(digest));
        self.key.revoked_at.is_none() & (self.key.digest.matches(digest) | is_previous)
    }
}

/// When something was last asked for, for whom it refuses what they show.
#[derive(Debug)]
pub(super) struct LastAsked(AtomicU64);

impl LastAsked {
    fn at(asked: Duration) -> Self {
        Self(AtomicU64::new(micros(asked)))
    }

    /// Whether it is time to ask again; of many who want to at one moment, one is told so.
    pub(super) fn is_due_again(&self, now: Duration) -> bool {
        let due = |at: u64| at.saturating_add(micros(REFUSES)) <= micros(now);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| due(at).then_some(micros(now))).is_ok()
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A project with what verifies its tokens, which is read when the first comes.
pub(super) struct KnownProject {
    pub(super) project: Arc<Project>,
    pub(super) asked: LastAsked,
    secret_key: Option<Secret>,
    token_keys: OnceLock<TokenKeys>,
}

impl KnownProject {
    pub(super) fn token_keys(&self) -> &TokenKeys {
        self.token_keys.get_or_init(|| TokenKeys::of(&self.project, self.secret_key.as_ref()))
    }
}

/// Looks keys and projects up, and remembers them.
pub struct Credentials {
    store: Arc<dyn Store>,
    ctx: Ctx,
    secret_key: Option<Secret>,
    remembered: Mutex<Remembered>,
    listed: Arc<Mutex<Listed>>,
    /// Held by the one listing there is at a time.
    listing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Remembered {
    keys: HashMap<String, Read<KnownKey>>,
    projects: HashMap<ProjectId, Read<KnownProject>>,
    /// Grows when something is forgotten: what was asked for before must not come in after.
    forgotten: u64,
}

/// Something as it was when it was asked for.
struct Read<T> {
    value: Arc<T>,
    at: Duration,
}

/// When something was asked for.
#[derive(Clone, Copy)]
struct Asked {
    at: Duration,
    forgotten: u64,
}

/// Every id there was when they were last listed, and those made here since.
#[derive(Default)]
struct Listed {
    ids: HashSet<String>,
    /// Why the last listing failed, which leaves the ids of the one before.
    failed: Option<StoreError>,
    /// From when on they are listed anew.
    stale_at: Duration,
    /// Those made here while they are being listed.
    made: Option<Vec<String>>,
}

impl Listed {
    fn is_fresh(&self, now: Duration) -> bool {
        now < self.stale_at
    }

    fn has(&self, id: &str) -> Result<bool, StoreError> {
        match &self.failed {
            Some(error) if !self.ids.contains(id) => Err(error.clone()),
            _ => Ok(self.ids.contains(id)),
        }
    }

    fn add(&mut self, id: String, now: Duration) {
        if let Some(made) = &mut self.made {
            made.push(id.clone());
        }
        if self.is_fresh(now) {
            self.ids.insert(id);
        }
    }
}

impl Credentials {
    /// Remembers nothing yet.
    pub fn new(store: Arc<dyn Store>, ctx: Ctx, secret_key: Option<Secret>) -> Self {
        Self { store, ctx, secret_key, remembered: Mutex::default(), listed: Arc::default(), listing: Arc::default() }
    }

    /// The project of this id, as it was a moment ago.
    pub async fn project(&self, project_id: ProjectId) -> Result<Option<Arc<Project>>, StoreError> {
        let known = match self.remembered_project(project_id) {
            Some(known) => Some(known),
            None => self.look_up_project(project_id).await?,
        };
        Ok(known.map(|known| known.project.clone()))
    }

    /// The key of this id if it was asked for a moment ago, whatever its state.
    pub(super) fn remembered_key(&self, key_id: &str) -> Option<Arc<KnownKey>> {
        let now = self.ctx.elapsed();
        fresh(self.remembered().keys.get(key_id), now)
    }

    /// The key of this id as it is now, whatever its state.
    pub(super) async fn look_up_key(&self, key_id: &str) -> Result<Option<Arc<KnownKey>>, StoreError> {
        let asked = self.asked();
        let Some((key, project)) = self.store.get_api_key(key_id).await? else {
            return Ok(None);
        };
        let known = Arc::new(KnownKey::new(key, project, asked.at));
        let remembered = &mut *self.remembered();
        remember(&mut remembered.keys, key_id.to_owned(), &known, asked, remembered.forgotten);
        Ok(Some(known))
    }

    /// The project of this id if it was asked for a moment ago.
    pub(super) fn remembered_project(&self, project_id: ProjectId) -> Option<Arc<KnownProject>> {
        let now = self.ctx.elapsed();
        fresh(self.remembered().projects.get(&project_id), now)
    }

    /// The project of this id as it is now.
    pub(super) async fn look_up_project(&self, project_id: ProjectId) -> Result<Option<Arc<KnownProject>>, StoreError> {
        let asked = self.asked();
        let Some(project) = self.store.get_project(project_id).await? else {
            return Ok(None);
        };
        let (project, secret_key) = (Arc::new(project), self.secret_key.clone());
        let known =
            Arc::new(KnownProject { project, asked: LastAsked::at(asked.at), secret_key, token_keys: OnceLock::new() });
        let remembered = &mut *self.remembered();
        remember(&mut remembered.projects, project_id, &known, asked, remembered.forgotten);
        Ok(Some(known))
    }

    /// Whether there was a key or project of this id a moment ago. All ids are listed for it at once, so that a flood
    /// of guesses asks the store no more than a trickle. A request that goes away does not end the listing.
    pub(super) async fn is_listed(&self, id: &str) -> Result<bool, StoreError> {
        let is_fresh = || locked(&self.listed).is_fresh(self.ctx.elapsed());
        if !is_fresh() {
            let turn = self.listing.clone().lock_owned().await;
            if !is_fresh() {
                let listing = list(turn, self.store.clone(), self.ctx.clone(), self.listed.clone());
                let ended = tokio::spawn(listing).await;
                ended.map_err(|_| StoreError::Internal { reason: "listing ids panicked".to_owned() })?;
            }
        }
        locked(&self.listed).has(id)
    }

    /// Forgets a key that was made or changed here.
    pub fn forget_key(&self, key_id: &str) {
        locked(&self.listed).add(key_id.to_owned(), self.ctx.elapsed());
        let mut remembered = self.remembered();
        remembered.forgotten += 1;
        remembered.keys.remove(key_id);
    }

    /// Forgets a project that was made or changed here, and its keys.
    pub fn forget_project(&self, project_id: ProjectId) {
        locked(&self.listed).add(project_id.to_string(), self.ctx.elapsed());
        let mut remembered = self.remembered();
        remembered.forgotten += 1;
        remembered.projects.remove(&project_id);
        remembered.keys.retain(|_, read| read.value.key.project_id != project_id);
    }

    fn asked(&self) -> Asked {
        Asked { at: self.ctx.elapsed(), forgotten: self.remembered().forgotten }
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        locked(&self.remembered)
    }
}

/// Lists all ids.
async fn list(_turn: OwnedMutexGuard<()>, store: Arc<dyn Store>, ctx: Ctx, listed: Arc<Mutex<Listed>>) {
    let began = ctx.elapsed();
    locked(&listed).made = Some(Vec::new());
    let found = store.list_credential_ids().await;
    let ended = ctx.elapsed();
    let listed = &mut *locked(&listed);
    match found {
        Ok(ids) => (listed.ids, listed.failed) = (ids.into_iter().collect(), None),
        Err(error) => listed.failed = Some(error),
    }
    listed.ids.extend(listed.made.take().unwrap_or_default());
    let rest = ended.saturating_sub(began) * (LISTING_SHARE - 1);
    listed.stale_at = (began + BELIEVED).max(ended + rest);
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fresh<T>(read: Option<&Read<T>>, now: Duration) -> Option<Arc<T>> {
    read.filter(|read| read.is_fresh(now)).map(|read| read.value.clone())
}

impl<T> Read<T> {
    fn is_fresh(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) < BELIEVED
    }
}

fn remember<K: Eq + Hash, T>(map: &mut HashMap<K, Read<T>>, key: K, value: &Arc<T>, asked: Asked, forgotten: u64) {
    if asked.forgotten != forgotten {
        return;
    }
    if map.len() >= REMEMBERED_MAX {
        map.retain(|_, read| read.is_fresh(asked.at));
        if map.len() >= REMEMBERED_MAX {
            map.clear();
        }
    }
    map.insert(key, Read { value: value.clone(), at: asked.at });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(ms: u64, forgotten: u64) -> Asked {
        Asked { at: Duration::from_millis(ms), forgotten }
    }

    #[test]
    fn what_was_asked_for_before_something_was_forgotten_does_not_come_in() {
        let mut map = HashMap::new();
        remember(&mut map, 1, &Arc::new("before"), asked(0, 7), 8);
        assert!(map.is_empty());
        remember(&mut map, 1, &Arc::new("after"), asked(0, 8), 8);
        assert_eq!(**fresh(map.get(&1), Duration::from_millis(499)).as_ref().unwrap(), "after");
    }

    #[test]
    fn nothing_is_believed_longer_than_half_a_second_after_it_was_asked_for() {
        let mut map = HashMap::new();
        remember(&mut map, 1, &Arc::new(()), asked(1_000, 0), 0);
        assert!(fresh(map.get(&1), Duration::from_millis(1_499)).is_some());
        assert!(fresh(map.get(&1), Duration::from_millis(1_500)).is_none());
    }

    #[test]
    fn of_many_who_would_ask_again_one_does_so_each_moment() {
        let asked = LastAsked::at(Duration::from_millis(1_000));
        let at = [1_000, 1_049, 1_050, 1_050, 1_099, 1_100, 1_100];
        let is_due = at.map(|ms| asked.is_due_again(Duration::from_millis(ms)));
        assert_eq!(is_due, [false, false, true, false, false, true, false]);
    }

    #[test]
    fn ids_made_while_they_are_listed_are_not_lost() {
        let now = Duration::ZERO;
        let mut listed = Listed { made: Some(Vec::new()), ..Listed::default() };
        listed.add("made".to_owned(), now);
        assert_eq!((listed.has("made"), listed.made.as_deref()), (Ok(false), Some(&["made".to_owned()][..])));
        listed = Listed { stale_at: BELIEVED, ..Listed::default() };
        listed.add("made".to_owned(), now);
        assert_eq!(listed.has("made"), Ok(true));
        listed.failed = Some(StoreError::Busy);
        assert_eq!((listed.has("made"), listed.has("another")), (Ok(true), Err(StoreError::Busy)));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_stale_goes_first() {
        let mut map = HashMap::new();
        for n in 0..REMEMBERED_MAX {
            remember(&mut map, n, &Arc::new(()), asked(if n < 10 { 0 } else { 400 }, 0), 0);
        }
        remember(&mut map, REMEMBERED_MAX, &Arc::new(()), asked(600, 0), 0);
        assert_eq!(map.len(), REMEMBERED_MAX - 9);
        for n in 0..20 {
            remember(&mut map, REMEMBERED_MAX + 1 + n, &Arc::new(()), asked(600, 0), 0);
            assert!(map.len() <= REMEMBERED_MAX);
        }
    }
}
