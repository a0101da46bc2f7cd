//! What every engine does with projects.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use crate::api_keys::{ApiKey, ApiKeyPatch, Authority, KeyDigest, KeyScopes, PresentedKey};
use crate::clock::Timestamp;
use crate::conformance::{ODD_TEXT, STEP_US, TestStore, join_all, json};
use crate::ids::ProjectId;
use crate::messages::{MessagePatch, NewMessage};
use crate::page::{PageRequest, PageStart};
use crate::projects::{
    DEFAULT_PROJECT, Project, ProjectPatch, ProjectSettings, ProjectUsage, TokenAlgorithm, TokenPublicKey, TokenSecret,
    TokenSettings,
};
use crate::rates::{ClassRates, Rates};
use crate::store::{ExpectedVersion, Quotas, Scope, StoreError};

fn project(t: &TestStore, name: &str) -> Project {
    let created_at = t.ctx.now();
    Project::new(t.ctx.new_project_id(created_at), name, created_at)
}

fn limits() -> ClassRates {
    ClassRates { reads: Some(Rates::OFF), search: Rates::parse("5/second;100/hour"), ..ClassRates::default() }
}

fn quotas() -> Quotas {
    Quotas { sessions_per_user: Some(1), messages_per_session: None, project_bytes: Some(1 << 53) }
}

fn tokens() -> TokenSettings {
    let key = TokenPublicKey {
        key_id: Some("k".to_owned()),
        algorithm: TokenAlgorithm::EdDSA,
        public_key: "-----BEGIN PUBLIC KEY-----\n".to_owned(),
    };
    TokenSettings { public_keys: vec![key], audience: Some(ODD_TEXT.to_owned()), issuer: Some("i".to_owned()) }
}

fn rich_project(t: &TestStore, name: &str) -> Project {
    let previous = TokenSecret { expires_at: Some(t.ctx.now()), ..TokenSecret::generate(&t.ctx) };
    Project {
        settings: ProjectSettings {
            limits: limits(),
            total_limit: Rates::parse("1/hour"),
            quotas: quotas(),
            tokens: tokens(),
        },
        token_secrets: vec![TokenSecret::generate(&t.ctx), previous],
        updated_at: t.ctx.now(),
        ..project(t, name)
    }
}

/// Everything of a project: its secrets hide from `Debug`.
fn shown(project: &Project) -> (String, Vec<[u8; 32]>) {
    (format!("{project:?}"), project.token_secrets.iter().map(|secret| secret.bytes).collect())
}

async fn all(t: &TestStore) -> Vec<Project> {
    let page = PageRequest { limit: 100, start: PageStart::Offset(0) };
    t.store.list_projects(&page).await.unwrap().items
}

pub async fn the_default_project_is_there(t: TestStore) {
    let project = t.store.get_project_by_name(DEFAULT_PROJECT).await.unwrap().unwrap();
    assert_eq!((project.project_id, project.name.as_str()), (ProjectId::DEFAULT, DEFAULT_PROJECT));
    assert_eq!(t.store.get_project(ProjectId::DEFAULT).await.unwrap(), Some(project));
}

pub async fn create_project_stores_every_field(t: TestStore) {
    for made in [project(&t, "Pröjekt 2"), rich_project(&t, "rich")] {
        assert_eq!(shown(&t.store.create_project(made.clone(), None).await.unwrap().value), shown(&made));
        assert_eq!(shown(&t.store.get_project(made.project_id).await.unwrap().unwrap()), shown(&made));
        assert_eq!(shown(&t.store.get_project_by_name(&made.name).await.unwrap().unwrap()), shown(&made));
    }
    for absent in ["", "pröjekt 2", "Pröjekt"] {
        assert_eq!(t.store.get_project_by_name(absent).await.unwrap(), None, "{absent}");
    }
    assert_eq!(t.store.get_project(t.ctx.new_project_id(t.ctx.now())).await.unwrap(), None);
}

pub async fn create_project_with_a_taken_name_is_a_conflict(t: TestStore) {
    let taken = Some(StoreError::Conflict { field: "name" });
    assert_eq!(t.store.create_project(project(&t, "other"), None).await.err(), taken);
    let made = t.store.create_project(project(&t, "third"), None).await.unwrap().value;
    let rename = ProjectPatch { name: Some("other".to_owned()), ..ProjectPatch::default() };
    assert_eq!(t.store.update_project(made.project_id, rename, t.ctx.now()).await.err(), taken);
    assert_eq!(t.store.get_project_by_name("other").await.unwrap().unwrap().project_id, t.other.project_id);
    assert_eq!(t.store.get_project(made.project_id).await.unwrap(), Some(made));
}

pub async fn list_projects_is_oldest_first_and_pages(t: TestStore) {
    let before = all(&t).await;
    let mut names: Vec<&str> = before.iter().map(|project| project.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [DEFAULT_PROJECT, "other"]);
    // Two of one moment, all older than those that are there.
    let created_at = Timestamp::from_micros(1).unwrap();
    let mut made = ["b", "a", "B"].map(|name| Project { created_at, ..project(&t, name) });
    made[2].created_at = created_at.plus_micros(-1);
    for project in &made {
        t.store.create_project(project.clone(), None).await.unwrap();
    }
    let expected = [made.to_vec(), before].concat();
    let mut sorted = expected.clone();
    sorted.sort_by_key(|project| (project.created_at, project.project_id));
    assert_ne!(sorted, expected);
    assert_eq!(all(&t).await, sorted);
    let (mut paged, mut start) = (Vec::new(), PageStart::Offset(0));
    loop {
        let page = t.store.list_projects(&PageRequest { limit: 2, start }).await.unwrap();
        paged.extend(page.items);
        let Some(next) = page.next else { break };
        start = PageStart::After(next);
    }
    assert_eq!(paged, sorted);
}

pub async fn update_project_changes_only_what_is_named(t: TestStore) {
    let mut expected = t.store.create_project(rich_project(&t, "a"), None).await.unwrap().value;
    let patches = [
        ProjectPatch::default(),
        ProjectPatch { name: Some("b".to_owned()), ..ProjectPatch::default() },
        ProjectPatch { limits: Some(ClassRates::default()), ..ProjectPatch::default() },
        ProjectPatch { total_limit: Some(None), ..ProjectPatch::default() },
        ProjectPatch { total_limit: Some(Rates::parse("2/hour")), ..ProjectPatch::default() },
        ProjectPatch { quotas: Some(Quotas::default()), ..ProjectPatch::default() },
        ProjectPatch { tokens: Some(TokenSettings::default()), ..ProjectPatch::default() },
    ];
    for patch in patches {
        let now = t.ctx.now();
        patch.clone().apply(&mut expected, now);
        let updated = t.store.update_project(expected.project_id, patch, now).await.unwrap();
        assert_eq!(shown(&updated), shown(&expected));
        assert_eq!(shown(&t.store.get_project(expected.project_id).await.unwrap().unwrap()), shown(&expected));
    }
    let absent = t.ctx.new_project_id(t.ctx.now());
    let refused = t.store.update_project(absent, ProjectPatch::default(), t.ctx.now()).await;
    assert_eq!(refused, Err(StoreError::NotFound));
}

pub async fn rotate_token_secret_keeps_the_old_one_for_a_while(t: TestStore) {
    let mut expected = t.store.get_project(t.other.project_id).await.unwrap().unwrap();
    let secrets = [(); 3].map(|()| TokenSecret::generate(&t.ctx));
    for secret in secrets.map(Some).into_iter().chain([None]) {
        let now = t.ctx.now();
        let grace = now.plus_micros(10 * STEP_US);
        expected.rotate_token_secret(secret, grace, now);
        let rotated = t.store.rotate_token_secret(expected.project_id, secret, grace, now, None).await.unwrap().value;
        assert_eq!(shown(&rotated), shown(&expected));
        assert_eq!(shown(&t.store.get_project(expected.project_id).await.unwrap().unwrap()), shown(&expected));
    }
    let (absent, now) = (t.ctx.new_project_id(t.ctx.now()), t.ctx.now());
    let refused = t.store.rotate_token_secret(absent, None, now, now, None).await;
    assert_eq!(refused, Err(StoreError::NotFound));
}

/// The project, its key, and its user with some sessions of some messages.
async fn populated(t: &TestStore, sessions: usize) -> (Project, ApiKey, Scope) {
    let made = t.store.create_project(rich_project(t, "doomed"), None).await.unwrap().value;
    let presented = PresentedKey::generate(&t.ctx);
    let key = ApiKey::new(&presented, made.project_id, "a key", KeyScopes::all(), t.ctx.now());
    t.store.create_api_key(key.clone(), None).await.unwrap();
    let scope = Scope::project(made.project_id);
    for n in 0..sessions {
        let new = t.placed(&scope, t.new_session((n % 2 == 0).then_some("ada")));
        let session = t.store.create_session(&scope, new, Vec::new(), None).await.unwrap().value;
        let message = t.new_message(&session, "ghost");
        t.store.append_messages(&scope, session.session_id, vec![message], t.ctx.now(), None).await.unwrap();
    }
    (made, key, scope)
}

pub async fn delete_project_takes_its_keys_and_its_name_away_at_once(t: TestStore) {
    let (made, key, _) = populated(&t, 1).await;
    let deleted = t.store.delete_project(made.project_id, t.ctx.now()).await.unwrap();
    assert_eq!(shown(&deleted), shown(&made));
    let (host, now) = (Authority::host(), t.ctx.now());
    assert!(t.store.get_api_key(&key.key_id).await.unwrap().is_none());
    assert_eq!(t.store.get_project(made.project_id).await.unwrap(), None);
    assert_eq!(t.store.get_project_by_name("doomed").await.unwrap(), None);
    assert!(all(&t).await.iter().all(|project| project.project_id != made.project_id));
    let ids = t.store.list_credential_ids().await.unwrap();
    assert!(!ids.contains(&key.key_id) && !ids.contains(&made.project_id.to_string()));
    let page = PageRequest { limit: 100, start: PageStart::Offset(0) };
    for project_id in [None, Some(made.project_id)] {
        assert!(t.store.list_api_keys(project_id, &page).await.unwrap().items.is_empty());
    }
    let gone = Some(StoreError::NotFound);
    assert_eq!(t.store.update_api_key(&host, &key.key_id, ApiKeyPatch::default(), now).await.err(), gone);
    assert_eq!(t.store.rotate_api_key(&host, &key.key_id, KeyDigest::of("x"), now, now, None).await.err(), gone);
    assert_eq!(t.store.revoke_api_key(&host, &key.key_id, now).await.err(), gone);
    assert_eq!(t.store.create_api_key(ApiKey { key_id: "000000000000".to_owned(), ..key }, None).await.err(), gone);
    assert_eq!(t.store.update_project(made.project_id, ProjectPatch::default(), now).await.err(), gone);
    assert_eq!(t.store.rotate_token_secret(made.project_id, None, now, now, None).await.err(), gone);
    assert_eq!(t.store.delete_project(made.project_id, now).await.err(), gone);
    assert_eq!(t.store.get_project_usage(made.project_id).await.unwrap(), ProjectUsage::default());
    assert!(t.store.create_project(project(&t, "doomed"), None).await.is_ok(), "its name is free");
}

pub async fn delete_project_needs_no_name_that_another_may_have(t: TestStore) {
    let id = t.other.project_id;
    let namesake = t.store.create_project(project(&t, &id.to_string()), None).await.unwrap().value;
    t.store.delete_project(id, t.ctx.now()).await.unwrap();
    assert_eq!(t.store.get_project_by_name(&id.to_string()).await.unwrap(), Some(namesake));
}

pub async fn delete_project_leaves_the_default_one_and_the_others(t: TestStore) {
    let refused = t.store.delete_project(ProjectId::DEFAULT, t.ctx.now()).await;
    assert_eq!(refused, Err(Project::default_stays()));
    let (made, ..) = populated(&t, 1).await;
    let session = t.session().await;
    t.say(&session, "ghost").await;
    t.store.delete_project(made.project_id, t.ctx.now()).await.unwrap();
    while t.store.erase_deleted_projects(t.ctx.now()).await.unwrap() {}
    assert_eq!(t.messages(&session).await.len(), 1);
    assert_eq!(all(&t).await.len(), 2);
}

pub async fn erase_deleted_projects_deletes_every_session(t: TestStore) {
    assert!(!t.store.erase_deleted_projects(t.ctx.now()).await.unwrap(), "there is nothing to do");
    let (made, _, scope) = populated(&t, 5).await;
    t.store.delete_project(made.project_id, t.ctx.now()).await.unwrap();
    while t.store.erase_deleted_projects(t.ctx.now()).await.unwrap() {}
    let exported = t.store.export_sessions(&scope, None, 100).await.unwrap();
    assert_eq!(exported.len(), 5);
    for session in exported {
        assert!(session.deleted_at.is_some());
        assert_eq!((session.session_name.as_str(), session.message_count), ("", 0));
        let messages = t.store.export_messages(&scope, session.session_id, 0, i64::MAX, 100).await.unwrap();
        assert!(messages.iter().all(|message| message.content.is_empty()), "{messages:?}");
    }
    assert_eq!(t.store.get_project_usage(made.project_id).await.unwrap(), ProjectUsage::default());
}

pub async fn concurrent_erase_deleted_projects_share_the_work(t: TestStore) {
    let (made, _, scope) = populated(&t, 30).await;
    t.store.delete_project(made.project_id, t.ctx.now()).await.unwrap();
    let erase = async || while t.store.erase_deleted_projects(t.ctx.now()).await.unwrap() {};
    join_all((0..4).map(|_| erase())).await;
    erase().await;
    let exported = t.store.export_sessions(&scope, None, 100).await.unwrap();
    assert_eq!(exported.iter().filter(|session| session.deleted_at.is_some()).count(), 30);
}

pub async fn get_project_usage_follows_every_change(t: TestStore) {
    let usage = async || t.store.get_project_usage(t.project.project_id).await.unwrap();
    let expect = |sessions, messages, bytes| ProjectUsage { sessions, messages, bytes };
    assert_eq!(usage().await, expect(0, 0, 0));
    let session = t.session_of("ada").await;
    let other = t.session().await;
    // Bytes, not characters; metadata is `{}` unless it is given.
    let first = t.say(&session, "é").await;
    assert_eq!(usage().await, expect(2, 1, 4));
    let rich = NewMessage {
        payload: Some(json("[1]")),
        metadata: json("{\"a\":1}"),
        context: Some(json("null")),
        ..t.new_message(&other, "abc")
    };
    let many = vec![rich, t.new_message(&other, "x")];
    let stored = t.append(&other, many).await.unwrap();
    assert_eq!(usage().await, expect(2, 3, 4 + (3 + 3 + 7 + 4) + 3));
    let longer = MessagePatch { content: Some("four".to_owned()), ..MessagePatch::default() };
    t.store.update_message(&t.project, first.message_id, longer, ExpectedVersion::Any, t.ctx.now()).await.unwrap();
    assert_eq!(usage().await, expect(2, 3, 6 + 17 + 3));
    t.store.delete_message(&t.project, stored[1].message_id, ExpectedVersion::Any, t.ctx.now()).await.unwrap();
    assert_eq!(usage().await, expect(2, 2, 6 + 17));
    t.store.delete_session(&t.project, other.session_id, ExpectedVersion::Any, t.ctx.now()).await.unwrap();
    assert_eq!(usage().await, expect(1, 1, 6));
    assert_eq!(t.store.get_project_usage(t.other.project_id).await.unwrap(), ProjectUsage::default());
}
