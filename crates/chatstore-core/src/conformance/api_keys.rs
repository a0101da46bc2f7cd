//! What every engine does with API keys.
#![expect(missing_docs, reason = "the name of a check is its sentence")]
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

use crate::api_keys::{ApiKey, KeyScopes, Permission, PresentedKey};
use crate::conformance::{ODD_TEXT, STEP_US, TestStore, join_all};
use crate::store::StoreError;

fn key(t: &TestStore) -> ApiKey {
    let presented = PresentedKey::generate(&t.ctx);
    ApiKey {
        key_id: presented.key_id().to_owned(),
        project_id: t.project.project_id,
        name: "a key".to_owned(),
        digest: presented.digest(),
        scopes: KeyScopes::all(),
        user_id: None,
        created_at: t.ctx.now(),
        expires_at: None,
        revoked_at: None,
    }
}

/// Everything of a key: its digest hides from `Debug`.
fn shown(key: &ApiKey) -> (String, [u8; 32]) {
    (format!("{key:?}"), *key.digest.as_bytes())
}

pub async fn create_api_key_stores_every_field(t: TestStore) {
    let rich = ApiKey {
        project_id: t.other.project_id,
        name: ODD_TEXT.to_owned(),
        scopes: [Permission::Read, Permission::Search].into_iter().collect(),
        user_id: Some("ada".to_owned()),
        expires_at: Some(t.ctx.now()),
        revoked_at: Some(t.ctx.now()),
        ..key(&t)
    };
    let bare = ApiKey { scopes: KeyScopes::default(), ..key(&t) };
    for key in [rich, bare] {
        t.store.create_api_key(key.clone()).await.unwrap();
        let stored = t.store.get_api_key(&key.key_id).await.unwrap().unwrap();
        assert_eq!(shown(&stored), shown(&key));
        assert!(stored.digest.matches(&key.digest));
    }
}

pub async fn get_api_key_of_an_unknown_id_is_none(t: TestStore) {
    let key = key(&t);
    assert!(t.store.get_api_key(&key.key_id).await.unwrap().is_none());
    t.store.create_api_key(key.clone()).await.unwrap();
    for absent in ["", "%", &key.key_id[1..], &key.key_id.to_uppercase()] {
        assert!(t.store.get_api_key(absent).await.unwrap().is_none(), "{absent}");
    }
}

pub async fn list_api_keys_is_oldest_first_with_project_names(t: TestStore) {
    let mut keys = [key(&t), key(&t), key(&t)];
    keys[1].project_id = t.other.project_id;
    keys[2].revoked_at = Some(t.ctx.now());
    for key in keys.iter().rev() {
        t.store.create_api_key(key.clone()).await.unwrap();
    }
    let listed = t.store.list_api_keys().await.unwrap();
    let names: Vec<&str> = listed.iter().map(|(_, project)| project.as_str()).collect();
    assert_eq!(names, ["default", "other", "default"]);
    assert_eq!(
        listed.iter().map(|(key, _)| shown(key)).collect::<Vec<_>>(),
        keys.iter().map(shown).collect::<Vec<_>>()
    );
}

pub async fn revoke_api_key_keeps_the_first_time(t: TestStore) {
    let (key, neighbour) = (key(&t), key(&t));
    t.store.create_api_key(key.clone()).await.unwrap();
    t.store.create_api_key(neighbour.clone()).await.unwrap();
    let now = t.ctx.now();
    let revoked = t.store.revoke_api_key(&key.key_id, now).await.unwrap();
    assert_eq!(revoked.revoked_at, Some(now));
    assert!(!revoked.is_active(now));
    let again = t.store.revoke_api_key(&key.key_id, now.plus_micros(STEP_US)).await.unwrap();
    assert_eq!(shown(&again), shown(&revoked));
    assert_eq!(shown(&t.store.get_api_key(&key.key_id).await.unwrap().unwrap()), shown(&revoked));
    assert_eq!(t.store.get_api_key(&neighbour.key_id).await.unwrap().unwrap().revoked_at, None);
}

pub async fn revoke_api_key_of_an_unknown_id_is_not_found(t: TestStore) {
    assert_eq!(t.store.revoke_api_key("000000000000", t.ctx.now()).await.err(), Some(StoreError::NotFound));
}

pub async fn create_first_api_key_lets_one_of_many_callers_win(t: TestStore) {
    let keys: Vec<ApiKey> = (0..32).map(|_| key(&t)).collect();
    let won = join_all(keys.iter().map(|key| t.store.create_first_api_key(key.clone()))).await;
    let won: Vec<bool> = won.into_iter().map(Result::unwrap).collect();
    assert_eq!(won.iter().filter(|won| **won).count(), 1);
    let listed = t.store.list_api_keys().await.unwrap();
    let winner = won.iter().position(|won| *won).unwrap();
    assert_eq!(listed.iter().map(|(key, _)| &key.key_id).collect::<Vec<_>>(), [&keys[winner].key_id]);
}

pub async fn create_first_api_key_does_nothing_when_there_was_ever_a_key(t: TestStore) {
    let first = key(&t);
    t.store.create_api_key(first.clone()).await.unwrap();
    assert!(!t.store.create_first_api_key(key(&t)).await.unwrap());
    t.store.revoke_api_key(&first.key_id, t.ctx.now()).await.unwrap();
    assert!(!t.store.create_first_api_key(key(&t)).await.unwrap());
    assert_eq!(t.store.list_api_keys().await.unwrap().len(), 1);
}
