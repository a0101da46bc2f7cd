//! What every engine does with messages.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use crate::conformance::{HOUR_US, ODD_JSON, ODD_TEXT, STEP_US, TestStore, is_invalid, join_all, json};
use crate::messages::{Message, MessagePatch, MessageQuery, MessageStatus, NewMessage};
use crate::page::{MessagePosition, Order, PageRequest, PageStart};
use crate::sessions::Session;
use crate::store::ExpectedVersion::{self, Any, OneOf};
use crate::store::{Quotas, Scope, StoreError};

fn rewrite(content: &str) -> MessagePatch {
    MessagePatch { content: Some(content.to_owned()), ..MessagePatch::default() }
}

fn seqs(messages: &[Message]) -> Vec<i64> {
    messages.iter().map(|message| message.seq).collect()
}

async fn update(t: &TestStore, message: &Message, patch: MessagePatch) -> Result<Message, StoreError> {
    t.store.update_message(&t.project, message.message_id, patch, Any, t.ctx.now()).await
}

async fn delete(t: &TestStore, message: &Message) -> Message {
    t.store.delete_message(&t.project, message.message_id, Any, t.ctx.now()).await.unwrap()
}

async fn get(t: &TestStore, message: &Message) -> Option<Message> {
    t.store.get_message(&t.project, message.message_id).await.unwrap()
}

/// A session with `n` messages, whose roles alternate.
async fn conversation(t: &TestStore, n: usize) -> (Session, Vec<Message>) {
    let session = t.session().await;
    let role = |n: usize| ["user", "assistant"][n % 2].to_owned();
    let new = (0..n).map(|n| NewMessage { role: role(n), ..t.new_message(&session, &format!("message {n}")) });
    let messages = t.append(&session, new.collect()).await.unwrap();
    (t.reload(&session).await, messages)
}

pub async fn append_gives_seq_without_gaps(t: TestStore) {
    let (session, neighbour) = (t.session().await, t.session().await);
    for n in 1..=3 {
        assert_eq!(t.say(&session, "one").await.seq, n);
        assert_eq!(t.say(&neighbour, "one").await.seq, n);
    }
    let batch = (0..4).map(|_| t.new_message(&session, "many")).collect();
    assert_eq!(seqs(&t.append(&session, batch).await.unwrap()), [4, 5, 6, 7]);
    assert_eq!(t.say(&session, "one").await.seq, 8);
}

pub async fn append_messages_stores_every_field_byte_for_byte(t: TestStore) {
    let session = t.session().await;
    let parent = t.say(&session, "parent").await;
    let rich = NewMessage {
        parent_id: Some(parent.message_id),
        role: "Rölle".to_owned(),
        kind: "function_call".to_owned(),
        status: MessageStatus::InProgress,
        payload: Some(json(ODD_JSON)),
        metadata: json(ODD_JSON),
        context: Some(json(" [ 1.0, {\"z\":1,\"a\":2} ] ")),
        external_id: Some("fc_Ü/%1".to_owned()),
        token_count: Some(1_000_000_000_000),
        ..t.new_message(&session, ODD_TEXT)
    };
    let scalar = NewMessage { payload: Some(json("null")), context: Some(json("\"\"")), ..t.new_message(&session, "") };
    let incomplete =
        NewMessage { status: MessageStatus::Incomplete, token_count: Some(0), ..t.new_message(&session, "x") };
    let new = vec![rich, scalar, incomplete, t.new_message(&session, "bare")];
    let now = t.ctx.now();
    let expected: Vec<Message> = new
        .iter()
        .zip(2..)
        .map(|(new, seq)| new.clone().into_message(t.project.project_id, session.session_id, seq, now))
        .collect();
    assert_eq!(t.store.append_messages(&t.project, session.session_id, new, now, None).await.unwrap().value, expected);
    assert_eq!(t.messages(&session).await[1..], expected);
    for message in &expected {
        assert_eq!(get(&t, message).await.as_ref(), Some(message));
    }
}

pub async fn append_messages_keeps_odd_and_large_texts(t: TestStore) {
    let session = t.session().await;
    // A mebibyte of several widths; a list of more than one must not be cut short.
    let large: String = "aé漢😀".chars().cycle().take((1 << 20) * 4 / 10).collect();
    assert!(large.len() > (1 << 20) - 16);
    let texts = ["", " ", "\u{1}\u{7f}\u{85}\u{2028}", "null", ODD_TEXT, &large, &large, &large];
    for text in texts {
        let message = t.say(&session, text).await;
        assert!(get(&t, &message).await.unwrap().content == text);
    }
    let listed = t.messages(&session).await;
    assert!(listed.iter().map(|message| message.content.as_str()).eq(texts));
}

pub async fn append_moves_the_counters_of_its_session_but_not_its_version(t: TestStore) {
    let session = t.session().await;
    let mut expected = session.clone();
    for (n, tokens) in [(1, [None, None]), (2, [Some(5), None]), (3, [Some(7), Some(0)])] {
        let new = tokens.map(|token_count| NewMessage { token_count, ..t.new_message(&session, "x") });
        let now = t.ctx.now().plus_micros(n * HOUR_US);
        t.store.append_messages(&t.project, session.session_id, new.to_vec(), now, None).await.unwrap();
        expected.last_seq += 2;
        expected.message_count += 2;
        expected.token_count = [None, Some(5), Some(12)][usize::try_from(n).unwrap() - 1];
        (expected.updated_at, expected.last_message_at) = (now, Some(now));
        assert_eq!(t.reload(&session).await, expected);
    }
    assert_eq!(expected.version, 1);
}

pub async fn append_with_a_late_clock_turns_no_time_back(t: TestStore) {
    let session = t.session().await;
    t.say(&session, "one").await;
    let before = t.reload(&session).await;
    let past = session.created_at.plus_micros(-2 * HOUR_US);
    let new = vec![t.new_message(&session, "two")];
    let message =
        t.store.append_messages(&t.project, session.session_id, new, past, None).await.unwrap().value.remove(0);
    assert_eq!((message.seq, message.created_at), (2, past));
    let after = t.reload(&session).await;
    assert_eq!((after.updated_at, after.last_message_at), (before.updated_at, before.last_message_at));
    assert_eq!(seqs(&t.messages(&session).await), [1, 2]);
}

pub async fn append_messages_stores_a_batch_whole_or_not_at_all(t: TestStore) {
    let session = t.session().await;
    let first = NewMessage { external_id: Some("msg_1".to_owned()), ..t.new_message(&session, "first") };
    let first = t.append(&session, vec![first]).await.unwrap().remove(0);
    let before = t.reload(&session).await;
    let good = || NewMessage { token_count: Some(3), ..t.new_message(&session, "good") };
    let with_id = |id: &str| NewMessage { external_id: Some(id.to_owned()), ..good() };
    let stray = NewMessage { parent_id: Some(good().message_id), ..good() };
    let taken = Err(StoreError::ExternalIdTaken { n: 1 });
    assert!(is_invalid(t.append(&session, vec![good(), good(), stray]).await, "/2/parent_id"));
    assert_eq!(t.append(&session, vec![good(), with_id("msg_1"), good()]).await, taken);
    assert_eq!(t.append(&session, vec![with_id("msg_2"), with_id("msg_2")]).await, taken);
    let again = NewMessage { message_id: first.message_id, ..good() };
    let taken = StoreError::Conflict { field: "message_id" };
    assert_eq!(t.append(&session, vec![good(), again]).await, Err(taken));
    assert_eq!(t.reload(&session).await, before);
    assert_eq!(t.messages(&session).await, [first]);
    // No seq was used up, and what the failed batches brought is still free.
    let stored = t.append(&session, vec![with_id("msg_2"), good()]).await.unwrap();
    assert_eq!(seqs(&stored), [2, 3]);
}

pub async fn append_messages_to_an_absent_session_is_not_found(t: TestStore) {
    let absent = t.new_session(None).into_session(t.project.project_id);
    assert_eq!(t.append(&absent, vec![t.new_message(&absent, "x")]).await, Err(StoreError::NotFound));
}

pub async fn concurrent_append_messages_get_unique_seqs_without_gaps(t: TestStore) {
    let (session, neighbour) = (t.session().await, t.session().await);
    let appends = join_all((0..96).map(|n| {
        let session = if n % 4 == 3 { &neighbour } else { &session };
        let new = (0..n % 3 + 1).map(|_| NewMessage { token_count: Some(2), ..t.new_message(session, "x") }).collect();
        t.append(session, new)
    }))
    .await;
    let mut stored: Vec<Message> = appends
        .into_iter()
        .flat_map(|batch| {
            let batch = batch.unwrap();
            assert!(batch.windows(2).all(|pair| pair[1].seq == pair[0].seq + 1), "a batch stands together");
            batch
        })
        .collect();
    for session in [&session, &neighbour] {
        let own: Vec<Message> = stored.extract_if(.., |message| message.session_id == session.session_id).collect();
        let mut taken = seqs(&own);
        taken.sort_unstable();
        let count = i64::try_from(own.len()).unwrap();
        assert_eq!(taken, (1..=count).collect::<Vec<_>>());
        let after = t.reload(session).await;
        assert_eq!((after.last_seq, after.message_count, after.token_count), (count, count, Some(2 * count)));
    }
}

pub async fn concurrent_append_messages_fail_alone(t: TestStore) {
    let session = t.session().await;
    let absent = t.new_session(None).into_session(t.project.project_id);
    let results = join_all((0..32).map(|n| {
        let target = if n % 4 == 3 { &absent } else { &session };
        let mut new = t.new_message(target, &format!("{n}"));
        match n % 4 {
            1 => new.external_id = Some("msg_1".to_owned()),
            2 => new.parent_id = Some(t.new_message(&session, "stray").message_id),
            _ => {}
        }
        t.append(target, vec![new])
    }))
    .await;
    let of_kind = |kind| results.iter().skip(kind).step_by(4);
    assert!(of_kind(0).all(Result::is_ok));
    assert_eq!(of_kind(1).filter(|result| result.is_ok()).count(), 1);
    let taken = Err(StoreError::ExternalIdTaken { n: 0 });
    assert_eq!(of_kind(1).filter(|result| **result == taken).count(), 7);
    assert!(of_kind(2).all(|result| is_invalid(result.clone(), "/0/parent_id")));
    assert!(of_kind(3).all(|result| *result == Err(StoreError::NotFound)));
    assert_eq!(seqs(&t.messages(&session).await), (1..=9).collect::<Vec<_>>());
}

pub async fn append_messages_tells_the_first_of_several_faults(t: TestStore) {
    let session = t.session().await;
    let named =
        |content: &str| NewMessage { external_id: Some("msg_1".to_owned()), ..t.new_message(&session, content) };
    t.append(&session, vec![named("x")]).await.unwrap();
    let stray = t.new_message(&session, "stray").message_id;
    let orphan = NewMessage { parent_id: Some(stray), ..t.new_message(&session, "y") };
    let taken = Err(StoreError::ExternalIdTaken { n: 0 });
    assert_eq!(t.append(&session, vec![named("z"), orphan.clone()]).await, taken);
    assert!(is_invalid(t.append(&session, vec![named("x"), orphan.clone()]).await, "/1/parent_id"));
    assert!(is_invalid(t.append(&session, vec![orphan, named("z")]).await, "/0/parent_id"));
    // A parent may come with its answer.
    let parent = t.new_message(&session, "question");
    let answer = NewMessage { parent_id: Some(parent.message_id), ..t.new_message(&session, "answer") };
    t.append(&session, vec![parent, answer]).await.unwrap();
    assert_eq!(seqs(&t.messages(&session).await).len(), 3);
}

pub async fn seq_is_never_given_again(t: TestStore) {
    let (session, messages) = conversation(&t, 3).await;
    delete(&t, &messages[2]).await;
    assert_eq!(t.say(&session, "four").await.seq, 4);
    for message in t.messages(&session).await {
        delete(&t, &message).await;
    }
    assert_eq!(t.say(&session, "five").await.seq, 5);
    let after = t.reload(&session).await;
    assert_eq!((after.last_seq, after.message_count), (5, 1));
}

pub async fn list_messages_pages_hold_every_message_once(t: TestStore) {
    let (session, mut messages) = conversation(&t, 15).await;
    delete(&t, &messages.remove(4)).await;
    for order in [Order::Asc, Order::Desc] {
        let query = MessageQuery { order, ..MessageQuery::default() };
        let mut expected = messages.clone();
        if order == Order::Desc {
            expected.reverse();
        }
        for (limit, by_offset) in [1, 2, 7, 14, 100].into_iter().flat_map(|limit| [(limit, false), (limit, true)]) {
            let mut walked: Vec<Message> = Vec::new();
            let mut start = PageStart::Offset(0);
            loop {
                let request = PageRequest { limit, start };
                let page = t.store.list_messages(&t.project, session.session_id, &query, &request).await.unwrap();
                walked.extend(page.items);
                assert!(walked.len() <= expected.len(), "{order:?} {limit} {by_offset}: {:?}", seqs(&walked));
                let Some(next) = page.next else { break };
                assert_eq!(walked.last().map(|message| message.seq), Some(next.seq));
                start = if by_offset { PageStart::Offset(walked.len() as u64) } else { PageStart::After(next) };
            }
            assert_eq!(walked, expected, "{order:?} {limit} {by_offset}");
        }
    }
    // Newest first, a page is not moved by what is appended meanwhile.
    let request = PageRequest { limit: 2, start: PageStart::After(MessagePosition { seq: 14 }) };
    t.say(&session, "late").await;
    let page = t.store.list_messages(&t.project, session.session_id, &MessageQuery::default(), &request).await.unwrap();
    assert_eq!(seqs(&page.items), [13, 12]);
}

pub async fn list_messages_is_newest_first_by_default(t: TestStore) {
    let (session, _) = conversation(&t, 3).await;
    assert_eq!(seqs(&t.list(&session, &MessageQuery::default()).await.unwrap().items), [3, 2, 1]);
}

pub async fn list_messages_filters_by_role_and_seq(t: TestStore) {
    let (session, _) = conversation(&t, 8).await;
    let list = async |role: Option<&str>, after_seq, before_seq, order| {
        let query = MessageQuery { role: role.map(str::to_owned), after_seq, before_seq, order };
        seqs(&t.list(&session, &query).await.unwrap().items)
    };
    use Order::{Asc, Desc};
    let none: [i64; 0] = [];
    assert_eq!(list(Some("user"), None, None, Asc).await, [1, 3, 5, 7]);
    assert_eq!(list(Some("assistant"), Some(2), Some(8), Desc).await, [6, 4]);
    assert_eq!(list(Some("User"), None, None, Asc).await, none);
    assert_eq!(list(None, Some(6), None, Asc).await, [7, 8]);
    assert_eq!(list(None, None, Some(3), Desc).await, [2, 1]);
    assert_eq!(list(None, Some(3), Some(4), Asc).await, none);
    assert_eq!(list(None, Some(8), None, Asc).await, none);
    for (after, before) in [(-1, 100), (i64::MIN, i64::MAX), (0, 1 << 40)] {
        assert_eq!(list(None, Some(after), Some(before), Asc).await.len(), 8, "{after} {before}");
    }
    assert_eq!(list(None, Some(i64::MAX), None, Desc).await, none);
    assert_eq!(list(None, None, Some(i64::MIN), Desc).await, none);
    // The filters hold on every page.
    let query = MessageQuery { role: Some("user".to_owned()), after_seq: Some(1), before_seq: Some(7), order: Asc };
    let request = PageRequest { limit: 1, start: PageStart::After(MessagePosition { seq: 3 }) };
    let page = t.store.list_messages(&t.project, session.session_id, &query, &request).await.unwrap();
    assert_eq!((seqs(&page.items), page.next), (vec![5], None));
}

pub async fn list_messages_of_an_empty_session_is_empty_and_of_an_absent_one_not_found(t: TestStore) {
    let empty = t.session().await;
    let page = t.list(&empty, &MessageQuery::default()).await.unwrap();
    assert_eq!((page.items, page.next), (Vec::new(), None));
    let absent = t.new_session(None).into_session(t.project.project_id);
    assert_eq!(t.list(&absent, &MessageQuery::default()).await, Err(StoreError::NotFound));
}

pub async fn list_messages_keeps_to_its_session(t: TestStore) {
    let (before, _) = conversation(&t, 2).await;
    let (session, messages) = conversation(&t, 2).await;
    let (after, _) = conversation(&t, 2).await;
    assert_eq!(t.messages(&session).await, messages);
    delete(&t, &messages[0]).await;
    delete(&t, &messages[1]).await;
    assert_eq!(t.messages(&session).await, []);
    assert_eq!((t.messages(&before).await.len(), t.messages(&after).await.len()), (2, 2));
}

pub async fn update_message_changes_only_what_is_present(t: TestStore) {
    let (session, messages) = conversation(&t, 2).await;
    let mut expected = messages[0].clone();
    let none = MessagePatch::default;
    for patch in [
        rewrite(ODD_TEXT),
        rewrite(""),
        MessagePatch { role: Some("Rölle".to_owned()), ..none() },
        MessagePatch { metadata: Some(json(ODD_JSON)), ..none() },
        MessagePatch { context: Some(Some(json("[ 1.0 ]"))), ..none() },
        MessagePatch { context: Some(None), ..none() },
        MessagePatch { token_count: Some(4), role: Some("user".to_owned()), ..rewrite("all") },
    ] {
        let now = t.ctx.now().plus_micros(HOUR_US);
        assert_eq!(patch.clone().apply(&mut expected, now), Ok(true));
        let updated = t.store.update_message(&t.project, expected.message_id, patch, Any, now).await.unwrap();
        assert_eq!((&updated, updated.updated_at), (&expected, now));
        assert_eq!(get(&t, &expected).await.as_ref(), Some(&expected));
        let after = t.reload(&session).await;
        assert_eq!((after.updated_at, after.version), (now, session.version));
        assert_eq!(after.last_message_at, session.last_message_at);
    }
    assert_eq!((expected.version, expected.seq), (8, 1));
    assert_eq!(t.messages(&session).await, [expected, messages[1].clone()]);
}

pub async fn update_message_that_says_nothing_new_changes_nothing(t: TestStore) {
    let (session, messages) = conversation(&t, 1).await;
    let same = MessagePatch {
        role: Some(messages[0].role.clone()),
        metadata: Some(messages[0].metadata.clone()),
        context: Some(None),
        status: Some(MessageStatus::Completed),
        ..rewrite(&messages[0].content)
    };
    for patch in [MessagePatch::default(), same] {
        assert_eq!(update(&t, &messages[0], patch).await.as_ref(), Ok(&messages[0]));
        assert_eq!(get(&t, &messages[0]).await.as_ref(), Some(&messages[0]));
        assert_eq!(t.reload(&session).await, session);
    }
}

pub async fn update_message_of_content_drops_the_payload(t: TestStore) {
    let session = t.session().await;
    let new = NewMessage { payload: Some(json(ODD_JSON)), context: Some(json("1")), ..t.new_message(&session, "old") };
    let message = t.append(&session, vec![new]).await.unwrap().remove(0);
    update(&t, &message, rewrite("new")).await.unwrap();
    let after = get(&t, &message).await.unwrap();
    assert_eq!((after.content.as_str(), after.payload, after.context), ("new", None, Some(json("1"))));
}

pub async fn update_message_of_payload_derives_the_content(t: TestStore) {
    let session = t.session().await;
    for kind in ["message", "reasoning"] {
        let new = NewMessage { kind: kind.to_owned(), ..t.new_message(&session, "old") };
        let message = t.append(&session, vec![new]).await.unwrap().remove(0);
        let payload = json("{ \"content\" : [ {\"type\":\"output_text\",\"text\":\"neu\"} ] }");
        let patch = MessagePatch { payload: Some(payload.clone()), ..MessagePatch::default() };
        update(&t, &message, patch).await.unwrap();
        let after = get(&t, &message).await.unwrap();
        assert_eq!((after.content.as_str(), after.payload, after.kind.as_str()), ("neu", Some(payload), kind));
    }
}

pub async fn update_message_of_content_is_refused_for_other_kinds(t: TestStore) {
    let session = t.session().await;
    let new = NewMessage {
        kind: "function_call".to_owned(),
        payload: Some(json(ODD_JSON)),
        ..t.new_message(&session, "old")
    };
    let message = t.append(&session, vec![new]).await.unwrap().remove(0);
    let before = t.reload(&session).await;
    let patch = MessagePatch { role: Some("tool".to_owned()), ..rewrite("new") };
    assert!(is_invalid(update(&t, &message, patch).await, "/content"));
    assert_eq!(get(&t, &message).await, Some(message));
    assert_eq!(t.reload(&session).await, before);
}

pub async fn update_message_moves_status_from_in_progress_only(t: TestStore) {
    use MessageStatus::{Completed, InProgress, Incomplete};
    let session = t.session().await;
    for last in [Completed, Incomplete] {
        let new = NewMessage { status: InProgress, ..t.new_message(&session, "") };
        let message = t.append(&session, vec![new]).await.unwrap().remove(0);
        let set = |status| MessagePatch { status: Some(status), ..MessagePatch::default() };
        let grown = update(&t, &message, rewrite("half")).await.unwrap();
        assert_eq!((grown.status, grown.version), (InProgress, 2));
        assert_eq!(update(&t, &message, set(last)).await.unwrap().status, last);
        for refused in [InProgress, Completed, Incomplete].into_iter().filter(|status| *status != last) {
            assert!(is_invalid(update(&t, &message, set(refused)).await, "/status"), "{last:?} {refused:?}");
        }
        let after = get(&t, &message).await.unwrap();
        assert_eq!((after.status, after.version, after.content.as_str()), (last, 3, "half"));
    }
}

pub async fn update_message_moves_the_token_count_of_its_session(t: TestStore) {
    let (session, messages) = conversation(&t, 2).await;
    for (n, tokens, sum) in [
        (0, Some(5), Some(5)),
        (1, Some(7), Some(12)),
        (0, Some(1), Some(8)),
        (1, Some(0), Some(1)),
        (1, Some(2), Some(3)),
    ] {
        let patch = MessagePatch { token_count: tokens, ..MessagePatch::default() };
        assert_eq!(update(&t, &messages[n], patch).await.unwrap().token_count, tokens);
        assert_eq!(t.reload(&session).await.token_count, sum);
    }
    delete(&t, &messages[0]).await;
    assert_eq!(t.reload(&session).await.token_count, Some(2));
}

pub async fn update_message_checks_the_expected_version(t: TestStore) {
    let (_, messages) = conversation(&t, 1).await;
    let update = async |content: &str, expected| {
        let id = messages[0].message_id;
        t.store.update_message(&t.project, id, rewrite(content), expected, t.ctx.now()).await
    };
    for versions in [vec![2], vec![]] {
        assert_eq!(update("x", OneOf(versions)).await, Err(StoreError::VersionMismatch { current: 1 }));
    }
    assert_eq!(update("x", OneOf(vec![3, 1])).await.unwrap().version, 2);
    assert_eq!(update("x", OneOf(vec![1])).await, Err(StoreError::VersionMismatch { current: 2 }));
    let raced = join_all((0..8).map(|n| {
        let (t, content) = (&t, n.to_string());
        let id = messages[0].message_id;
        async move { t.store.update_message(&t.project, id, rewrite(&content), OneOf(vec![2]), t.ctx.now()).await }
    }));
    assert_eq!(raced.await.iter().filter(|result| result.is_ok()).count(), 1);
}

pub async fn delete_message_returns_it_as_it_was_and_removes_it(t: TestStore) {
    let session = t.session().await;
    let new = ["one", "two", "three"].map(|text| NewMessage {
        payload: Some(json(ODD_JSON)),
        metadata: json(ODD_JSON),
        token_count: Some(10),
        ..t.new_message(&session, text)
    });
    let messages = t.append(&session, new.to_vec()).await.unwrap();
    let mut expected = t.reload(&session).await;
    let now = t.ctx.now().plus_micros(HOUR_US);
    let id = messages[1].message_id;
    assert_eq!(t.store.delete_message(&t.project, id, Any, now).await.as_ref(), Ok(&messages[1]));
    (expected.message_count, expected.token_count, expected.updated_at) = (2, Some(20), now);
    assert_eq!(t.reload(&session).await, expected);
    assert_eq!(get(&t, &messages[1]).await, None);
    assert_eq!(seqs(&t.messages(&session).await), [1, 3]);
    assert_eq!(update(&t, &messages[1], rewrite("x")).await, Err(StoreError::NotFound));
    let again = t.store.delete_message(&t.project, id, Any, t.ctx.now()).await;
    assert_eq!(again, Err(StoreError::NotFound));
    assert_eq!(t.reload(&session).await, expected);
}

pub async fn delete_message_checks_the_expected_version(t: TestStore) {
    let (session, messages) = conversation(&t, 1).await;
    let delete = async |expected: ExpectedVersion| {
        t.store.delete_message(&t.project, messages[0].message_id, expected, t.ctx.now()).await
    };
    assert_eq!(delete(OneOf(vec![2])).await, Err(StoreError::VersionMismatch { current: 1 }));
    assert_eq!(t.reload(&session).await, session);
    assert_eq!(delete(OneOf(vec![1])).await.as_ref(), Ok(&messages[0]));
}

pub async fn a_parent_stands_in_the_same_session_and_is_not_deleted(t: TestStore) {
    let (session, messages) = conversation(&t, 3).await;
    let (_, foreign) = conversation(&t, 1).await;
    let under = |parent: &Message| NewMessage { parent_id: Some(parent.message_id), ..t.new_message(&session, "x") };
    assert_eq!(t.append(&session, vec![under(&messages[0])]).await.unwrap()[0].seq, 4);
    delete(&t, &messages[1]).await;
    for parent in [&foreign[0], &messages[1]] {
        assert!(is_invalid(t.append(&session, vec![under(parent)]).await, "/0/parent_id"));
    }
    // A batch may build on itself, but not on what comes later in it.
    let root = t.new_message(&session, "root");
    let child = NewMessage { parent_id: Some(root.message_id), ..t.new_message(&session, "child") };
    assert!(is_invalid(t.append(&session, vec![child.clone(), root.clone()]).await, "/0/parent_id"));
    let stored = t.append(&session, vec![root.clone(), child]).await.unwrap();
    assert_eq!(stored[1].parent_id, Some(root.message_id));
    // A parent that goes takes nothing with it.
    delete(&t, &stored[0]).await;
    assert_eq!(get(&t, &stored[1]).await.unwrap().parent_id, Some(root.message_id));
}

pub async fn an_external_id_is_unique_within_its_session(t: TestStore) {
    let (session, neighbour) = (t.session().await, t.session().await);
    let append = async |session: &Session, content: &str| {
        let new = NewMessage { external_id: Some("msg_1".to_owned()), ..t.new_message(session, content) };
        t.append(session, vec![new]).await
    };
    let message = append(&session, "x").await.unwrap().remove(0);
    append(&neighbour, "y").await.unwrap();
    assert_eq!(append(&session, "y").await, Err(StoreError::ExternalIdTaken { n: 0 }));
    delete(&t, &message).await;
    assert_eq!(append(&session, "x").await.unwrap()[0].seq, 2);
}

pub async fn find_message_knows_a_message_by_both_its_names(t: TestStore) {
    let (session, neighbour) = (t.session_of("ada").await, t.session_of("ada").await);
    let named = |session: &Session, name: &str| NewMessage {
        external_id: Some(name.to_owned()),
        ..t.new_message(session, name)
    };
    let messages = t.append(&session, vec![named(&session, "rs_1"), t.new_message(&session, "x")]).await.unwrap();
    let find = async |session: &Session, name: &str| t.store.find_message(&t.project, session.session_id, name).await;
    assert_eq!(find(&session, "rs_1").await, Ok(Some(messages[0].clone())));
    for message in &messages {
        assert_eq!(find(&session, &message.message_id.to_item_id("msg")).await, Ok(Some(message.clone())));
        assert_eq!(find(&session, &message.message_id.to_item_id("fc")).await, Ok(None), "it is no function call");
    }
    let call = NewMessage { kind: "function_call".to_owned(), ..t.new_message(&neighbour, "f") };
    let call = t.append(&neighbour, vec![call]).await.unwrap().remove(0);
    for (prefix, found) in [("fc", true), ("msg", true), ("rs", false)] {
        assert_eq!(find(&neighbour, &call.message_id.to_item_id(prefix)).await.unwrap().is_some(), found, "{prefix}");
    }
    let own = messages[1].message_id.to_item_id("msg");
    for name in ["", "rs_2", "RS_1", "x", &messages[1].message_id.to_string(), "msg_018f4e2a7b1c7def8abc0123456789ab"] {
        assert_eq!(find(&session, name).await, Ok(None), "{name}");
    }
    // A session knows its own messages alone, also by a name that is another's id.
    assert_eq!(find(&neighbour, "rs_1").await, Ok(None));
    assert_eq!(find(&neighbour, &own).await, Ok(None));
    let there = t.append(&neighbour, vec![named(&neighbour, &own)]).await.unwrap().remove(0);
    assert_eq!(find(&neighbour, &own).await, Ok(Some(there)));
    assert_eq!(find(&session, &own).await, Ok(Some(messages[1].clone())));
    // What is deleted keeps its place.
    delete(&t, &messages[1]).await;
    let found = find(&session, &own).await.unwrap().unwrap();
    assert_eq!((found.seq, found.deleted_at.is_some(), found.content.as_str()), (2, true, ""));
    delete(&t, &messages[0]).await;
    assert_eq!(find(&session, "rs_1").await.unwrap().filter(|message| message.deleted_at.is_none()), None);
    // Only who sees the session finds anything in it.
    for scope in [t.other.clone(), t.user("bob")] {
        let refused = t.store.find_message(&scope, session.session_id, &own).await;
        assert_eq!(refused, Err(StoreError::NotFound), "{scope:?}");
    }
    t.store.delete_session(&t.project, session.session_id, Any, t.ctx.now()).await.unwrap();
    assert_eq!(find(&session, &own).await, Err(StoreError::NotFound));
}

pub async fn messages_outside_the_scope_are_absent(t: TestStore) {
    let session = t.session_of("ada").await;
    let message = t.say(&session, "secret").await;
    let (id, now) = (message.message_id, t.ctx.now());
    let before = t.reload(&session).await;
    for scope in [t.other.clone(), t.user("bob"), Scope::user(t.other.project_id, "ada")] {
        let absent = StoreError::NotFound;
        assert_eq!(t.store.get_message(&scope, id).await, Ok(None), "{scope:?}");
        let (query, page) = (MessageQuery::default(), PageRequest::default());
        let listed = t.store.list_messages(&scope, session.session_id, &query, &page).await;
        assert_eq!(listed, Err(absent.clone()), "{scope:?}");
        let new = vec![t.new_message(&session, "intruder")];
        let appended = t.store.append_messages(&scope, session.session_id, new, now, None).await;
        assert_eq!(appended, Err(absent.clone()), "{scope:?}");
        for expected in [Any, OneOf(vec![99])] {
            let updated = t.store.update_message(&scope, id, rewrite("x"), expected.clone(), now).await;
            assert_eq!(updated, Err(absent.clone()), "{scope:?}");
            assert_eq!(t.store.delete_message(&scope, id, expected, now).await, Err(absent.clone()), "{scope:?}");
        }
    }
    assert_eq!(t.reload(&session).await, before);
    let late = now.plus_micros(STEP_US);
    let own = t.user("ada");
    assert_eq!(t.store.get_message(&own, id).await, Ok(Some(message)));
    t.store.update_message(&own, id, rewrite("mine"), Any, late).await.unwrap();
    let new = vec![t.new_message(&session, "mine too")];
    assert_eq!(t.store.append_messages(&own, session.session_id, new, late, None).await.unwrap().value[0].seq, 2);
    t.store.delete_message(&own, id, Any, late).await.unwrap();
}

pub async fn append_messages_keeps_to_the_quota_of_its_session(t: TestStore) {
    let quotas = Quotas { messages_per_session: Some(3), ..Quotas::default() };
    let scope = Scope { quotas, ..t.project.clone() };
    let (session, other) = (t.session().await, t.session().await);
    let append = async |session: &Session, count: usize| {
        let new = (0..count).map(|_| t.new_message(session, "x")).collect();
        t.store.append_messages(&scope, session.session_id, new, t.ctx.now(), None).await.map(|answered| answered.value)
    };
    let full = Err(StoreError::QuotaExceeded { quota: "messages_per_session", max: 3 });
    assert_eq!(append(&session, 4).await, full);
    let stored = append(&session, 2).await.unwrap();
    assert_eq!(append(&session, 2).await, full);
    let after = t.reload(&session).await;
    assert_eq!((after.message_count, after.last_seq), (2, 2), "nothing was stored");
    append(&session, 1).await.unwrap();
    assert_eq!(append(&session, 1).await, full);
    append(&other, 3).await.unwrap();
    // What is deleted does not count, and gives its place in the order to nobody.
    t.store.delete_message(&scope, stored[0].message_id, Any, t.ctx.now()).await.unwrap();
    assert_eq!(append(&session, 1).await.unwrap()[0].seq, 4);
    // A caller without the quota is not held up by it.
    t.say(&session, "x").await;
}

pub async fn concurrent_append_messages_never_pass_the_quota(t: TestStore) {
    let quotas = Quotas { messages_per_session: Some(5), ..Quotas::default() };
    let scope = Scope { quotas, ..t.project.clone() };
    let session = t.session().await;
    let appends = (0..20).map(|_| {
        let new = vec![t.new_message(&session, "x")];
        t.store.append_messages(&scope, session.session_id, new, t.ctx.now(), None)
    });
    let stored = join_all(appends).await.into_iter().filter(Result::is_ok).count();
    assert_eq!((stored, t.messages(&session).await.len()), (5, 5));
}
