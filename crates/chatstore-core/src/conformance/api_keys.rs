//! What every engine does with API keys.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use crate::api_keys::{
    ApiKey, ApiKeyPatch, Authority, KeyDigest, KeyScopes, KeySettings, Permission, PresentedKey, PreviousDigest,
};
use crate::conformance::{ODD_TEXT, STEP_US, TestStore, join_all};
use crate::ids::ProjectId;
use crate::page::{KeyPosition, PageRequest, PageStart};
use crate::rates::{ClassRates, Rates};
use crate::store::StoreError;

fn key(t: &TestStore) -> ApiKey {
    let presented = PresentedKey::generate(&t.ctx);
    ApiKey::new(&presented, t.project.project_id, "a key", KeyScopes::all(), t.ctx.now())
}

/// A key with something in every field.
fn rich_key(t: &TestStore) -> ApiKey {
    ApiKey {
        project_id: t.other.project_id,
        name: ODD_TEXT.to_owned(),
        previous: Some(PreviousDigest { digest: KeyDigest::of("before"), expires_at: t.ctx.now() }),
        scopes: [Permission::Read, Permission::Search].into_iter().collect(),
        user_id: Some("ada".to_owned()),
        settings: KeySettings {
            limits: ClassRates { writes: Rates::parse("10/second burst 20"), ..ClassRates::default() },
            limits_by_operator: true,
            allowed_origins: vec!["https://a.example".to_owned()],
            allowed_addresses: vec!["2001:db8::/32".to_owned()],
        },
        updated_at: t.ctx.now(),
        expires_at: Some(t.ctx.now()),
        revoked_at: Some(t.ctx.now()),
        last_used_at: Some(t.ctx.now()),
        ..key(t)
    }
}

/// Everything of a key: its digests hide from `Debug`.
fn shown(key: &ApiKey) -> (String, [u8; 32], Option<[u8; 32]>) {
    (format!("{key:?}"), *key.digest.as_bytes(), key.previous.map(|previous| *previous.digest.as_bytes()))
}

async fn stored(t: &TestStore, key_id: &str) -> ApiKey {
    t.store.get_api_key(key_id).await.unwrap().unwrap().0
}

async fn create(t: &TestStore, key: ApiKey) -> ApiKey {
    t.store.create_api_key(key.clone(), None).await.unwrap();
    key
}

async fn all(t: &TestStore, project_id: Option<ProjectId>) -> Vec<(ApiKey, String)> {
    let page = PageRequest { limit: 100, start: PageStart::Offset(0) };
    t.store.list_api_keys(project_id, &page).await.unwrap().items
}

pub async fn create_api_key_stores_every_field(t: TestStore) {
    let bare = ApiKey { scopes: KeyScopes::default(), ..key(&t) };
    for (key, project) in [(rich_key(&t), "other"), (bare, "default")] {
        create(&t, key.clone()).await;
        let (stored, its) = t.store.get_api_key(&key.key_id).await.unwrap().unwrap();
        assert_eq!(shown(&stored), shown(&key));
        assert_eq!((its.project_id, its.name.as_str()), (key.project_id, project));
        assert_eq!(Some(its), t.store.get_project(key.project_id).await.unwrap());
    }
}

pub async fn create_api_key_of_no_project_is_not_found(t: TestStore) {
    let project_id = t.ctx.new_project_id(t.ctx.now());
    let orphan = ApiKey { project_id, ..key(&t) };
    assert_eq!(t.store.create_api_key(orphan.clone(), None).await.err(), Some(StoreError::NotFound));
    assert!(t.store.get_api_key(&orphan.key_id).await.unwrap().is_none());
}

pub async fn get_api_key_of_an_unknown_id_is_none(t: TestStore) {
    let key = key(&t);
    assert!(t.store.get_api_key(&key.key_id).await.unwrap().is_none());
    create(&t, key.clone()).await;
    for absent in ["", "%", &key.key_id[1..], &key.key_id.to_uppercase()] {
        assert!(t.store.get_api_key(absent).await.unwrap().is_none(), "{absent}");
    }
}

pub async fn list_api_keys_is_oldest_first_with_project_names(t: TestStore) {
    let mut keys = [key(&t), key(&t), rich_key(&t), key(&t)];
    keys[3].revoked_at = Some(t.ctx.now());
    // Two of one moment stand by their ids.
    keys[1].created_at = keys[0].created_at;
    keys[..2].sort_by(|a, b| a.key_id.cmp(&b.key_id));
    for key in keys.iter().rev() {
        create(&t, key.clone()).await;
    }
    keys.sort_by(|a, b| (a.created_at, &a.key_id).cmp(&(b.created_at, &b.key_id)));
    let listed = all(&t, None).await;
    let name = |key: &ApiKey| if key.project_id == t.other.project_id { "other" } else { "default" };
    assert_eq!(
        listed.iter().map(|(key, project)| (shown(key), project.as_str())).collect::<Vec<_>>(),
        keys.iter().map(|key| (shown(key), name(key))).collect::<Vec<_>>()
    );
    for project_id in [t.project.project_id, t.other.project_id] {
        let own: Vec<_> = keys.iter().filter(|key| key.project_id == project_id).map(shown).collect();
        assert_eq!(all(&t, Some(project_id)).await.iter().map(|(key, _)| shown(key)).collect::<Vec<_>>(), own);
    }
}

pub async fn list_api_keys_pages_without_gap_or_repetition(t: TestStore) {
    let created_at = t.ctx.now();
    for n in 0..7 {
        // Most of them at one moment.
        let created_at = if n == 3 { created_at.plus_micros(1) } else { created_at };
        create(&t, ApiKey { created_at, ..key(&t) }).await;
        create(&t, ApiKey { project_id: t.other.project_id, created_at, ..key(&t) }).await;
    }
    for project_id in [None, Some(t.other.project_id)] {
        let whole: Vec<String> = all(&t, project_id).await.into_iter().map(|(key, _)| key.key_id).collect();
        assert_eq!(whole.len(), if project_id.is_none() { 14 } else { 7 });
        let (mut paged, mut start) = (Vec::new(), PageStart::Offset(0));
        loop {
            let page = t.store.list_api_keys(project_id, &PageRequest { limit: 3, start }).await.unwrap();
            assert!(page.items.len() == 3 || page.next.is_none());
            paged.extend(page.items.iter().map(|(key, _)| key.key_id.clone()));
            let Some(next) = page.next else { break };
            let last = &page.items.last().unwrap().0;
            assert_eq!(next, KeyPosition { created_at: last.created_at, key_id: last.key_id.clone() });
            start = PageStart::After(next);
        }
        assert_eq!(paged, whole);
    }
}

pub async fn list_credential_ids_names_what_could_be_presented(t: TestStore) {
    let (usable, revoked) = (create(&t, key(&t)).await, create(&t, rich_key(&t)).await);
    let mut ids = t.store.list_credential_ids().await.unwrap();
    ids.sort();
    let mut expected = vec![usable.key_id, t.project.project_id.to_string(), t.other.project_id.to_string()];
    expected.sort();
    assert_eq!(ids, expected);
    assert!(!ids.contains(&revoked.key_id));
}

pub async fn update_api_key_changes_only_what_is_named(t: TestStore) {
    let mut expected = create(&t, ApiKey { revoked_at: None, ..rich_key(&t) }).await;
    let neighbour = create(&t, key(&t)).await;
    let host = Authority::host();
    let patches = [
        ApiKeyPatch::default(),
        ApiKeyPatch { name: Some("new".to_owned()), ..ApiKeyPatch::default() },
        ApiKeyPatch { scopes: Some(KeyScopes::of_users()), ..ApiKeyPatch::default() },
        ApiKeyPatch { expires_at: Some(None), ..ApiKeyPatch::default() },
        ApiKeyPatch { limits: Some(ClassRates::default()), ..ApiKeyPatch::default() },
        ApiKeyPatch { limits_by_operator: Some(false), ..ApiKeyPatch::default() },
        ApiKeyPatch { allowed_origins: Some(Vec::new()), ..ApiKeyPatch::default() },
        ApiKeyPatch { allowed_addresses: Some(vec!["::1/128".to_owned()]), ..ApiKeyPatch::default() },
    ];
    for patch in patches {
        let now = t.ctx.now();
        patch.clone().apply(&mut expected, now);
        let updated = t.store.update_api_key(&host, &expected.key_id, patch, now).await.unwrap();
        assert_eq!(shown(&updated), shown(&expected));
        assert_eq!(shown(&stored(&t, &expected.key_id).await), shown(&expected));
    }
    assert_eq!(shown(&stored(&t, &neighbour.key_id).await), shown(&neighbour));
}

pub async fn rotate_api_key_keeps_the_old_secret_for_a_while(t: TestStore) {
    let key = create(&t, ApiKey { previous: None, revoked_at: None, ..rich_key(&t) }).await;
    let (host, next) = (Authority::host(), KeyDigest::of("next"));
    let now = t.ctx.now();
    let grace = now.plus_micros(STEP_US);
    let rotated = t.store.rotate_api_key(&host, &key.key_id, next, grace, now, None).await.unwrap().value;
    let mut expected = key.clone();
    expected.rotate(next, grace, now);
    assert_eq!(shown(&rotated), shown(&expected));
    let found = stored(&t, &key.key_id).await;
    assert_eq!(shown(&found), shown(&expected));
    assert!(found.accepts(&key.digest, now) && found.accepts(&next, now) && !found.accepts(&key.digest, grace));
    // The one before the last ends with the next rotation.
    let last = KeyDigest::of("last");
    t.store.rotate_api_key(&host, &key.key_id, last, grace, now, None).await.unwrap();
    let found = stored(&t, &key.key_id).await;
    assert!(found.accepts(&last, now) && found.accepts(&next, now) && !found.accepts(&key.digest, now));
    t.store.revoke_api_key(&host, &key.key_id, now).await.unwrap();
    let refused = t.store.rotate_api_key(&host, &key.key_id, next, grace, now, None).await;
    assert_eq!(refused.err(), Some(StoreError::Conflict { field: "revoked_at" }));
}

pub async fn revoke_api_key_keeps_the_first_time(t: TestStore) {
    let (key, neighbour) = (create(&t, key(&t)).await, create(&t, key(&t)).await);
    let (host, now) = (Authority::host(), t.ctx.now());
    let revoked = t.store.revoke_api_key(&host, &key.key_id, now).await.unwrap();
    assert_eq!(revoked.revoked_at, Some(now));
    assert!(!revoked.is_active(now));
    let again = t.store.revoke_api_key(&host, &key.key_id, now.plus_micros(STEP_US)).await.unwrap();
    assert_eq!(shown(&again), shown(&revoked));
    assert_eq!(shown(&stored(&t, &key.key_id).await), shown(&revoked));
    assert_eq!(stored(&t, &neighbour.key_id).await.revoked_at, None);
}

pub async fn changes_of_keys_need_the_authority_for_them(t: TestStore) {
    let narrow: KeyScopes = [Permission::Read, Permission::Admin].into_iter().collect();
    let own = create(&t, ApiKey { scopes: narrow, ..key(&t) }).await;
    let wider = create(&t, ApiKey { scopes: KeyScopes::all(), ..key(&t) }).await;
    let foreign = create(&t, ApiKey { scopes: narrow, project_id: t.other.project_id, ..key(&t) }).await;
    let admin = Authority { project_id: Some(t.project.project_id), scopes: narrow };
    let rename = || ApiKeyPatch { name: Some("x".to_owned()), ..ApiKeyPatch::default() };
    let now = t.ctx.now();
    let absent = "000000000000".to_owned();
    for (key_id, refusal) in [
        (&foreign.key_id, StoreError::NotFound),
        (&absent, StoreError::NotFound),
        (&wider.key_id, StoreError::Forbidden),
    ] {
        let refused = Some(refusal);
        assert_eq!(t.store.update_api_key(&admin, key_id, rename(), now).await.err(), refused);
        let rotated = t.store.rotate_api_key(&admin, key_id, KeyDigest::of("mine"), now, now, None).await;
        assert_eq!(rotated.err(), refused);
        assert_eq!(t.store.revoke_api_key(&admin, key_id, now).await.err(), refused);
    }
    // Nor may a key become what its keeper is not.
    let widened = ApiKeyPatch { scopes: Some(KeyScopes::of_users()), ..ApiKeyPatch::default() };
    assert_eq!(t.store.update_api_key(&admin, &own.key_id, widened, now).await.err(), Some(StoreError::Forbidden));
    for key in [&own, &wider, &foreign] {
        assert_eq!(shown(&stored(&t, &key.key_id).await), shown(key), "nothing was changed");
    }
    assert_eq!(t.store.update_api_key(&admin, &own.key_id, rename(), now).await.unwrap().name, "x");
    let every = Authority { project_id: None, ..admin };
    assert_eq!(t.store.update_api_key(&every, &foreign.key_id, rename(), now).await.unwrap().name, "x");
}

pub async fn note_api_key_uses_moves_forward_alone(t: TestStore) {
    let (one, two) = (create(&t, key(&t)).await, create(&t, key(&t)).await);
    let (early, late) = (t.ctx.now(), t.ctx.now());
    let gone = ("000000000000".to_owned(), late);
    t.store.note_api_key_uses(vec![(one.key_id.clone(), late), gone]).await.unwrap();
    t.store.note_api_key_uses(vec![(one.key_id.clone(), early), (two.key_id.clone(), early)]).await.unwrap();
    t.store.note_api_key_uses(Vec::new()).await.unwrap();
    let (first, second) = (stored(&t, &one.key_id).await, stored(&t, &two.key_id).await);
    assert_eq!((first.last_used_at, second.last_used_at), (Some(late), Some(early)));
    assert_eq!(first.updated_at, one.updated_at);
}

pub async fn concurrent_note_api_key_uses_never_hinder_each_other(t: TestStore) {
    let mut keys = Vec::new();
    for _ in 0..20 {
        keys.push(create(&t, key(&t)).await.key_id);
    }
    let now = t.ctx.now();
    let uses = |n: usize| {
        let mut uses: Vec<_> = keys.iter().map(|key_id| (key_id.clone(), now)).collect();
        uses.rotate_left(n);
        uses
    };
    let noted = join_all((0..20).map(|n| t.store.note_api_key_uses(uses(n)))).await;
    assert!(noted.into_iter().all(|noted| noted.is_ok()));
    assert_eq!(stored(&t, &keys[7]).await.last_used_at, Some(now));
}

pub async fn create_first_api_key_lets_one_of_many_callers_win(t: TestStore) {
    let keys: Vec<ApiKey> = (0..32).map(|_| key(&t)).collect();
    let won = join_all(keys.iter().map(|key| t.store.create_first_api_key(key.clone()))).await;
    let won: Vec<bool> = won.into_iter().map(Result::unwrap).collect();
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    let winner = won.iter().position(|won| *won).unwrap();
    let listed = all(&t, None).await;
    assert_eq!(listed.iter().map(|(key, _)| &key.key_id).collect::<Vec<_>>(), [&keys[winner].key_id]);
}

pub async fn create_first_api_key_does_nothing_when_there_was_ever_a_key(t: TestStore) {
    let first = create(&t, key(&t)).await;
    assert!(!t.store.create_first_api_key(key(&t)).await.unwrap());
    t.store.revoke_api_key(&Authority::host(), &first.key_id, t.ctx.now()).await.unwrap();
    assert!(!t.store.create_first_api_key(key(&t)).await.unwrap());
    assert_eq!(all(&t, None).await.len(), 1);
}
