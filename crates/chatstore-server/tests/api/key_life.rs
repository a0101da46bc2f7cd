//! The life of a key: what is believed of it and for how long, rotation, expiry, revocation, and when it was last used.

use std::sync::atomic::Ordering;
use std::time::Duration;

use chatstore_core::api_keys::{ApiKey, ApiKeyPatch, Authority, KeyScopes, PresentedKey};
use chatstore_core::clock::Timestamp;
use chatstore_core::ids::ProjectId;
use chatstore_core::store::StoreError;
use chatstore_server::app::App;
use chatstore_server::auth::last_used;
use chatstore_server::router;
use tokio_util::sync::CancellationToken;

use crate::app::{TestApp, access, api_tests, limits};
use crate::client::Client;
use crate::faulty::{Fault, FaultyStore};

api_tests! {
    a_key_is_looked_up_once_in_half_a_second
    a_secret_that_is_wrong_is_looked_up_each_time
    a_rotated_key_is_valid_with_both_secrets_until_the_grace_ends
    a_rotation_without_grace_ends_the_old_secret_within_a_second
    a_key_expires_to_the_moment
    a_key_revoked_elsewhere_is_refused_within_a_second
    a_key_changed_elsewhere_may_do_what_it_may_now_within_a_second
    a_key_of_a_deleted_project_is_refused_within_a_second
    a_key_made_elsewhere_works_at_once
    the_last_use_of_a_key_is_noted_once_a_minute_and_beside_the_requests
    a_last_use_that_cannot_be_stored_is_stored_later
    the_last_use_is_stored_when_the_application_stops
}

const SESSIONS: &str = "/api/v1/sessions";

fn key_id(key: &str) -> String {
    PresentedKey::parse(key).unwrap().key_id().to_owned()
}

async fn status(app: &TestApp, key: &str) -> u16 {
    app.client(key).get(SESSIONS).await.status
}

/// Gives a key a new secret, as another server does.
async fn rotate(app: &TestApp, key: &str, grace: Duration) -> String {
    let rotated = PresentedKey::rotate(&app.ctx, &key_id(key)).unwrap();
    let now = app.ctx.now();
    let until = now.plus_micros(i64::try_from(grace.as_micros()).unwrap());
    app.store.rotate_api_key(&Authority::host(), &key_id(key), rotated.digest(), until, now, None).await.unwrap();
    rotated.expose().to_owned()
}

async fn a_key_is_looked_up_once_in_half_a_second(app: TestApp) {
    let (store, count) = FaultyStore::count(app.store.clone(), "get_api_key");
    let (store, projects) = FaultyStore::count(store, "get_project");
    let app = app.rebuild(|_| store, limits()).await;
    for round in 1..=3 {
        for _ in 0..10 {
            app.alice().get(SESSIONS).await.expect(200);
            app.admin().get(SESSIONS).await.expect(200);
        }
        assert_eq!((count.load(Ordering::Relaxed), projects.load(Ordering::Relaxed)), (round, round));
        app.ctx.advance(Duration::from_millis(500));
    }
}

async fn a_secret_that_is_wrong_is_looked_up_each_time(app: TestApp) {
    let (store, count) = FaultyStore::count(app.store.clone(), "get_api_key");
    let app = app.rebuild(|_| store, limits()).await;
    let wrong = PresentedKey::rotate(&app.ctx, &key_id(app.alice_key())).unwrap();
    let unknown = PresentedKey::generate(&app.ctx);
    app.alice().get(SESSIONS).await.expect(200);
    let mut lookups = 1;
    for key in [wrong.expose(), unknown.expose(), app.revoked_key(), app.expired_key()] {
        for _ in 0..3 {
            app.client(key).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
            lookups += 1;
            assert_eq!(count.load(Ordering::Relaxed), lookups, "each costs one lookup");
        }
    }
}

async fn a_rotated_key_is_valid_with_both_secrets_until_the_grace_ends(app: TestApp) {
    let old = app.key(ProjectId::DEFAULT, "read", None).await;
    assert_eq!(status(&app, &old).await, 200);
    let new = rotate(&app, &old, Duration::from_secs(3_600)).await;
    assert_eq!(key_id(&new), key_id(&old));
    // The key is remembered with its old secret alone; that refuses nobody.
    assert_eq!((status(&app, &new).await, status(&app, &old).await), (200, 200));
    app.ctx.advance(Duration::from_secs(3_590));
    assert_eq!((status(&app, &new).await, status(&app, &old).await), (200, 200));
    app.ctx.advance(Duration::from_secs(10));
    app.client(&old).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    assert_eq!(status(&app, &new).await, 200);
    // A second rotation leaves two secrets, not three.
    let newer = rotate(&app, &new, Duration::from_secs(3_600)).await;
    let newest = rotate(&app, &newer, Duration::from_secs(3_600)).await;
    app.ctx.advance(Duration::from_secs(1));
    let statuses = [status(&app, &new).await, status(&app, &newer).await, status(&app, &newest).await];
    assert_eq!(statuses, [401, 200, 200]);
}

async fn a_rotation_without_grace_ends_the_old_secret_within_a_second(app: TestApp) {
    let old = app.key(ProjectId::DEFAULT, "read", None).await;
    assert_eq!(status(&app, &old).await, 200);
    let new = rotate(&app, &old, Duration::ZERO).await;
    assert_eq!(status(&app, &new).await, 200);
    app.ctx.advance(Duration::from_secs(1));
    assert_eq!((status(&app, &old).await, status(&app, &new).await), (401, 200));
}

async fn a_key_expires_to_the_moment(app: TestApp) {
    let presented = PresentedKey::generate(&app.ctx);
    let now = app.ctx.now();
    let key = ApiKey::new(&presented, ProjectId::DEFAULT, "short", KeyScopes::all(), now);
    app.store.create_api_key(ApiKey { expires_at: Some(now.plus_micros(60_000_000)), ..key }, None).await.unwrap();
    app.ctx.advance(Duration::from_millis(59_900));
    assert_eq!(status(&app, presented.expose()).await, 200);
    // It is remembered, and refused all the same.
    app.ctx.advance(Duration::from_millis(100));
    app.client(presented.expose()).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
}

async fn a_key_revoked_elsewhere_is_refused_within_a_second(app: TestApp) {
    let key = app.key(ProjectId::DEFAULT, "read", None).await;
    assert_eq!(status(&app, &key).await, 200);
    app.store.revoke_api_key(&Authority::host(), &key_id(&key), app.ctx.now()).await.unwrap();
    app.ctx.advance(Duration::from_millis(500));
    app.client(&key).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    app.ctx.advance(Duration::from_secs(3_600));
    app.client(&key).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
}

async fn a_key_changed_elsewhere_may_do_what_it_may_now_within_a_second(app: TestApp) {
    let key = app.key(ProjectId::DEFAULT, "read,search", None).await;
    app.client(&key).get(SESSIONS).await.expect(200);
    let patch = ApiKeyPatch { scopes: Some(KeyScopes::parse("search").unwrap()), ..ApiKeyPatch::default() };
    app.store.update_api_key(&Authority::host(), &key_id(&key), patch, app.ctx.now()).await.unwrap();
    app.ctx.advance(Duration::from_millis(500));
    app.client(&key).get(SESSIONS).await.expect_problem(403, "insufficient_scope");
    app.client(&key).get("/api/v1/search?q=x").await.expect(200);
}

async fn a_key_of_a_deleted_project_is_refused_within_a_second(app: TestApp) {
    app.stranger().get(SESSIONS).await.expect(200);
    app.store.delete_project(app.other, app.ctx.now()).await.unwrap();
    app.ctx.advance(Duration::from_millis(500));
    app.stranger().get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    app.alice().get(SESSIONS).await.expect(200);
}

async fn a_key_made_elsewhere_works_at_once(app: TestApp) {
    let presented = PresentedKey::generate(&app.ctx);
    app.client(presented.expose()).get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    let key = ApiKey::new(&presented, ProjectId::DEFAULT, "new", KeyScopes::all(), app.ctx.now());
    app.store.create_api_key(key, None).await.unwrap();
    app.client(presented.expose()).get(SESSIONS).await.expect(200);
}

/// The inside of an application on the same store, and a client of it.
async fn inside(app: &TestApp, key: &str) -> (App, Client) {
    let shutdown = CancellationToken::new();
    let state = App::new(app.store.clone(), app.ctx.clone(), access(), limits(), shutdown).await.unwrap();
    (state.clone(), Client::new(router::router(state)).with("x-api-key", key))
}

async fn last_used_at(app: &TestApp, key: &str) -> Option<Timestamp> {
    app.store.get_api_key(&key_id(key)).await.unwrap().unwrap().0.last_used_at
}

async fn the_last_use_of_a_key_is_noted_once_a_minute_and_beside_the_requests(app: TestApp) {
    let (store, count) = FaultyStore::count(app.store.clone(), "note_api_key_uses");
    let app = app.rebuild(|_| store, limits()).await;
    let key = app.alice_key().to_owned();
    let (state, client) = inside(&app, &key).await;
    let before = app.ctx.now();
    let flush = async || state.last_uses.flush(app.store.as_ref(), app.ctx.now()).await.unwrap();
    for _ in 0..3 {
        client.get(SESSIONS).await.expect(200);
    }
    assert_eq!((count.load(Ordering::Relaxed), last_used_at(&app, &key).await), (0, None));
    flush().await;
    let first = last_used_at(&app, &key).await.unwrap();
    assert!(before < first && first < app.ctx.now());
    for seconds in [1, 28, 30] {
        app.ctx.advance(Duration::from_secs(seconds));
        client.get(SESSIONS).await.expect(200);
        flush().await;
        assert_eq!((count.load(Ordering::Relaxed), last_used_at(&app, &key).await), (1, Some(first)));
    }
    app.ctx.advance(Duration::from_secs(1));
    client.get(SESSIONS).await.expect(200);
    client.get(SESSIONS).await.expect(200);
    flush().await;
    flush().await;
    assert_eq!(count.load(Ordering::Relaxed), 2);
    assert!(last_used_at(&app, &key).await.unwrap() >= first.plus_micros(60_000_000));
    // A refused request is no use, and neither is one of the key in `API_KEY`.
    let (state, client) = inside(&app, app.revoked_key()).await;
    client.get(SESSIONS).await.expect_problem(401, "invalid_api_key");
    app.admin().get(SESSIONS).await.expect(200);
    state.last_uses.flush(app.store.as_ref(), app.ctx.now()).await.unwrap();
    assert_eq!((count.load(Ordering::Relaxed), last_used_at(&app, app.revoked_key()).await), (2, None));
}

async fn a_last_use_that_cannot_be_stored_is_stored_later(app: TestApp) {
    let key = app.alice_key().to_owned();
    let (state, client) = inside(&app, &key).await;
    client.get(SESSIONS).await.expect(200);
    let broken = FaultyStore::wrap(app.store.clone(), "note_api_key_uses", Fault::Error(StoreError::Busy));
    assert_eq!(state.last_uses.flush(broken.as_ref(), app.ctx.now()).await, Err(StoreError::Busy));
    app.ctx.advance(Duration::from_secs(3_600));
    state.last_uses.flush(app.store.as_ref(), app.ctx.now()).await.unwrap();
    assert!(last_used_at(&app, &key).await.is_some());
}

async fn the_last_use_is_stored_when_the_application_stops(app: TestApp) {
    let key = app.alice_key().to_owned();
    let (state, client) = inside(&app, &key).await;
    let task = last_used::start(state.clone(), Duration::from_secs(3_600));
    client.get(SESSIONS).await.expect(200);
    assert_eq!(last_used_at(&app, &key).await, None);
    state.shutdown.cancel();
    task.await.unwrap();
    assert!(last_used_at(&app, &key).await.is_some());
}
