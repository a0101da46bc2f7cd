//! What writers sent and were told, and whether the database agrees.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chatstore_core::clock::Ctx;
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::messages::{Message, MessageQuery, MessageStore as _, NewMessage};
use chatstore_core::page::{Order, PageRequest, PageStart};
use chatstore_core::store::StoreError;
use chatstore_postgres::PostgresStore;
use tokio::task::JoinSet;

use crate::{RECOVERY_LIMIT, SCOPE, assert_passing, eventually, new_session, read_session, within};

/// The most messages of one append.
const BATCH_MAX: u8 = 4;
/// The longest pause of a writer between two appends, in milliseconds.
const PAUSE_MS_MAX: u8 = 10;
/// Reads and appends that must all succeed at once when service is normal: more than a pool holds.
const NORMAL: usize = 24;

/// A message that was sent, whatever became of it.
struct Sent {
    session_id: SessionId,
    content: String,
    /// Its append, and its place among the messages of that.
    append: usize,
    place: usize,
    messages: usize,
    /// The place that was acknowledged.
    seq: Option<i64>,
}

/// Sessions with everything that was ever sent to them.
pub(crate) struct Ledger {
    ctx: Ctx,
    pub(crate) sessions: Vec<SessionId>,
    /// How soon every append must be answered.
    limit: Duration,
    sent: Mutex<HashMap<MessageId, Sent>>,
    appends: AtomicUsize,
    acknowledged: AtomicUsize,
    refused: AtomicUsize,
}

impl Ledger {
    /// A ledger of new sessions.
    pub(crate) async fn open(store: &PostgresStore, sessions: usize, limit: Duration) -> Arc<Self> {
        let mut ids = Vec::new();
        for _ in 0..sessions {
            ids.push(new_session(store).await.session_id);
        }
        Arc::new(Self {
            ctx: Ctx::system(),
            sessions: ids,
            limit,
            sent: Mutex::default(),
            appends: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        })
    }

    /// One append of any size to any session, noted; a refusal must be one that passes.
    pub(crate) async fn append(&self, store: &PostgresStore) -> Result<Vec<Message>, StoreError> {
        let [place, count] = self.ctx.random();
        let session_id = self.sessions[usize::from(place) % self.sessions.len()];
        let messages = usize::from(1 + count % BATCH_MAX);
        let append = self.appends.fetch_add(1, Ordering::Relaxed);
        let new: Vec<_> = (0..messages).map(|place| self.note(session_id, append, place, messages)).collect();
        let appending = store.append_messages(&SCOPE, session_id, new, self.ctx.now(), None);
        let result = within(self.limit, appending).await.map(|answered| answered.value);
        match &result {
            Ok(stored) => {
                assert_eq!(stored.len(), messages);
                self.acknowledge(stored);
            }
            Err(error) => {
                assert_passing(error);
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        result
    }

    fn note(&self, session_id: SessionId, append: usize, place: usize, messages: usize) -> NewMessage {
        let message_id = self.ctx.new_message_id(self.ctx.now(), session_id);
        let content = format!("{append} {place} {messages} {message_id}");
        let sent = Sent { session_id, content: content.clone(), append, place, messages, seq: None };
        self.sent.lock().unwrap().insert(message_id, sent);
        NewMessage::text(message_id, "user", content)
    }

    fn acknowledge(&self, stored: &[Message]) {
        let mut sent = self.sent.lock().unwrap();
        for message in stored {
            let sent = sent.get_mut(&message.message_id).expect("an answer holds what was sent");
            assert_eq!((message.session_id, &message.content), (sent.session_id, &sent.content));
            sent.seq = Some(message.seq);
        }
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// Writers that append to `stores` in turn, until they are told to stop.
    pub(crate) fn start_writers(self: &Arc<Self>, writers: usize, stores: &[&Arc<PostgresStore>]) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..writers {
            let (ledger, store, stop) = (self.clone(), stores[number % stores.len()].clone(), stop.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let _ = ledger.append(&store).await;
                    let [pause] = ledger.ctx.random();
                    tokio::time::sleep(Duration::from_millis(u64::from(pause % PAUSE_MS_MAX))).await;
                }
            });
        }
        Writers { tasks, stop }
    }

    /// Waits until service is normal: an append works, and then all of many at once. Tells how long the first one took.
    pub(crate) async fn await_service(self: &Arc<Self>, store: &Arc<PostgresStore>) -> Duration {
        let back = Instant::now();
        eventually("an append works", RECOVERY_LIMIT, async || self.append(store).await.ok()).await;
        let took = back.elapsed();
        // Of so many connections that are opened for them, one may come late.
        eventually("all of many work", RECOVERY_LIMIT, async || self.do_many(store).await.then_some(())).await;
        took
    }

    /// Whether reads and appends that come at once all succeed.
    async fn do_many(self: &Arc<Self>, store: &Arc<PostgresStore>) -> bool {
        let mut tasks = JoinSet::new();
        for number in 0..NORMAL {
            let (ledger, store) = (self.clone(), store.clone());
            tasks.spawn(async move {
                match number % 2 {
                    0 => ledger.append(&store).await.map(drop),
                    _ => read_session(&store, ledger.sessions[0]).await.map(drop),
                }
            });
        }
        let results = tasks.join_all().await;
        results.iter().filter_map(|result| result.as_ref().err()).for_each(assert_passing);
        results.iter().all(Result::is_ok)
    }

    /// Checks everything that was ever sent against what is stored: all that was acknowledged, at
    /// its place, nothing twice, nothing unsent, appends whole, no gap.
    pub(crate) async fn check(&self, store: &PostgresStore) {
        let mut sent = std::mem::take(&mut *self.sent.lock().unwrap());
        let mut present = 0;
        for &session_id in &self.sessions {
            let stored = self.messages(store, session_id).await;
            let mut next = (0, 0, 0);
            for (message, seq) in stored.iter().zip(1..) {
                assert_eq!(message.seq, seq, "a gap");
                let sent = sent.remove(&message.message_id).expect("every message was sent, and is here once");
                assert_eq!((sent.session_id, &sent.content), (session_id, &message.content), "altered");
                if let Some(acknowledged) = sent.seq {
                    assert_eq!(seq, acknowledged, "acknowledged elsewhere");
                }
                match sent.place {
                    0 => assert_eq!(next.1, next.2, "part of an append"),
                    _ => assert_eq!((sent.append, sent.place), (next.0, next.1), "an append in pieces"),
                }
                next = (sent.append, sent.place + 1, sent.messages);
            }
            assert_eq!(next.1, next.2, "part of an append");
            present += stored.len();
        }
        let lost: Vec<_> = sent.values().filter(|sent| sent.seq.is_some()).map(|sent| &sent.content).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        eprintln!(
            "{} appends: {} acknowledged, {} refused; {present} messages stored",
            self.appends.load(Ordering::Relaxed),
            self.acknowledged(),
            self.refused(),
        );
    }

    /// All messages of a session, as many as it counts.
    async fn messages(&self, store: &PostgresStore, session_id: SessionId) -> Vec<Message> {
        let query = MessageQuery { order: Order::Asc, ..MessageQuery::default() };
        loop {
            let session = read_session(store, session_id).await.unwrap();
            let mut page = PageRequest { limit: 100, start: PageStart::Offset(0) };
            let mut found = Vec::new();
            loop {
                let part = store.list_messages(&SCOPE, session_id, &query, &page).await.unwrap();
                found.extend(part.items);
                let Some(next) = part.next else { break };
                page.start = PageStart::After(next);
            }
            // An append that was refused as too slow may still be stored.
            if session == read_session(store, session_id).await.unwrap() {
                let count = i64::try_from(found.len()).unwrap();
                assert_eq!((session.last_seq, session.message_count), (count, count));
                return found;
            }
        }
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Writers at work.
pub(crate) struct Writers {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
}

impl Writers {
    /// Fails the test as soon as one has failed.
    pub(crate) fn assert_at_work(&mut self) {
        if let Some(ended) = self.tasks.try_join_next() {
            ended.unwrap();
        }
    }

    /// Lets them finish what they are at; one that failed fails the test.
    pub(crate) async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
    }
}
