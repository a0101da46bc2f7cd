//! What every engine does with archives.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use crate::archive::{ArchiveIdentity, ArchivedSession, Imported};
use crate::conformance::{HOUR_US, ODD_JSON, ODD_TEXT, TestStore, is_invalid, json};
use crate::json::RawJson;
use crate::limits::PAGE_BYTES_MAX;
use crate::messages::{Message, MessagePatch, NewMessage};
use crate::sessions::{NewSession, Session, SessionPatch, SessionQuery};
use crate::store::ExpectedVersion::Any;
use crate::store::{Quotas, Scope, StoreError};

type Conversation = (Session, Vec<Message>);

/// All that is exported from a scope, in pages of `limit`.
async fn export(t: &TestStore, scope: &Scope, limit: u32) -> Vec<Conversation> {
    let mut conversations: Vec<Conversation> = Vec::new();
    loop {
        let after = conversations.last().map(|(session, _)| session.session_id);
        let sessions = t.store.export_sessions(scope, after, limit).await.unwrap();
        assert!(sessions.len() <= limit as usize);
        if sessions.is_empty() {
            return conversations;
        }
        for session in sessions {
            let mut messages: Vec<Message> = Vec::new();
            loop {
                let after = messages.last().map_or(0, |message| message.seq);
                let (id, last) = (session.session_id, session.last_seq);
                let page = t.store.export_messages(scope, id, after, last, limit).await.unwrap();
                assert!(page.len() <= limit as usize);
                if page.is_empty() {
                    break;
                }
                messages.extend(page);
                assert!(messages.len() < 100, "the messages never end");
            }
            conversations.push((session, messages));
            assert!(conversations.len() < 100, "the sessions never end");
        }
    }
}

/// Conversations in every state: changed, deleted, empty, with deleted messages.
async fn fill(t: &TestStore) {
    let new = NewSession {
        session_name: ODD_TEXT.to_owned(),
        metadata: json(r#"{ "topic":"tea" , "n":1.50}"#),
        external_id: Some("conv_1".to_owned()),
        ..t.new_session(Some("ada"))
    };
    let session = t.create(new).await;
    let parent = t.say(&session, "root").await;
    let rich = NewMessage {
        parent_id: Some(parent.message_id),
        kind: "function_call".to_owned(),
        payload: Some(json(ODD_JSON)),
        metadata: json(ODD_JSON),
        context: Some(json("[ ]")),
        external_id: Some("fc_1".to_owned()),
        token_count: Some(5),
        ..t.new_message(&session, ODD_TEXT)
    };
    let counted = NewMessage { token_count: Some(7), payload: Some(json("{}")), ..t.new_message(&session, "counted") };
    let messages = t.append(&session, vec![rich, counted]).await.unwrap();
    let late = t.ctx.now().plus_micros(HOUR_US);
    let patch = MessagePatch { content: Some("changed".to_owned()), ..MessagePatch::default() };
    t.store.update_message(&t.project, parent.message_id, patch, Any, late).await.unwrap();
    t.store.delete_message(&t.project, messages[1].message_id, Any, late).await.unwrap();
    let patch = SessionPatch { is_favorite: Some(true), ..SessionPatch::default() };
    t.store.update_session(&t.project, session.session_id, patch, Any, late).await.unwrap();

    // Its only counted message is gone; the sum of what was given is 0, not unknown.
    let session = t.session_of("bob").await;
    let counted = NewMessage { token_count: Some(7), ..t.new_message(&session, "counted") };
    let message = t.append(&session, vec![counted]).await.unwrap().remove(0);
    t.store.delete_message(&t.project, message.message_id, Any, t.ctx.now()).await.unwrap();

    t.session().await;
    let named = NewSession { external_id: Some("conv_1".to_owned()), ..t.new_session(None) };
    let deleted = t.create(t.placed(&t.project, named)).await;
    for text in ["secret", "words"] {
        let new = NewMessage {
            payload: Some(json("{\"secret\":1}")),
            metadata: json("{\"secret\":1}"),
            context: Some(json("\"secret\"")),
            token_count: Some(3),
            ..t.new_message(&deleted, text)
        };
        t.append(&deleted, vec![new]).await.unwrap();
    }
    t.store.delete_session(&t.project, deleted.session_id, Any, t.ctx.now()).await.unwrap();
}

fn archived(identity: ArchiveIdentity, (session, messages): &Conversation) -> ArchivedSession {
    ArchivedSession {
        identity,
        session: session.clone(),
        messages: messages.clone(),
        embeddings: Vec::new(),
        embed: false,
    }
}

/// A conversation as another program's export gives it: ids minted anew each time.
fn foreign(t: &TestStore, messages: i64) -> Conversation {
    foreign_of(t, "ada", messages)
}

fn foreign_of(t: &TestStore, user_id: &str, messages: i64) -> Conversation {
    let new = NewSession { external_id: Some("conv_1".to_owned()), ..t.new_session(Some(user_id)) };
    let session = new.into_session(t.project.project_id);
    let message = |seq| {
        let new = NewMessage { token_count: Some(1), ..t.new_message(&session, &format!("message {seq}")) };
        new.into_message(t.project.project_id, session.session_id, seq, t.ctx.now())
    };
    let messages = (1..=messages).map(message).collect();
    (session, messages)
}

async fn import(t: &TestStore, conversation: &Conversation) -> Result<Imported, StoreError> {
    t.store.import_session(&t.project, archived(ArchiveIdentity::ExternalId, conversation)).await
}

pub async fn import_session_twice_adds_nothing(t: TestStore) {
    let first = foreign(&t, 3);
    assert_eq!(import(&t, &first).await, Ok(Imported { session: true, messages: 3 }));
    let before = export(&t, &t.project, 100).await;
    assert_eq!(before[0].1, first.1);
    for again in [&first, &foreign(&t, 3), &foreign(&t, 2), &foreign(&t, 0)] {
        assert_eq!(import(&t, again).await, Ok(Imported::default()));
    }
    assert_eq!(export(&t, &t.project, 100).await, before);
}

pub async fn import_session_appends_a_longer_part(t: TestStore) {
    let first = foreign(&t, 2);
    import(&t, &first).await.unwrap();
    let mut longer = foreign(&t, 5);
    assert_eq!(import(&t, &longer).await, Ok(Imported { session: false, messages: 3 }));
    // A next part may begin where the last ended.
    let mut rest = foreign(&t, 7);
    rest.1.drain(..5);
    assert_eq!(import(&t, &rest).await, Ok(Imported { session: false, messages: 2 }));
    let stored = t.messages(&first.0).await;
    let contents: Vec<&str> = stored.iter().map(|message| message.content.as_str()).collect();
    assert_eq!(contents, (1..=7).map(|n| format!("message {n}")).collect::<Vec<_>>());
    assert!(stored.iter().all(|message| message.session_id == first.0.session_id));
    assert_eq!(stored[2].message_id, longer.1.remove(2).message_id);
    let session = t.reload(&first.0).await;
    assert_eq!((session.last_seq, session.message_count, session.token_count), (7, 7, Some(7)));
    assert_eq!(session.last_message_at, Some(stored[6].created_at));
    assert!(session.updated_at >= stored[6].updated_at);
}

pub async fn import_session_refuses_a_gap_and_stores_nothing(t: TestStore) {
    let mut gapped = foreign(&t, 3);
    gapped.1.remove(1);
    assert!(is_invalid(import(&t, &gapped).await, "/messages"));
    let mut late = foreign(&t, 3);
    late.1.remove(0);
    assert!(is_invalid(import(&t, &late).await, "/messages"));
    assert_eq!(export(&t, &t.project, 100).await, []);
    import(&t, &foreign(&t, 1)).await.unwrap();
    let before = export(&t, &t.project, 100).await;
    assert!(is_invalid(import(&t, &gapped).await, "/messages"));
    assert_eq!(export(&t, &t.project, 100).await, before);
}

pub async fn import_session_where_it_came_from_adds_nothing(t: TestStore) {
    fill(&t).await;
    let before = export(&t, &t.project, 100).await;
    for conversation in &before {
        let archived = archived(ArchiveIdentity::SessionId, conversation);
        assert_eq!(t.store.import_session(&t.project, archived).await, Ok(Imported::default()));
    }
    assert_eq!(export(&t, &t.project, 100).await, before);
}

pub async fn import_session_of_an_id_of_another_project_is_a_conflict(t: TestStore) {
    fill(&t).await;
    let before = export(&t, &t.project, 100).await;
    for conversation in &before {
        let mut archived = archived(ArchiveIdentity::SessionId, conversation);
        archived.session.project_id = t.other.project_id;
        let imported = t.store.import_session(&t.other, archived).await;
        assert_eq!(imported, Err(StoreError::Conflict { field: "session_id" }));
    }
    assert_eq!(export(&t, &t.other, 100).await, []);
    assert_eq!(export(&t, &t.project, 100).await, before);
}

pub async fn import_session_with_a_taken_message_id_is_a_conflict_and_stores_nothing(t: TestStore) {
    let session = t.session_of("ada").await;
    let message = t.say(&session, "mine").await;
    let before = export(&t, &t.project, 100).await;
    let mut clash = foreign(&t, 2);
    clash.1[1].message_id = message.message_id;
    assert_eq!(import(&t, &clash).await, Err(StoreError::Conflict { field: "message_id" }));
    assert_eq!(export(&t, &t.project, 100).await, before);
}

pub async fn import_session_stays_within_its_scope(t: TestStore) {
    // What the archive says about the project does not count.
    let mut elsewhere = foreign(&t, 1);
    elsewhere.0.project_id = t.other.project_id;
    elsewhere.1[0].project_id = t.other.project_id;
    import(&t, &elsewhere).await.unwrap();
    assert_eq!(export(&t, &t.other, 100).await, []);
    let stored = export(&t, &t.project, 100).await;
    assert_eq!(stored[0].0.project_id, t.project.project_id);
    assert_eq!(t.messages(&elsewhere.0).await.len(), 1);
    // Another user's conversation cannot be made or continued.
    let bob = t.user("bob");
    for identity in [ArchiveIdentity::ExternalId, ArchiveIdentity::SessionId] {
        let mut longer = foreign(&t, 2);
        longer.0.session_id = elsewhere.0.session_id;
        assert!(t.store.import_session(&bob, archived(identity, &longer)).await.is_err(), "{identity:?}");
        let mut fresh = foreign(&t, 1);
        fresh.0.external_id = Some("conv_2".to_owned());
        assert!(t.store.import_session(&bob, archived(identity, &fresh)).await.is_err(), "{identity:?}");
    }
    assert_eq!(export(&t, &t.project, 100).await, stored);
    // The same external id of another user is another conversation.
    let own = foreign_of(&t, "bob", 1);
    let imported = t.store.import_session(&bob, archived(ArchiveIdentity::ExternalId, &own)).await;
    assert_eq!(imported, Ok(Imported { session: true, messages: 1 }));
}

pub async fn import_session_makes_metadata_and_counters(t: TestStore) {
    let mut conversation = foreign(&t, 3);
    conversation.0.metadata = json(r#"{"topic":"tea"}"#);
    // What an archive says of counters is not believed.
    (conversation.0.last_seq, conversation.0.message_count, conversation.0.token_count) = (99, 98, Some(97));
    conversation.1[1].deleted_at = Some(t.ctx.now());
    import(&t, &conversation).await.unwrap();
    let session = t.reload(&conversation.0).await;
    assert_eq!((session.last_seq, session.message_count, session.token_count), (3, 2, Some(2)));
    let metadata = vec![("topic".to_owned(), "tea".to_owned())];
    let query = SessionQuery { metadata, ..SessionQuery::default() };
    assert_eq!(t.sessions(&t.project, &query).await, [session.session_id]);
    assert_eq!(t.messages(&session).await.len(), 2);
    assert_eq!(t.store.get_message(&t.project, conversation.1[1].message_id).await.unwrap(), None);
}

pub async fn import_session_in_parts_keeps_the_times_it_came_with(t: TestStore) {
    // Times that no append makes: of before its messages, or none at all.
    for (n, last_message_at) in [(0, None), (1, Some(t.ctx.now()))] {
        let mut whole = foreign(&t, 4);
        whole.0.external_id = Some(format!("conv_{n}"));
        whole.0.updated_at = whole.0.created_at;
        whole.0.last_message_at = last_message_at;
        let times = (whole.0.updated_at, whole.0.last_message_at);
        for message in &mut whole.1 {
            (message.created_at, message.updated_at) = (t.ctx.now(), t.ctx.now().plus_micros(HOUR_US));
        }
        let mut rest = whole.clone();
        rest.1.drain(..2);
        whole.1.truncate(2);
        for part in [&whole, &rest] {
            let archived = archived(ArchiveIdentity::SessionId, part);
            t.store.import_session(&t.project, archived).await.unwrap();
            let session = t.reload(&whole.0).await;
            assert_eq!((session.updated_at, session.last_message_at), times, "{n}");
        }
        assert_eq!(t.reload(&whole.0).await.message_count, 4);
    }
}

pub async fn import_session_brings_nothing_back_into_a_deleted_one(t: TestStore) {
    let conversation = foreign(&t, 4);
    let mut first = conversation.clone();
    first.1.truncate(2);
    let import = async |part: &Conversation| {
        t.store.import_session(&t.project, archived(ArchiveIdentity::SessionId, part)).await.unwrap()
    };
    import(&first).await;
    t.store.delete_session(&t.project, first.0.session_id, Any, t.ctx.now()).await.unwrap();
    assert_eq!(import(&first).await, Imported::default());
    import(&conversation).await;
    assert_eq!(t.store.get_session(&t.project, first.0.session_id).await.unwrap(), None);
    for message in &conversation.1 {
        assert_eq!(t.store.get_message(&t.project, message.message_id).await.unwrap(), None);
    }
    let stored = export(&t, &t.project, 100).await.remove(0);
    assert_eq!(stored.0.message_count, 0);
    assert!(stored.1.iter().all(|message| message.deleted_at.is_some() && message.content.is_empty()));
}

pub async fn append_continues_after_import_session(t: TestStore) {
    let conversation = foreign(&t, 2);
    import(&t, &conversation).await.unwrap();
    assert_eq!(t.say(&conversation.0, "three").await.seq, 3);
    let session = t.reload(&conversation.0).await;
    assert_eq!((session.last_seq, session.message_count), (3, 3));
    // A longer archive parts from what was said here: it is neither mixed in nor dropped in silence.
    let refused = import(&t, &foreign(&t, 4)).await;
    assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
    let contents: Vec<String> = t.messages(&session).await.into_iter().map(|message| message.content).collect();
    assert_eq!(contents, ["message 1", "message 2", "three"]);
    assert_eq!(import(&t, &foreign(&t, 2)).await, Ok(Imported::default()));
}

pub async fn export_sessions_and_export_messages_keep_tombstones_without_their_words(t: TestStore) {
    fill(&t).await;
    let exported = export(&t, &t.project, 100).await;
    assert_eq!(exported.len(), 4);
    let blank = |message: &Message| {
        message.content.is_empty()
            && message.payload.is_none()
            && message.metadata == RawJson::empty_object()
            && message.context.is_none()
    };
    let (live, gone) = (&exported[0], exported.iter().find(|(session, _)| session.deleted_at.is_some()).unwrap());
    assert_eq!(live.1.iter().map(|message| message.deleted_at.is_some()).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!((live.1[0].version, live.1[0].content.as_str()), (2, "changed"));
    assert!(blank(&live.1[2]) && !blank(&live.1[1]));
    assert_eq!((live.1[2].seq, live.1[2].version), (3, 2));
    assert_eq!((gone.0.session_name.as_str(), &gone.0.metadata), ("", &RawJson::empty_object()));
    assert_eq!((gone.0.version, gone.0.last_seq, gone.0.message_count), (2, 2, 0));
    assert_eq!(gone.1.iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2]);
    assert!(gone.1.iter().all(|message| blank(message) && message.deleted_at == gone.0.deleted_at));
}

pub async fn export_sessions_and_export_messages_page(t: TestStore) {
    fill(&t).await;
    let all = export(&t, &t.project, 100).await;
    assert!(all.is_sorted_by_key(|(session, _)| session.session_id));
    for limit in [1, 2] {
        assert_eq!(export(&t, &t.project, limit).await, all, "{limit}");
    }
    let (session, messages) = &all[0];
    let part =
        async |after, last| t.store.export_messages(&t.project, session.session_id, after, last, 100).await.unwrap();
    // What is appended after the session was read is not part of it.
    t.say(session, "late").await;
    assert_eq!(part(0, session.last_seq).await, *messages);
    assert_eq!(part(1, 2).await, messages[1..2]);
    assert_eq!(part(3, 3).await, []);
    // No bound leads out of the session.
    for (after, last) in [(-1, i64::MAX), (i64::MIN, 1 << 40), (-(1 << 33), 100)] {
        assert_eq!(part(after, last).await.len(), 4, "{after} {last}");
    }
    assert_eq!(part(i64::MAX, i64::MAX).await, []);
}

pub async fn export_sessions_and_export_messages_keep_to_their_scope(t: TestStore) {
    fill(&t).await;
    let all = export(&t, &t.project, 100).await;
    assert_eq!(export(&t, &t.other, 100).await, []);
    for user in ["ada", "bob", "eve"] {
        let own: Vec<_> = all.iter().filter(|(session, _)| session.user_id.as_deref() == Some(user)).cloned().collect();
        assert_eq!(export(&t, &t.user(user), 100).await, own, "{user}");
    }
    for scope in [t.other.clone(), t.user("bob"), Scope::user(t.other.project_id, "ada")] {
        let messages = t.store.export_messages(&scope, all[0].0.session_id, 0, 100, 100).await.unwrap();
        assert_eq!(messages, [], "{scope:?}");
    }
}

pub async fn export_messages_ends_a_page_of_large_messages_early(t: TestStore) {
    let session = t.session().await;
    let large = "x".repeat(PAGE_BYTES_MAX / 2);
    for _ in 0..3 {
        t.say(&session, &large).await;
    }
    let page = async |after| t.store.export_messages(&t.project, session.session_id, after, 3, 100).await.unwrap();
    let seqs = |messages: Vec<Message>| messages.iter().map(|message| message.seq).collect::<Vec<_>>();
    assert_eq!(seqs(page(0).await), [1, 2]);
    assert_eq!(seqs(page(2).await), [3]);
    // One that is larger than a page is a page.
    let larger = t.session().await;
    t.say(&larger, &"x".repeat(PAGE_BYTES_MAX + 1)).await;
    let page = t.store.export_messages(&t.project, larger.session_id, 0, 1, 100).await.unwrap();
    assert_eq!(seqs(page), [1]);
}

/// What is exported and imported elsewhere, whole or in parts, is exported there again as it was.
pub async fn export_and_import_session_make_an_equal_store(from: TestStore, into: TestStore) {
    fill(&from).await;
    let exported = export(&from, &from.project, 100).await;
    for (n, conversation) in exported.iter().enumerate() {
        let parts =
            if n == 0 { conversation.1.chunks(2).map(<[_]>::to_vec).collect() } else { vec![conversation.1.clone()] };
        for (part, messages) in parts.into_iter().enumerate() {
            let expected = Imported { session: part == 0, messages: messages.len() as u64 };
            let archived = archived(ArchiveIdentity::SessionId, &(conversation.0.clone(), messages));
            assert_eq!(into.store.import_session(&into.project, archived).await, Ok(expected));
        }
    }
    assert_eq!(export(&into, &into.project, 100).await, exported);
    for (session, messages) in exported.iter().filter(|(session, _)| session.deleted_at.is_none()) {
        assert_eq!(into.reload(session).await, *session);
        let live: Vec<_> = messages.iter().filter(|message| message.deleted_at.is_none()).cloned().collect();
        assert_eq!(into.messages(session).await, live);
    }
}

pub async fn import_session_keeps_to_quotas_and_stores_nothing_past_them(t: TestStore) {
    let import = async |quotas: Quotas, conversation: &Conversation| {
        let scope = Scope { quotas, ..t.project.clone() };
        t.store.import_session(&scope, archived(ArchiveIdentity::SessionId, conversation)).await
    };
    let messages = Quotas { messages_per_session: Some(2), ..Quotas::default() };
    let sessions = Quotas { sessions_per_user: Some(1), ..Quotas::default() };
    let first = foreign(&t, 3);
    let full = Err(StoreError::QuotaExceeded { quota: "messages_per_session", max: 2 });
    assert_eq!(import(messages, &first).await, full);
    assert_eq!(t.sessions(&t.project, &SessionQuery::default()).await, [], "nothing was stored");
    import(sessions, &first).await.unwrap();
    // What is there already takes no place.
    import(sessions, &first).await.unwrap();
    import(messages, &first).await.unwrap();
    let (mut another, mut its) = foreign(&t, 1);
    another.external_id = None;
    its[0].external_id = None;
    let full = Err(StoreError::QuotaExceeded { quota: "sessions_per_user", max: 1 });
    assert_eq!(import(sessions, &(another, its)).await, full);
    assert_eq!(t.sessions(&t.project, &SessionQuery::default()).await.len(), 1);
}

pub async fn import_session_counts_in_get_project_usage(t: TestStore) {
    let (session, messages) = foreign(&t, 2);
    let bytes = |message: &Message| {
        let context = message.context.as_ref().map_or(0, |json| json.bytes());
        let payload = message.payload.as_ref().map_or(0, |json| json.bytes());
        (message.content.len() + message.metadata.bytes() + context + payload) as u64
    };
    let expected = messages.iter().map(bytes).sum::<u64>();
    let conversation = (session, messages);
    for _ in 0..2 {
        import(&t, &conversation).await.unwrap();
        let usage = t.store.get_project_usage(t.project.project_id).await.unwrap();
        assert_eq!((usage.sessions, usage.messages, usage.bytes), (1, 2, expected));
    }
}
