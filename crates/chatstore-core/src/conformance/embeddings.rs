//! Checks of embeddings.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use super::search::{embedding, vector};
use super::{TestStore, is_invalid, join_all};
use crate::archive::{ArchiveIdentity, ArchivedSession};
use crate::clock::Timestamp;
use crate::embeddings::{
    Embedding, EmbeddingBacklog, EmbeddingJob, EmbeddingSource, JobOutcome, Metric, ModelCount, NewEmbedding,
    VectorQuery,
};
use crate::ids::MessageId;
use crate::messages::{Message, MessagePatch, NewMessage};
use crate::search::{Derived, SearchFilter};
use crate::sessions::{NewSession, Session};
use crate::store::{ExpectedVersion, Scope, StoreError};

/// Microseconds a job is lent for.
const LEASE_US: i64 = 60_000_000;

impl TestStore {
    /// Appends a message that is queued.
    async fn queue(&self, session: &Session, content: &str) -> Message {
        let new = NewMessage { embed: true, ..self.new_message(session, content) };
        self.append(session, vec![new]).await.unwrap().remove(0)
    }

    async fn claim(&self, now: Timestamp, limit: usize) -> Vec<EmbeddingJob> {
        self.store.claim_embedding_jobs(now, now.plus_micros(LEASE_US), limit).await.unwrap()
    }

    async fn complete(&self, job: &EmbeddingJob, outcome: JobOutcome) {
        self.store.complete_embedding_jobs(vec![(job.clone(), outcome)], self.ctx.now()).await.unwrap();
    }

    /// Does what a worker does until nothing waits, with the same vector for all.
    async fn embed_all(&self, model: &str, numbers: &[f32]) {
        while self.store.reindex_some(Derived::Embeddings).await.unwrap().more {}
        for job in self.claim(self.ctx.now(), 99).await {
            self.complete(&job, done(model, &[numbers])).await;
        }
        while self.store.settle_embedding_source().await.unwrap() {}
    }

    async fn embeddings(&self, scope: &Scope, message: &Message) -> Vec<Embedding> {
        self.store.list_embeddings(scope, &[message.message_id]).await.unwrap()
    }

    async fn backlog(&self) -> EmbeddingBacklog {
        self.store.get_embedding_backlog(&self.project).await.unwrap()
    }

    /// Messages that a search by meaning finds with a model, nearest to `to` first.
    async fn near(&self, model: &str, to: &[f32]) -> Vec<MessageId> {
        let query = VectorQuery { model: model.to_owned(), vector: vector(to), metric: Metric::Cosine };
        let found = self.store.search_vectors(&self.project, &query, &SearchFilter::default(), 100).await.unwrap();
        found.into_iter().map(|message| message.message_id).collect()
    }
}

fn done(model: &str, vectors: &[&[f32]]) -> JobOutcome {
    JobOutcome::Embedded { model: model.to_owned(), vectors: vectors.iter().map(|numbers| vector(numbers)).collect() }
}

fn stored(message: &Message, model: &str, vectors: &[&[f32]]) -> Embedding {
    let vectors = vectors.iter().map(|numbers| vector(numbers)).collect();
    Embedding { message_id: message.message_id, model: model.to_owned(), vectors }
}

fn queued(jobs: &[EmbeddingJob]) -> Vec<(MessageId, u32)> {
    jobs.iter().map(|job| (job.message_id, job.attempts)).collect()
}

pub async fn append_messages_stores_embeddings_bit_for_bit(t: TestStore) {
    let session = t.session_of("alice").await;
    let odd = [f32::MIN_POSITIVE, -0.0, 1.0 / 3.0, 65_504.5, -1e18, 1.175_494_2e-38];
    let new = NewMessage { embedding: Some(embedding(&odd)), ..t.new_message(&session, "x") };
    let plain = t.new_message(&session, "y");
    let messages = t.append(&session, vec![new, plain]).await.unwrap();
    assert_eq!(t.embeddings(&t.user("alice"), &messages[0]).await, [stored(&messages[0], "m", &[&odd])]);
    assert_eq!(t.embeddings(&t.project, &messages[1]).await, []);
    assert_eq!(t.claim(t.ctx.now(), 9).await, []);
}

pub async fn append_messages_refuses_another_length_and_stores_nothing(t: TestStore) {
    let session = t.session_of("alice").await;
    t.place(&session, &[1.0, 0.0]).await;
    let with = |numbers: &[f32]| NewMessage { embedding: Some(embedding(numbers)), ..t.new_message(&session, "x") };
    let result = t.append(&session, vec![with(&[1.0, 1.0]), with(&[1.0])]).await;
    assert!(is_invalid(result, "/1/embedding"));
    assert_eq!(t.messages(&session).await.len(), 1);
    // The first vector of a model fixes the length within the same batch, too.
    let named = |numbers: &[f32]| {
        let new = NewEmbedding { model: "new".to_owned(), vector: vector(numbers) };
        NewMessage { embedding: Some(new), ..t.new_message(&session, "x") }
    };
    let result = t.append(&session, vec![named(&[1.0]), named(&[1.0, 2.0])]).await;
    assert!(is_invalid(result, "/1/embedding"));
    t.append(&session, vec![named(&[1.0, 2.0, 3.0])]).await.unwrap();
    assert_eq!(t.near("new", &[1.0, 2.0, 3.0]).await.len(), 1);
}

pub async fn a_model_of_another_project_has_its_own_length(t: TestStore) {
    let session = t.session().await;
    t.place(&session, &[1.0, 0.0]).await;
    let foreign = t
        .store
        .create_session(&t.other, t.placed(&t.other, t.new_session(None)), Vec::new(), None)
        .await
        .unwrap()
        .value;
    let new = NewMessage { embedding: Some(embedding(&[1.0])), ..t.new_message(&foreign, "x") };
    t.store.append_messages(&t.other, foreign.session_id, vec![new], t.ctx.now(), None).await.unwrap();
    let count = |dimensions| vec![ModelCount { model: "m".to_owned(), dimensions, vectors: 1 }];
    assert_eq!(t.backlog().await.models, count(2));
    assert_eq!(t.store.get_embedding_backlog(&t.other).await.unwrap().models, count(1));
}

pub async fn set_embedding_replaces_the_one_of_its_model(t: TestStore) {
    let session = t.session_of("alice").await;
    let message = t.place(&session, &[1.0, 0.0]).await;
    let other = NewEmbedding { model: "a".to_owned(), vector: vector(&[1.0]) };
    let now = t.ctx.now();
    let user = t.user("alice");
    t.store.set_embedding(&user, message.message_id, embedding(&[0.0, 1.0]), now).await.unwrap();
    t.store.set_embedding(&user, message.message_id, other, now).await.unwrap();
    let expected = [stored(&message, "a", &[&[1.0]]), stored(&message, "m", &[&[0.0, 1.0]])];
    assert_eq!(t.embeddings(&user, &message).await, expected);
    assert_eq!(t.reload(&session).await.version, session.version);
    let wrong = t.store.set_embedding(&user, message.message_id, embedding(&[1.0]), now).await;
    assert!(is_invalid(wrong, "/embedding"));
    assert_eq!(t.embeddings(&user, &message).await, expected);
}

pub async fn set_embedding_and_list_embeddings_keep_to_their_scope(t: TestStore) {
    let session = t.session_of("alice").await;
    let (message, gone) = (t.place(&session, &[1.0, 0.0]).await, t.place(&session, &[1.0, 0.0]).await);
    let now = t.ctx.now();
    t.store.delete_message(&t.project, gone.message_id, ExpectedVersion::Any, now).await.unwrap();
    for (scope, id) in [
        (&t.user("bob"), message.message_id),
        (&t.other, message.message_id),
        (&t.project, gone.message_id),
        (&t.project, t.new_message(&session, "never stored").message_id),
    ] {
        let result = t.store.set_embedding(scope, id, embedding(&[0.0, 1.0]), now).await;
        assert_eq!(result, Err(StoreError::NotFound));
        assert_eq!(t.store.list_embeddings(scope, &[id]).await.unwrap(), []);
    }
    let second = t.place(&session, &[0.0, 1.0]).await;
    let wanted = [second.message_id, gone.message_id, message.message_id];
    let listed = t.store.list_embeddings(&t.user("alice"), &wanted).await.unwrap();
    assert_eq!(listed, [stored(&second, "m", &[&[0.0, 1.0]]), stored(&message, "m", &[&[1.0, 0.0]])]);
}

pub async fn claim_embedding_jobs_lends_each_message_once(t: TestStore) {
    let session = t.session_of("alice").await;
    let mut messages = Vec::new();
    for n in 0..6 {
        messages.push(t.queue(&session, &format!("text {n}")).await);
    }
    t.queue(&session, "").await;
    t.say(&session, "not queued").await;
    assert_eq!(t.backlog().await.pending, 6);
    let now = t.ctx.now();
    assert_eq!(t.claim(now, 0).await, []);
    let claims = join_all((0..4).map(|_| t.claim(now, 2))).await;
    let mut lent = claims.concat();
    lent.sort_by_key(|job| job.seq);
    assert_eq!(queued(&lent), messages.iter().map(|message| (message.message_id, 1)).collect::<Vec<_>>());
    let job = &lent[2];
    assert_eq!((job.project_id, job.session_id, job.seq), (t.project.project_id, session.session_id, 3));
    assert_eq!((job.version, job.content.as_str()), (1, "text 2"));
    assert_eq!(t.backlog().await.pending, 6);
    // A worker that went away keeps nobody waiting longer than its lease.
    assert_eq!(t.claim(now.plus_micros(LEASE_US - 1), 9).await, []);
    let again = t.claim(now.plus_micros(LEASE_US), 9).await;
    assert_eq!((again.len(), again[0].attempts), (6, 2));
}

pub async fn claim_embedding_jobs_is_oldest_first_and_bounded_in_bytes(t: TestStore) {
    let session = t.session_of("alice").await;
    let large = "word ".repeat(400_000);
    let mut ids = Vec::new();
    for content in [large.as_str(), "b", large.as_str(), large.as_str(), "e"] {
        ids.push(t.queue(&session, content).await.message_id);
    }
    let mut lent = Vec::new();
    loop {
        let jobs = t.claim(t.ctx.now(), 10).await;
        if jobs.is_empty() {
            break;
        }
        assert!(jobs.iter().map(|job| job.content.len()).sum::<usize>() <= 3 * large.len());
        lent.extend(jobs.into_iter().map(|job| job.message_id));
    }
    assert_eq!(lent, ids);
}

pub async fn claim_embedding_jobs_and_reindex_some_pass_over_deleted_projects(t: TestStore) {
    let doomed = t
        .store
        .create_session(&t.other, t.placed(&t.other, t.new_session(None)), Vec::new(), None)
        .await
        .unwrap()
        .value;
    for _ in 0..5 {
        let new = NewMessage { embed: true, ..t.new_message(&doomed, "a secret") };
        t.store.append_messages(&t.other, doomed.session_id, vec![new], t.ctx.now(), None).await.unwrap();
    }
    let kept = t.queue(&t.session().await, "kept").await;
    t.store.delete_project(t.other.project_id, t.ctx.now()).await.unwrap();
    // More of them than are asked for do not hide what stands behind.
    let jobs = t.claim(t.ctx.now(), 2).await;
    assert_eq!(queued(&jobs), [(kept.message_id, 1)]);
    t.complete(&jobs[0], done("m", &[&[1.0, 0.0]])).await;
    t.store.set_embedding_source("m").await.unwrap();
    t.reindex(Derived::Embeddings).await;
    assert_eq!(t.store.get_embedding_backlog(&t.other).await.unwrap(), EmbeddingBacklog::default());
    assert_eq!(t.claim(t.ctx.now(), 9).await, []);
}

pub async fn complete_embedding_jobs_stores_vectors_and_ends_the_wait(t: TestStore) {
    let session = t.session_of("alice").await;
    let (short, long) = (t.queue(&session, "short").await, t.queue(&session, "long").await);
    let jobs = t.claim(t.ctx.now(), 9).await;
    t.complete(&jobs[0], done("m", &[&[1.0, 0.0]])).await;
    t.complete(&jobs[1], done("m", &[&[0.0, 1.0], &[0.8, 0.6], &[-1.0, 0.0]])).await;
    assert_eq!(t.embeddings(&t.project, &short).await, [stored(&short, "m", &[&[1.0, 0.0]])]);
    let parts = stored(&long, "m", &[&[0.0, 1.0], &[0.8, 0.6], &[-1.0, 0.0]]);
    assert_eq!(t.embeddings(&t.project, &long).await, [parts]);
    // Each message counts once, with its nearest part.
    assert_eq!(t.near("m", &[1.0, 0.0]).await, [short.message_id, long.message_id]);
    assert_eq!(t.near("m", &[0.0, 1.0]).await, [long.message_id, short.message_id]);
    let models = vec![ModelCount { model: "m".to_owned(), dimensions: 2, vectors: 4 }];
    assert_eq!(t.backlog().await, EmbeddingBacklog { models, ..EmbeddingBacklog::default() });
    assert_eq!(t.claim(t.ctx.now().plus_micros(2 * LEASE_US), 9).await, []);
}

pub async fn complete_embedding_jobs_ignores_what_came_too_late(t: TestStore) {
    let session = t.session_of("alice").await;
    let names = ["edited", "deleted", "lent again"];
    let mut messages = Vec::new();
    for name in names {
        messages.push(t.queue(&session, name).await);
    }
    let start = t.ctx.now();
    let stale = t.claim(start, 9).await;
    let patch = MessagePatch { content: Some("another".to_owned()), embed: true, ..MessagePatch::default() };
    let now = t.ctx.now();
    t.store.update_message(&t.project, messages[0].message_id, patch, ExpectedVersion::Any, now).await.unwrap();
    t.store.delete_message(&t.project, messages[1].message_id, ExpectedVersion::Any, now).await.unwrap();
    let fresh = t.claim(start.plus_micros(LEASE_US), 9).await;
    let expected = [(messages[0].message_id, 1), (messages[2].message_id, 2)];
    let mut lent = queued(&fresh);
    lent.sort_by_key(|(_, attempts)| *attempts);
    assert_eq!(lent, expected);
    for job in &stale {
        t.complete(job, done("m", &[&[1.0, 0.0]])).await;
    }
    assert_eq!((t.near("m", &[1.0, 0.0]).await, t.backlog().await.pending), (vec![], 2));
    let edited = fresh.iter().find(|job| job.message_id == messages[0].message_id).unwrap();
    assert_eq!((edited.content.as_str(), edited.version), ("another", 2));
    for job in &fresh {
        t.complete(job, done("m", &[&[1.0, 0.0]])).await;
    }
    assert_eq!((t.near("m", &[1.0, 0.0]).await.len(), t.backlog().await.pending), (2, 0));
}

pub async fn an_edit_drops_the_vectors_of_the_old_text(t: TestStore) {
    let session = t.session_of("alice").await;
    let message = t.place(&session, &[1.0, 0.0]).await;
    let patch =
        |content: &str, embed| MessagePatch { content: Some(content.to_owned()), embed, ..MessagePatch::default() };
    let update = async |patch| {
        t.store.update_message(&t.project, message.message_id, patch, ExpectedVersion::Any, t.ctx.now()).await.unwrap()
    };
    // Nothing changes, so nothing is dropped or queued.
    update(patch("placed", true)).await;
    assert_eq!((t.near("m", &[1.0, 0.0]).await.len(), t.backlog().await.pending), (1, 0));
    update(patch("new", false)).await;
    assert_eq!((t.embeddings(&t.project, &message).await, t.backlog().await.pending), (vec![], 0));
    update(patch("newer", true)).await;
    assert_eq!(t.backlog().await.pending, 1);
    // An emptied text waits for nothing.
    update(patch("", true)).await;
    assert_eq!((t.backlog().await.pending, t.claim(t.ctx.now(), 9).await), (0, vec![]));
}

pub async fn complete_embedding_jobs_puts_off_and_puts_aside(t: TestStore) {
    let session = t.session_of("alice").await;
    let message = t.queue(&session, "difficult").await;
    let start = t.ctx.now();
    let job = t.claim(start, 9).await.remove(0);
    let due_at = start.plus_micros(5);
    t.complete(&job, JobOutcome::Later { due_at, counts: false }).await;
    assert_eq!(t.claim(start.plus_micros(4), 9).await, []);
    let job = t.claim(due_at, 9).await.remove(0);
    assert_eq!(job.attempts, 1);
    t.complete(&job, JobOutcome::Later { due_at, counts: true }).await;
    let job = t.claim(due_at, 9).await.remove(0);
    assert_eq!(job.attempts, 2);
    t.complete(&job, JobOutcome::Parked { reason: "the source refuses it".to_owned() }).await;
    let far = start.plus_micros(100 * LEASE_US);
    assert_eq!(t.claim(far, 9).await, []);
    let backlog = t.backlog().await;
    assert_eq!((backlog.pending, backlog.parked), (0, 1));
    assert_eq!(backlog.parked_examples, [(message.message_id, "the source refuses it".to_owned())]);
    assert_eq!(t.store.get_embedding_backlog(&t.other).await.unwrap(), EmbeddingBacklog::default());
    assert_eq!(t.store.retry_parked_embeddings(&t.other, far).await, Ok(0));
    assert_eq!(t.store.retry_parked_embeddings(&t.project, far).await, Ok(1));
    assert_eq!(queued(&t.claim(far, 9).await), [(message.message_id, 1)]);
    assert_eq!(t.backlog().await.parked, 0);
}

pub async fn what_was_put_aside_waits_for_somebody_or_another_model(t: TestStore) {
    let session = t.session_of("alice").await;
    t.store.set_embedding_source("m").await.unwrap();
    t.queue(&session, "difficult").await;
    let job = t.claim(t.ctx.now(), 9).await.remove(0);
    t.complete(&job, JobOutcome::Parked { reason: "the source refuses it".to_owned() }).await;
    // As at every start of a server.
    t.store.set_embedding_source("m").await.unwrap();
    while t.store.reindex_some(Derived::Embeddings).await.unwrap().more {}
    assert_eq!((t.backlog().await.parked, t.claim(t.ctx.now(), 9).await), (1, vec![]));
    t.store.set_embedding_source("another").await.unwrap();
    while t.store.reindex_some(Derived::Embeddings).await.unwrap().more {}
    assert_eq!(t.backlog().await.parked, 0);
    assert_eq!(queued(&t.claim(t.ctx.now(), 9).await), [(job.message_id, 1)]);
}

pub async fn a_vector_of_another_length_puts_its_job_aside(t: TestStore) {
    let session = t.session_of("alice").await;
    t.place(&session, &[1.0, 0.0]).await;
    let (bad, good) = (t.queue(&session, "bad").await, t.queue(&session, "good").await);
    let jobs = t.claim(t.ctx.now(), 9).await;
    let outcomes = [done("m", &[&[1.0]]), done("m", &[&[0.0, 1.0]])];
    let completed = jobs.into_iter().zip(outcomes).collect();
    t.store.complete_embedding_jobs(completed, t.ctx.now()).await.unwrap();
    let backlog = t.backlog().await;
    assert_eq!((backlog.pending, backlog.parked, backlog.parked_examples[0].0), (0, 1, bad.message_id));
    assert_eq!(t.near("m", &[0.0, 1.0]).await[0], good.message_id);
}

pub async fn get_embedding_backlog_tells_since_when(t: TestStore) {
    let session = t.session_of("alice").await;
    assert_eq!(t.backlog().await, EmbeddingBacklog::default());
    let first = t.queue(&session, "first").await;
    t.queue(&session, "second").await;
    let backlog = t.backlog().await;
    assert_eq!((backlog.pending, backlog.oldest_queued_at), (2, Some(first.created_at)));
    let deleted = t.store.delete_session(&t.project, session.session_id, ExpectedVersion::Any, t.ctx.now()).await;
    deleted.unwrap();
    assert_eq!(t.claim(t.ctx.now(), 9).await, []);
}

pub async fn a_brought_vector_of_the_source_ends_the_wait(t: TestStore) {
    let session = t.session_of("alice").await;
    t.store.set_embedding_source("m").await.unwrap();
    let (message, other) = (t.queue(&session, "one").await, t.queue(&session, "two").await);
    let foreign = NewEmbedding { model: "another".to_owned(), vector: vector(&[1.0]) };
    t.store.set_embedding(&t.project, other.message_id, foreign, t.ctx.now()).await.unwrap();
    t.store.set_embedding(&t.project, message.message_id, embedding(&[1.0, 0.0]), t.ctx.now()).await.unwrap();
    let new = NewMessage { embed: true, embedding: Some(embedding(&[1.0, 0.0])), ..t.new_message(&session, "three") };
    t.append(&session, vec![new]).await.unwrap();
    assert_eq!(queued(&t.claim(t.ctx.now(), 9).await), [(other.message_id, 1)]);
}

pub async fn set_embedding_source_lets_the_old_model_serve_until_the_new_one_can(t: TestStore) {
    let source = |model: &str, serving: &str| EmbeddingSource { model: model.to_owned(), serving: serving.to_owned() };
    let session = t.session_of("alice").await;
    assert_eq!(t.store.get_embedding_source().await.unwrap(), None);
    assert_eq!(t.store.set_embedding_source("old").await.unwrap(), source("old", "old"));
    let (one, two) = (t.queue(&session, "one").await, t.queue(&session, "two").await);
    t.say(&session, "never queued").await;
    for job in t.claim(t.ctx.now(), 9).await {
        t.complete(&job, done("old", &[&[1.0, 0.0]])).await;
    }
    assert_eq!(t.store.set_embedding_source("old").await.unwrap(), source("old", "old"));
    assert_eq!(t.store.set_embedding_source("new").await.unwrap(), source("new", "old"));
    assert_eq!(t.store.get_embedding_source().await.unwrap(), Some(source("new", "old")));
    assert!(t.store.is_reindexing(Derived::Embeddings).await.unwrap());
    assert!(!t.store.settle_embedding_source().await.unwrap());
    while t.store.reindex_some(Derived::Embeddings).await.unwrap().more {}
    t.store.settle_embedding_source().await.unwrap();
    assert_eq!(t.store.get_embedding_source().await.unwrap(), Some(source("new", "old")));
    // What is new comes before what is only embedded again.
    let late = t.queue(&session, "late").await;
    let first = t.claim(t.ctx.now(), 1).await.remove(0);
    assert_eq!(first.message_id, late.message_id);
    t.complete(&first, done("new", &[&[0.0, 1.0, 0.0]])).await;
    let rest = t.claim(t.ctx.now(), 9).await;
    assert_eq!(rest.len(), 3);
    for job in &rest {
        assert_eq!(t.store.get_embedding_source().await.unwrap(), Some(source("new", "old")));
        assert_eq!(t.near("old", &[1.0, 0.0]).await.len(), 2);
        t.complete(job, done("new", &[&[1.0, 0.0, 0.0]])).await;
    }
    while t.store.settle_embedding_source().await.unwrap() {}
    assert_eq!(t.store.get_embedding_source().await.unwrap(), Some(source("new", "new")));
    assert_eq!((t.near("old", &[1.0, 0.0]).await, t.near("new", &[1.0, 0.0, 0.0]).await.len()), (vec![], 4));
    for message in [&one, &two] {
        assert_eq!(t.embeddings(&t.project, message).await, [stored(message, "new", &[&[1.0, 0.0, 0.0]])]);
    }
}

pub async fn set_embedding_source_keeps_the_vectors_that_callers_brought(t: TestStore) {
    let session = t.session_of("alice").await;
    t.store.set_embedding_source("old").await.unwrap();
    let (made, brought) = (t.queue(&session, "made").await, t.queue(&session, "brought").await);
    let of_old = |numbers: &[f32]| NewEmbedding { model: "old".to_owned(), vector: vector(numbers) };
    t.store.set_embedding(&t.project, brought.message_id, of_old(&[0.0, 1.0]), t.ctx.now()).await.unwrap();
    let new = NewMessage { embedding: Some(of_old(&[1.0, 1.0])), ..t.new_message(&session, "came with it") };
    let appended = t.append(&session, vec![new]).await.unwrap().remove(0);
    t.embed_all("old", &[1.0, 0.0]).await;
    t.store.set_embedding_source("new").await.unwrap();
    t.embed_all("new", &[1.0, 0.0, 0.0]).await;
    assert_eq!(t.embeddings(&t.project, &made).await, [stored(&made, "new", &[&[1.0, 0.0, 0.0]])]);
    for (message, numbers) in [(&brought, [0.0, 1.0]), (&appended, [1.0, 1.0])] {
        let expected = [stored(message, "new", &[&[1.0, 0.0, 0.0]]), stored(message, "old", &[&numbers])];
        assert_eq!(t.embeddings(&t.project, message).await, expected);
    }
    assert_eq!(t.near("old", &[0.0, 1.0]).await, [brought.message_id, appended.message_id]);
}

pub async fn set_embedding_source_takes_a_model_again_with_another_length(t: TestStore) {
    let session = t.session_of("alice").await;
    let message = t.queue(&session, "embedded thrice").await;
    for (model, numbers) in [("a", &[1.0, 0.0][..]), ("b", &[1.0, 0.0, 0.0]), ("a", &[1.0])] {
        t.store.set_embedding_source(model).await.unwrap();
        t.embed_all(model, numbers).await;
        assert_eq!(t.embeddings(&t.project, &message).await, [stored(&message, model, &[numbers])]);
        assert_eq!(t.near(model, numbers).await, [message.message_id]);
        let dimensions = u32::try_from(numbers.len()).unwrap();
        let models = vec![ModelCount { model: model.to_owned(), dimensions, vectors: 1 }];
        assert_eq!(t.backlog().await, EmbeddingBacklog { models, ..EmbeddingBacklog::default() });
    }
}

pub async fn set_embedding_source_queues_what_was_stored_without_it(t: TestStore) {
    let session = t.session_of("alice").await;
    t.store.set_embedding_source("m").await.unwrap();
    t.embed_all("m", &[1.0, 0.0]).await;
    t.place(&session, &[1.0, 0.0]).await;
    let plain = t.say(&session, "while no source was at work").await;
    for _ in 0..2 {
        t.store.set_embedding_source("m").await.unwrap();
        assert!(t.store.is_reindexing(Derived::Embeddings).await.unwrap());
        while t.store.reindex_some(Derived::Embeddings).await.unwrap().more {}
        assert_eq!(t.backlog().await.pending, 1);
    }
    assert_eq!(queued(&t.claim(t.ctx.now(), 9).await), [(plain.message_id, 1)]);
}

pub async fn set_embedding_source_serves_at_once_where_nothing_was_embedded(t: TestStore) {
    let session = t.session_of("alice").await;
    let message = t.say(&session, "before any source").await;
    t.say(&session, "").await;
    t.store.set_embedding_source("first").await.unwrap();
    let source = t.store.set_embedding_source("second").await.unwrap();
    assert_eq!((source.model.as_str(), source.serving.as_str()), ("second", "second"));
    while t.store.reindex_some(Derived::Embeddings).await.unwrap().more {}
    assert_eq!(queued(&t.claim(t.ctx.now(), 9).await), [(message.message_id, 1)]);
}

pub async fn reindex_some_of_embeddings_queues_what_has_no_vector_of_the_source(t: TestStore) {
    let (session, doomed) = (t.session_of("alice").await, t.session().await);
    t.store.set_embedding_source("m").await.unwrap();
    t.reindex(Derived::Embeddings).await;
    t.place(&session, &[1.0, 0.0]).await;
    let (plain, waiting) = (t.say(&session, "plain").await, t.queue(&session, "waiting").await);
    let gone = t.say(&session, "gone").await;
    t.say(&doomed, "doomed").await;
    let now = t.ctx.now();
    t.store.delete_message(&t.project, gone.message_id, ExpectedVersion::Any, now).await.unwrap();
    t.store.delete_session(&t.project, doomed.session_id, ExpectedVersion::Any, now).await.unwrap();
    for _ in 0..2 {
        t.reindex(Derived::Embeddings).await;
        assert_eq!(t.backlog().await.pending, 2);
    }
    let lent = queued(&t.claim(t.ctx.now(), 9).await);
    assert_eq!(lent, [(waiting.message_id, 1), (plain.message_id, 1)]);
}

pub async fn import_session_brings_embeddings_and_queues_the_rest(t: TestStore) {
    t.store.set_embedding_source("m").await.unwrap();
    t.reindex(Derived::Embeddings).await;
    let session = NewSession { session_name: "imported".to_owned(), ..t.new_session(Some("alice")) };
    let session = session.into_session(t.project.project_id);
    let messages: Vec<Message> = ["with", "without", ""]
        .into_iter()
        .zip(1..)
        .map(|(content, seq)| {
            let new = t.new_message(&session, content);
            new.into_message(t.project.project_id, session.session_id, seq, t.ctx.now())
        })
        .collect();
    let brought = stored(&messages[0], "m", &[&[1.0, 0.0], &[0.0, 1.0]]);
    let archived = ArchivedSession {
        identity: ArchiveIdentity::SessionId,
        session,
        messages: messages.clone(),
        embeddings: vec![brought.clone()],
        embed: true,
    };
    for _ in 0..2 {
        t.store.import_session(&t.project, archived.clone()).await.unwrap();
        assert_eq!(t.embeddings(&t.project, &messages[0]).await, std::slice::from_ref(&brought));
        assert_eq!(t.backlog().await.pending, 1);
    }
    assert_eq!(queued(&t.claim(t.ctx.now(), 9).await), [(messages[1].message_id, 1)]);
    assert_eq!(t.near("m", &[1.0, 0.0]).await, [messages[0].message_id]);
}
