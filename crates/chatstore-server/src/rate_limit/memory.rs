//! Buckets in memory, so many and no more.
//!
//! Each dimension has its own, so that a flood of addresses pushes out no key and no user. A bucket stands in one of
//! the few slots that a secret hash of its name gives; when these are taken it takes the place of the one that owes
//! least, which is most often full again and so worth nothing.

use std::hash::{DefaultHasher, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chatstore_core::clock::Ctx;
use chatstore_core::limits::{RATE_BUCKETS_ADDRESSES_MAX, RATE_BUCKETS_KEYS_MAX, RATE_BUCKETS_USERS_MAX};
use chatstore_core::rates::Verdict;

use super::{Limit, Limits};

/// Slots that a bucket may stand in.
const WAYS: usize = 16;
/// Buckets of projects. Only operators make these, so that nobody else can push one out.
const PROJECTS_MAX: usize = 65_536;
/// Parts with a lock each.
const SHARDS: usize = 16;

/// The hash of a bucket's name, and the nanosecond at which it is full again. One that never was used is full since 0.
type Slot = [u64; 3];

/// Buckets of every dimension.
pub(super) struct Memory {
    seeds: [[u8; 16]; 2],
    maps: [Map; 5],
}

/// The buckets of one dimension.
struct Map {
    shards: Vec<Mutex<Vec<Slot>>>,
    /// Slots of one shard, taken from memory when the first is used.
    slots: usize,
}

/// The bucket of a limit's first rate; those of the others stand beside it.
#[derive(Clone, Copy)]
struct BucketId([u64; 2]);

impl Memory {
    pub(super) fn new(ctx: &Ctx) -> Self {
        let sharded = |buckets_max: usize| Map::new(SHARDS, buckets_max / SHARDS);
        Self {
            seeds: [ctx.random(), ctx.random()],
            maps: [
                Map::new(1, WAYS),
                sharded(RATE_BUCKETS_ADDRESSES_MAX),
                sharded(PROJECTS_MAX),
                sharded(RATE_BUCKETS_KEYS_MAX),
                sharded(RATE_BUCKETS_USERS_MAX),
            ],
        }
    }

    /// What each rate of each limit, shared by so many servers, says of one request at `now_ns`; if all admit it, it
    /// is counted. The clock is read when nobody else can count on these buckets.
    pub(super) fn count(&self, limits: &Limits<'_>, sharers: u32, now_ns: impl FnOnce() -> u64) -> Vec<Verdict> {
        // Everybody takes the locks in the order of the dimensions, and of each only one.
        let wanted = self.maps.iter().zip(limits).filter_map(|(map, limit)| Some((map, limit.as_ref()?)));
        let mut held: Vec<_> = wanted
            .map(|(map, limit)| {
                let id = self.id(limit);
                (map.lock(id), id, limit)
            })
            .collect();
        let now_ns = now_ns();
        let mut verdicts = Vec::with_capacity(held.len());
        for (slots, id, limit) in &mut held {
            for (nth, rate) in limit.rates.iter().enumerate() {
                let share = rate.share(sharers);
                let full_at_ns = find(slots, *id, nth).map_or(0, |at| {
                    // What a wider rate left before it was changed locks nobody out.
                    let window_ns = share.interval_ns.saturating_mul(u64::from(share.burst));
                    slots[at][2] = slots[at][2].min(now_ns.saturating_add(window_ns));
                    slots[at][2]
                });
                verdicts.push(share.decide(full_at_ns, now_ns));
            }
        }
        if verdicts.iter().all(|verdict| matches!(verdict, Verdict::Admit { .. })) {
            let mut admitted = verdicts.iter();
            for (slots, id, limit) in &mut held {
                for (nth, verdict) in (0..limit.rates.len()).zip(&mut admitted) {
                    if let Verdict::Admit { full_at_ns, .. } = verdict {
                        let at = find(slots, *id, nth).unwrap_or_else(|| least(slots, *id, nth));
                        slots[at] = id.slot(nth, *full_at_ns);
                    }
                }
            }
        }
        verdicts
    }

    fn id(&self, limit: &Limit<'_>) -> BucketId {
        BucketId(self.seeds.map(|seed| {
            let mut hasher = DefaultHasher::new();
            hasher.write(&seed);
            hasher.write(&limit.subject);
            hasher.finish()
        }))
    }
}

impl Map {
    fn new(shards: usize, slots: usize) -> Self {
        Self { shards: (0..shards).map(|_| Mutex::new(Vec::new())).collect(), slots }
    }

    fn lock(&self, id: BucketId) -> MutexGuard<'_, Vec<Slot>> {
        let shard = &self.shards[index(id.0[1], self.shards.len())];
        let mut slots = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.is_empty() {
            *slots = vec![[0; 3]; self.slots];
        }
        slots
    }
}

impl BucketId {
    /// The slots where the bucket of the `nth` rate may stand.
    fn ways(self, nth: usize, slots: usize) -> std::ops::Range<usize> {
        let sets = slots / WAYS;
        let set = (index(self.0[0], sets) + nth) % sets;
        set * WAYS..(set + 1) * WAYS
    }

    fn slot(self, nth: usize, full_at_ns: u64) -> Slot {
        [self.0[0], self.0[1].wrapping_add(nth as u64), full_at_ns]
    }
}

/// A number below `len`.
fn index(hash: u64, len: usize) -> usize {
    usize::try_from(hash % len as u64).unwrap_or(0)
}

fn find(slots: &[Slot], id: BucketId, nth: usize) -> Option<usize> {
    let wanted = id.slot(nth, 0);
    id.ways(nth, slots.len()).find(|at| slots[*at][..2] == wanted[..2])
}

/// The slot of the bucket that owes least.
fn least(slots: &[Slot], id: BucketId, nth: usize) -> usize {
    let ways = id.ways(nth, slots.len());
    let first = ways.start;
    ways.min_by_key(|at| slots[*at][2]).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::super::{Dimension, Limits};
    use super::*;
    use chatstore_core::clock::Timestamp;
    use chatstore_core::rates::{Rates, RequestClass};
    use proptest::prelude::*;

    fn memory() -> Memory {
        Memory::new(&Ctx::fixed(Timestamp::parse("2026-01-01T00:00:00Z").unwrap(), 1, 7))
    }

    fn rates(text: &str) -> Rates {
        Rates::parse(text).unwrap()
    }

    fn limit<'a>(dimension: Dimension, rates: &'a Rates, subject: u64) -> Option<Limit<'a>> {
        Limit::new(dimension, RequestClass::Reads, Some(rates), &[&subject.to_be_bytes()])
    }

    fn of_address(rates: &Rates, subject: u64) -> Limits<'_> {
        [None, limit(Dimension::Address, rates, subject), None, None, None]
    }

    fn is_admitted(verdicts: &[Verdict]) -> bool {
        verdicts.iter().all(|verdict| matches!(verdict, Verdict::Admit { .. }))
    }

    fn held(memory: &Memory) -> usize {
        let shards = memory.maps.iter().flat_map(|map| &map.shards);
        shards.map(|shard| shard.lock().unwrap().iter().filter(|slot| slot[2] > 0).count()).sum()
    }

    #[test]
    fn each_rate_and_each_subject_has_a_bucket_of_its_own() {
        let memory = memory();
        let two = rates("2/second;3/minute");
        assert!(is_admitted(&memory.count(&of_address(&two, 1), 1, || 0)));
        assert!(is_admitted(&memory.count(&of_address(&two, 1), 1, || 0)));
        let refused = memory.count(&of_address(&two, 1), 1, || 0);
        assert!(matches!(refused[..], [Verdict::Refuse { wait_ns: 500_000_000 }, Verdict::Admit { remaining: 0, .. }]));
        assert!(is_admitted(&memory.count(&of_address(&two, 2), 1, || 0)));
        assert!(is_admitted(&memory.count(&of_address(&two, 1), 1, || 500_000_000)));
        let refused = memory.count(&of_address(&two, 1), 1, || 2_000_000_000);
        assert!(matches!(refused[..], [Verdict::Admit { .. }, Verdict::Refuse { wait_ns: 18_000_000_000 }]));
    }

    #[test]
    fn what_one_limit_refuses_no_other_counts() {
        let memory = memory();
        let (one, many) = (rates("1/minute"), rates("10/minute"));
        let both = || [limit(Dimension::Global, &many, 0), None, None, limit(Dimension::Key, &one, 1), None];
        assert!(is_admitted(&memory.count(&both(), 1, || 0)));
        for _ in 0..20 {
            assert!(!is_admitted(&memory.count(&both(), 1, || 0)));
        }
        let other = memory.count(&[limit(Dimension::Global, &many, 0), None, None, None, None], 1, || 0);
        assert!(matches!(other[..], [Verdict::Admit { remaining: 8, .. }]));
    }

    #[test]
    fn a_share_of_a_limit_is_its_part() {
        let memory = memory();
        let rate = rates("6/second");
        let admitted = (0..10).filter(|_| is_admitted(&memory.count(&of_address(&rate, 1), 3, || 0))).count();
        assert_eq!(admitted, 2);
        assert!(!is_admitted(&memory.count(&of_address(&rate, 1), 3, || 499_999_999)));
        assert!(is_admitted(&memory.count(&of_address(&rate, 1), 3, || 500_000_500)));
    }

    #[test]
    fn a_rate_that_was_changed_locks_nobody_out() {
        let memory = memory();
        let (before, after) = (rates("1/day burst 100"), rates("10/second"));
        while is_admitted(&memory.count(&of_address(&before, 1), 1, || 0)) {}
        let refused = memory.count(&of_address(&after, 1), 1, || 1);
        assert_eq!(refused, [Verdict::Refuse { wait_ns: 100_000_000 }]);
        assert!(is_admitted(&memory.count(&of_address(&after, 1), 1, || 100_000_001)));
    }

    #[test]
    fn a_million_addresses_take_bounded_memory_and_push_out_neither_keys_nor_who_owes_most() {
        let memory = memory();
        let (rate, slow) = (rates("100/minute"), rates("1/day"));
        let key = || [None, None, None, limit(Dimension::Key, &slow, 1), None];
        assert!(is_admitted(&memory.count(&key(), 1, || 0)));
        while is_admitted(&memory.count(&of_address(&rate, 0), 1, || 0)) {}
        for address in 1..=1_000_000 {
            assert!(is_admitted(&memory.count(&of_address(&rate, address), 1, || 0)));
        }
        let addresses = held(&memory) - 1;
        assert!(addresses <= RATE_BUCKETS_ADDRESSES_MAX, "{addresses}");
        assert!(addresses > RATE_BUCKETS_ADDRESSES_MAX * 9 / 10, "{addresses}");
        assert!(!is_admitted(&memory.count(&key(), 1, || 0)));
        assert!(!is_admitted(&memory.count(&of_address(&rate, 0), 1, || 0)));
    }

    #[test]
    fn buckets_that_are_full_again_make_room_first() {
        let memory = memory();
        let (fast, slow) = (rates("1/second"), rates("1/minute"));
        for address in 0..10_000 {
            memory.count(&of_address(&slow, address), 1, || 0);
        }
        for address in 10_000..200_000 {
            memory.count(&of_address(&fast, address), 1, || address * 250_000);
        }
        // What still owes at the end was never pushed out by what no longer does.
        let now_ns = 59_000_000_000;
        let kept =
            (0..10_000).filter(|address| !is_admitted(&memory.count(&of_address(&slow, *address), 1, || now_ns)));
        assert_eq!(kept.count(), 10_000);
    }

    #[test]
    fn many_threads_admit_exactly_a_burst() {
        let memory = memory();
        let rate = rates("500/day");
        let limits = || [limit(Dimension::Global, &rate, 0), limit(Dimension::Address, &rate, 1), None, None, None];
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..200).filter(|_| is_admitted(&memory.count(&limits(), 1, || 0))).count()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 500);
    }

    fn any_rates() -> impl Strategy<Value = Rates> {
        let rate = (1u32..500, prop::sample::select(vec!["second", "minute", "hour", "day"]), 1u32..30);
        let rate = rate.prop_map(|(count, unit, burst)| format!("{count}/{unit} burst {burst}"));
        prop::collection::vec(rate, 1..=4).prop_map(|texts| rates(&texts.join(";")))
    }

    proptest! {
        #[test]
        fn a_refusal_never_lies(all in any_rates(), own in any_rates(), sharers in 1u32..5) {
            let memory = memory();
            let limits = || [limit(Dimension::Global, &all, 0), None, None, limit(Dimension::Key, &own, 1), None];
            let mut now_ns = 0;
            for _ in 0..5 {
                let refused = loop {
                    let verdicts = memory.count(&limits(), sharers, || now_ns);
                    if !is_admitted(&verdicts) {
                        break verdicts;
                    }
                };
                let waits = refused.iter().filter_map(|verdict| match verdict {
                    Verdict::Refuse { wait_ns } => Some(*wait_ns),
                    Verdict::Admit { .. } => None,
                });
                let wait_ns = waits.max().unwrap();
                prop_assert!(!is_admitted(&memory.count(&limits(), sharers, || now_ns + wait_ns - 1)));
                now_ns += wait_ns;
                prop_assert!(is_admitted(&memory.count(&limits(), sharers, || now_ns)));
            }
        }
    }
}
