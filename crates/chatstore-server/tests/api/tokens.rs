//! User tokens: which are believed, for whom, and how every other one is refused.

mod signer;

use std::time::Duration;

use chatstore_core::api_keys::KeyScopes;
use chatstore_core::ids::ProjectId;
use chatstore_core::projects::{Project, ProjectPatch, TokenAlgorithm, TokenPublicKey, TokenSecret, TokenSettings};
use chatstore_core::rates::Rates;
use chatstore_server::access::AccessSettings;
use chatstore_server::auth::{NewToken, mint};
use chatstore_server::config::Secret;
use serde_json::{Value, json};

use crate::app::{TestApp, access, api_tests};
use crate::client::{Client, Reply};
use signer::{RSA_TEST_PUBLIC_KEY, Signer, encode};

api_tests! {
    a_token_of_each_algorithm_is_believed
    a_token_may_be_of_many_forms
    a_token_that_is_forged_or_malformed_is_a_401
    a_token_is_refused_when_its_time_is_over
    a_token_whose_time_is_over_is_no_guess
    a_token_is_believed_by_the_project_it_names_alone
    a_secret_of_a_project_is_believed_until_it_expires
    a_key_is_believed_at_once_and_no_more_when_it_is_taken_away
    without_a_secret_no_shared_one_is_believed
    a_project_may_demand_its_own_audience_and_issuer
    a_kid_names_the_only_key_that_counts
    a_token_speaks_for_its_user_alone
    a_token_may_do_what_its_scope_says_and_never_rules
    a_token_for_sessions_sees_these_alone
    a_minted_token_is_believed
}

const SESSIONS: &str = "/api/v1/sessions";
const SECRET_KEY: &str = "secret-key-of-the-installation-canary";

/// An application that believes `SECRET_KEY` and a key of each algorithm.
struct World {
    app: TestApp,
    shared: Signer,
    ed: Signer,
    es: Signer,
    rs: Signer,
}

fn with_secret() -> AccessSettings {
    AccessSettings { secret_key: Some(Secret::new(SECRET_KEY)), ..access() }
}

fn public(key_id: Option<&str>, signer: &Signer, text: String) -> TokenPublicKey {
    let algorithm = match signer.algorithm() {
        "EdDSA" => TokenAlgorithm::EdDSA,
        "ES256" => TokenAlgorithm::ES256,
        _ => TokenAlgorithm::RS256,
    };
    TokenPublicKey { key_id: key_id.map(str::to_owned), algorithm, public_key: text }
}

async fn believe(app: &TestApp, project_id: ProjectId, tokens: TokenSettings) {
    let patch = ProjectPatch { tokens: Some(tokens), ..ProjectPatch::default() };
    app.store.update_project(project_id, patch, app.ctx.now()).await.unwrap();
}

impl World {
    async fn new(app: TestApp) -> Self {
        let app = app.with_access(with_secret()).await;
        let (ed, es, rs) = (Signer::ed_dsa(), Signer::es256(), Signer::rs256());
        let public_keys = vec![
            public(Some("ed"), &ed, ed.pem()),
            public(Some("es"), &es, es.jwk()),
            public(Some("rs"), &rs, rs.pem()),
        ];
        believe(&app, ProjectId::DEFAULT, TokenSettings { public_keys, ..TokenSettings::default() }).await;
        Self { app, shared: Signer::hs256(SECRET_KEY), ed, es, rs }
    }

    /// Seconds since the epoch.
    fn now(&self) -> i64 {
        self.app.ctx.now().as_micros() / 1_000_000
    }

    /// The claims of a token of alice.
    fn claims(&self) -> Value {
        json!({"sub": "alice", "aud": "chatstore", "exp": self.now() + 3_600})
    }

    /// The same with some claims changed.
    fn claims_with(&self, changes: Value) -> Value {
        let mut claims = self.claims();
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    }

    /// A good token with some claims changed.
    fn token(&self, changes: Value) -> String {
        self.shared.token(&self.claims_with(changes))
    }

    fn client(&self, token: &str) -> Client {
        self.app.anon().with("authorization", format!("Bearer {token}"))
    }

    async fn get(&self, token: &str) -> Reply {
        self.client(token).get(SESSIONS).await
    }
}

#[track_caller]
fn refused(what: &str, reply: &Reply) -> String {
    assert_eq!(reply.status, 401, "{what}: {}", reply.text());
    let problem = reply.expect_problem(401, "invalid_token");
    assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"chatstore\", error=\"invalid_token\""), "{what}");
    problem["detail"].as_str().unwrap().to_owned()
}

async fn a_token_of_each_algorithm_is_believed(app: TestApp) {
    let world = World::new(app).await;
    let ed_jwk = Signer::ed_dsa();
    let es_pem = Signer::es256();
    let public_keys = vec![
        public(None, &ed_jwk, ed_jwk.jwk()),
        public(None, &es_pem, es_pem.pem()),
        public(None, &world.rs, world.rs.jwk()),
    ];
    for signer in [&world.shared, &world.ed, &world.es, &world.rs] {
        let token = signer.token(&world.claims());
        assert_eq!(world.get(&token).await.items(), Vec::<Value>::new(), "{}", signer.algorithm());
        world.app.anon().with("x-api-key", &token).get(SESSIONS).await.expect(200);
    }
    believe(&world.app, ProjectId::DEFAULT, TokenSettings { public_keys, ..TokenSettings::default() }).await;
    for signer in [&ed_jwk, &es_pem, &world.rs] {
        world.get(&signer.token(&world.claims())).await.expect(200);
    }
}

async fn a_token_may_be_of_many_forms(app: TestApp) {
    let world = World::new(app).await;
    let now = world.now();
    for changes in [
        json!({"exp": now + 86_400}),
        json!({"exp": now as f64 + 60.75}),
        json!({"nbf": now - 60, "iat": now - 60}),
        // The clocks of two hosts may differ by half a minute.
        json!({"nbf": now + 29}),
        json!({"exp": now - 25}),
        json!({"aud": ["elsewhere", "chatstore"]}),
        json!({"iss": "anybody", "jti": "1", "name": {"any": ["thing"]}, "admin": true}),
        json!({"project_id": ProjectId::DEFAULT.to_string()}),
        json!({"scope": "openid read profile"}),
        json!({"sub": "x".repeat(256)}),
        json!({"sub": "J\u{FC}rgen"}),
        json!({"session_ids": []}),
    ] {
        let reply = world.get(&world.token(changes.clone())).await;
        assert_eq!(reply.status, 200, "{changes}: {}", reply.text());
    }
    for header in [
        json!({"alg": "HS256"}),
        json!({"alg": "HS256", "typ": "at+jwt", "kid": "nobody's"}),
        json!({"alg": "HS256", "jku": "http://127.0.0.1:9/keys", "x5u": "http://127.0.0.1:9/key"}),
    ] {
        world.get(&world.shared.token_with(&header, &world.claims())).await.expect(200);
    }
}

/// Tokens that nobody should believe, each with what is wrong.
fn forged(world: &World) -> Vec<(String, String)> {
    let (claims, now) = (world.claims(), world.now());
    let (shared, ed, es, rs) = (&world.shared, &world.ed, &world.es, &world.rs);
    let (stranger, other_secret) = (Signer::ed_dsa(), Signer::hs256("another secret"));
    let mut forged: Vec<(String, String)> = Vec::new();
    let mut bad = |what: &str, token: String| forged.push((what.to_owned(), token));

    // The algorithm.
    let unsigned = |alg: &str| format!("{}.{}.", encode(json!({"alg": alg}).to_string()), encode(claims.to_string()));
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256"] {
        bad(&format!("`{alg}` and no signature"), unsigned(alg));
    }
    for alg in ["none", "HS384", "HS512", "hs256", "ES256", "EdDSA", "RS256", "PS256", "HS256 "] {
        bad(&format!("HS256 called `{alg}`"), shared.token_with(&json!({"alg": alg}), &claims));
    }
    for alg in ["RS384", "RS512", "PS256", "HS256", "ES256"] {
        bad(&format!("RS256 called `{alg}`"), rs.token_with(&json!({"alg": alg}), &claims));
    }
    for secret in [
        rs.pem(),
        RSA_TEST_PUBLIC_KEY.trim().to_owned(),
        rs.jwk(),
        ed.pem(),
        es.jwk(),
        "chatstore".to_owned(),
        String::new(),
    ] {
        bad("HS256 with a text that everybody knows", Signer::hs256(secret).token(&claims));
    }
    bad("EdDSA called ES256", ed.token_with(&json!({"alg": "ES256"}), &claims));
    bad("ES256 called EdDSA", es.token_with(&json!({"alg": "EdDSA"}), &claims));

    // The key.
    bad("another secret", other_secret.token(&claims));
    bad("another key", stranger.token(&claims));
    for header in [json!({"kid": "es"}), json!({"kid": "rs"}), json!({"kid": "nobody's"})] {
        let header = json!({"alg": "EdDSA", "kid": header["kid"]});
        bad("the `kid` of another key", ed.token_with(&header, &claims));
    }
    let jwk: Value = serde_json::from_str(&stranger.jwk()).unwrap();
    bad("a key in the header", stranger.token_with(&json!({"alg": "EdDSA", "jwk": jwk}), &claims));
    for name in ["jku", "x5u"] {
        let header = json!({"alg": "EdDSA", name: "https://example.org/keys.json"});
        bad("a key behind a URL", stranger.token_with(&header, &claims));
    }

    // The header.
    bad("`crit`", shared.token_with(&json!({"alg": "HS256", "crit": ["exp"]}), &claims));
    bad("an empty `crit`", shared.token_with(&json!({"alg": "HS256", "crit": []}), &claims));
    bad("compressed", shared.token_with(&json!({"alg": "HS256", "zip": "DEF"}), &claims));
    bad("no `alg`", shared.token_with(&json!({"typ": "JWT"}), &claims));
    bad("a number as `alg`", shared.token_with(&json!({"alg": 256}), &claims));
    bad("a number as `kid`", shared.token_with(&json!({"alg": "HS256", "kid": 1}), &claims));
    let twice = r#"{"alg":"none","alg":"HS256"}"#;
    for header in [twice, "[]", "\"HS256\"", "{", "", "null"] {
        bad("a header that is none", shared.token_of(header, &claims.to_string()));
    }

    // The claims.
    for name in ["sub", "exp", "aud"] {
        let mut without = claims.clone();
        without.as_object_mut().unwrap().remove(name);
        bad(&format!("no `{name}`"), shared.token(&without));
    }
    let many = vec![world.app.ctx.new_session_id(world.app.ctx.now(), 1.into()).to_string(); 101];
    for changes in [
        json!({"sub": ""}),
        json!({"sub": "x".repeat(257)}),
        json!({"sub": 7}),
        json!({"sub": null}),
        json!({"sub": "a\u{0}b"}),
        json!({"sub": ["alice"]}),
        json!({"exp": (now + 3_600).to_string()}),
        json!({"exp": null}),
        json!({"exp": true}),
        json!({"exp": 1e300}),
        json!({"exp": now + 86_400 + 60}),
        json!({"nbf": now + 40}),
        json!({"nbf": now.to_string()}),
        json!({"nbf": null}),
        json!({"iat": "today"}),
        json!({"iat": now + 40}),
        json!({"aud": "elsewhere"}),
        json!({"aud": ""}),
        json!({"aud": "Chatstore"}),
        json!({"aud": []}),
        json!({"aud": ["elsewhere"]}),
        json!({"aud": ["chatstore", 1]}),
        json!({"aud": null}),
        json!({"aud": {"chatstore": true}}),
        json!({"iss": 1}),
        json!({"iss": null}),
        json!({"project_id": "default"}),
        json!({"project_id": null}),
        json!({"project_id": 1}),
        json!({"project_id": "019b0f3e-5c00-7a41-9d52-3f6a8c1e2b47"}),
        json!({"scope": ["read"]}),
        json!({"scope": null}),
        json!({"session_ids": "all"}),
        json!({"session_ids": null}),
        json!({"session_ids": [1]}),
        json!({"session_ids": ["not-an-id"]}),
        json!({"session_ids": many}),
    ] {
        bad(&format!("{changes:.80}"), world.token(changes));
    }
    for (name, value) in [("sub", "\"bob\""), ("exp", "1"), ("aud", "\"elsewhere\""), ("project_id", "\"x\"")] {
        let text = world.claims_with(json!({"project_id": ProjectId::DEFAULT.to_string()})).to_string();
        let twice = text.replacen('{', &format!("{{\"{name}\":{value},"), 1);
        bad(&format!("`{name}` twice"), shared.token_of(r#"{"alg":"HS256"}"#, &twice));
    }
    for payload in ["", "{", "[]", "\"alice\"", "null", "{}", "{} {}"] {
        bad("no claims", shared.token_of(r#"{"alg":"HS256"}"#, payload));
    }

    // The signature.
    let good = shared.token(&claims);
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    let bobs = encode(world.claims_with(json!({"sub": "bob"})).to_string());
    bad("other claims", format!("{header}.{bobs}.{signature}"));
    bad("no signature", format!("{signed}."));
    bad("half a signature", format!("{signed}.{}", &signature[..20]));
    bad("a signature and more", format!("{good}AA"));
    bad("padding", format!("{good}="));
    bad("a header with padding", format!("{header}=.{payload}.{signature}"));
    bad(
        "a signature that is no base64url",
        format!("{signed}.{}", signature.replace(|c: char| c.is_ascii_digit(), "+")),
    );
    // 256 bits leave two of the last character unused: only one way to write them is right.
    let last = signature.chars().next_back().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = alphabet.chars().nth(alphabet.find(last).unwrap() + 1).unwrap();
    bad("a signature written in another way", format!("{}{next}", &good[..good.len() - 1]));
    for (signer, bytes) in [(es, 64), (ed, 64), (rs, 256), (shared, 32)] {
        let token = signer.token(&claims);
        let signed = token.rsplit_once('.').unwrap().0;
        bad(&format!("{} of zeros", signer.algorithm()), format!("{signed}.{}", encode(vec![0; bytes])));
        let flipped = signer.sign(format!("{signed}x").as_bytes());
        bad(&format!("{} of something else", signer.algorithm()), format!("{signed}.{}", encode(flipped)));
    }

    bad("too long", world.token(json!({"name": "x".repeat(6_200)})));
    forged
}

async fn a_token_that_is_forged_or_malformed_is_a_401(app: TestApp) {
    let world = World::new(app).await;
    let forged = forged(&world);
    assert!(forged.len() >= 100, "{}", forged.len());
    let mut details: Vec<String> = Vec::new();
    for (what, token) in &forged {
        let reply = world.get(token).await;
        details.push(refused(what, &reply));
        let said = reply.anonymous();
        let mut canaries = token.split('.').filter(|part| part.len() > 8);
        assert!(!canaries.any(|part| said.contains(part)), "{what}: {said}");
        assert!(!said.contains("alice") && !said.contains("canary") && !said.contains(SECRET_KEY), "{what}: {said}");
        refused(what, &world.app.anon().with("x-api-key", token).get(SESSIONS).await);
    }
    details.dedup();
    assert_eq!(details.len(), 1, "the answer tells what is wrong: {details:?}");
    // Two dots make a token; with other counts it is no key.
    for text in ["a.b", "a.b.c.d", "a.b.c.d.e"] {
        world.get(text).await.expect_problem(401, "invalid_api_key");
    }
    refused("dots alone", &world.get("..").await);
}

async fn a_token_is_refused_when_its_time_is_over(app: TestApp) {
    let world = World::new(app).await;
    let token = world.token(json!({"exp": world.now() + 60}));
    world.get(&token).await.expect(200);
    world.app.ctx.advance(Duration::from_secs(85));
    world.get(&token).await.expect(200);
    world.app.ctx.advance(Duration::from_secs(10));
    assert_eq!(refused("expired", &world.get(&token).await), "The user token has expired.");
    // Only one that was good is told so.
    let forged = Signer::hs256("another").token(&world.claims_with(json!({"exp": world.now() - 60})));
    assert_ne!(refused("forged", &world.get(&forged).await), "The user token has expired.");
    let early = world.token(json!({"nbf": world.now() + 60}));
    refused("early", &world.get(&early).await);
    world.app.ctx.advance(Duration::from_secs(35));
    world.get(&early).await.expect(200);
}

async fn a_token_whose_time_is_over_is_no_guess(app: TestApp) {
    let mut world = World::new(app).await;
    let failed_auth_rates = Rates::parse("1/hour").unwrap();
    world.app = world.app.with_access(AccessSettings { failed_auth_rates, ..with_secret() }).await;
    let expired = world.token(json!({"exp": world.now() - 60}));
    let forged = Signer::hs256("another").token(&world.claims_with(json!({"exp": world.now() - 60})));
    for _ in 0..5 {
        refused("expired", &world.get(&expired).await);
    }
    refused("forged", &world.get(&forged).await);
    world.get(&forged).await.expect_problem(429, "rate_limited");
    refused("expired", &world.get(&expired).await);
}

async fn a_token_is_believed_by_the_project_it_names_alone(app: TestApp) {
    let world = World::new(app).await;
    let (other, now) = (world.app.other, world.app.ctx.now());
    let secret = TokenSecret::generate(&world.app.ctx);
    world.app.store.rotate_token_secret(other, Some(secret), now, now, None).await.unwrap();
    let others = Signer::hs256(secret.expose());
    let there = json!({"project_id": other.to_string()});
    // The secret of the installation signs for every project; a project's keys sign for it alone.
    for signer in [&others, &world.shared] {
        world.get(&signer.token(&world.claims_with(there.clone()))).await.expect(200);
    }
    for signer in [&world.ed, &world.es, &world.rs] {
        refused("for another project", &world.get(&signer.token(&world.claims_with(there.clone()))).await);
    }
    refused("for the default project", &world.get(&others.token(&world.claims())).await);
    let client = world.client(&others.token(&world.claims_with(there)));
    let id = client.new_session("theirs").await;
    assert_eq!(world.app.stranger().get(SESSIONS).await.column("session_id"), [id.as_str()]);
    assert_eq!(world.app.admin().get(SESSIONS).await.items(), Vec::<Value>::new());
    world.app.store.delete_project(other, world.app.ctx.now()).await.unwrap();
    world.app.ctx.advance(Duration::from_secs(1));
    refused("a deleted project", &client.get(SESSIONS).await);
}

async fn a_secret_of_a_project_is_believed_until_it_expires(app: TestApp) {
    let world = World::new(app).await;
    let (ctx, store) = (&world.app.ctx, &world.app.store);
    let secrets = [(); 2].map(|()| TokenSecret::generate(ctx));
    let rotate = async |secret: Option<TokenSecret>, grace_us: i64| {
        let now = ctx.now();
        store.rotate_token_secret(ProjectId::DEFAULT, secret, now.plus_micros(grace_us), now, None).await.unwrap();
    };
    let token = |secret: &TokenSecret| Signer::hs256(secret.expose()).token(&world.claims());
    rotate(Some(secrets[0]), 0).await;
    world.get(&token(&secrets[0])).await.expect(200);
    rotate(Some(secrets[1]), 10_000_000).await;
    world.get(&token(&secrets[1])).await.expect(200);
    world.get(&token(&secrets[0])).await.expect(200);
    ctx.advance(Duration::from_secs(10));
    refused("past its grace", &world.get(&token(&secrets[0])).await);
    world.get(&token(&secrets[1])).await.expect(200);
    rotate(None, 10_000_000).await;
    ctx.advance(Duration::from_secs(1));
    refused("taken away", &world.get(&token(&secrets[1])).await);
    // Its bytes are not the secret: its text is.
    rotate(Some(secrets[0]), 0).await;
    refused("signed with the bytes", &world.get(&Signer::hs256(secrets[0].bytes).token(&world.claims())).await);
}

async fn a_key_is_believed_at_once_and_no_more_when_it_is_taken_away(app: TestApp) {
    let world = World::new(app).await;
    let added = Signer::es256();
    let token = added.token(&world.claims());
    refused("not yet", &world.get(&token).await);
    // The project is remembered without the key; what is refused is looked up anew.
    let public_keys = vec![public(None, &added, added.jwk())];
    believe(&world.app, ProjectId::DEFAULT, TokenSettings { public_keys, ..TokenSettings::default() }).await;
    world.get(&token).await.expect(200);
    believe(&world.app, ProjectId::DEFAULT, TokenSettings::default()).await;
    world.app.ctx.advance(Duration::from_secs(1));
    refused("taken away", &world.get(&token).await);
}

async fn without_a_secret_no_shared_one_is_believed(app: TestApp) {
    let exp = app.ctx.now().as_micros() / 1_000_000 + 60;
    let claims = json!({"sub": "alice", "aud": "chatstore", "exp": exp});
    for secret in ["", SECRET_KEY, "null", "None"] {
        let token = Signer::hs256(secret).token(&claims);
        refused(secret, &app.anon().with("x-api-key", token).get(SESSIONS).await);
    }
}

async fn a_project_may_demand_its_own_audience_and_issuer(app: TestApp) {
    let world = World::new(app).await;
    let (audience, issuer) = (Some("https://chat.example".to_owned()), Some("https://id.example".to_owned()));
    let tokens = TokenSettings { audience, issuer, ..TokenSettings::default() };
    believe(&world.app, ProjectId::DEFAULT, tokens).await;
    let (aud, iss) = ("https://chat.example", "https://id.example");
    world.get(&world.token(json!({"aud": aud, "iss": iss}))).await.expect(200);
    world.get(&world.token(json!({"aud": ["x", aud], "iss": iss}))).await.expect(200);
    for changes in [
        json!({"iss": iss}),
        json!({"aud": "chatstore", "iss": iss}),
        json!({"aud": aud}),
        json!({"aud": aud, "iss": "https://id.example/"}),
        json!({"aud": iss, "iss": aud}),
    ] {
        refused(&changes.to_string(), &world.get(&world.token(changes)).await);
    }
}

async fn a_kid_names_the_only_key_that_counts(app: TestApp) {
    let world = World::new(app).await;
    let (one, two, nameless) = (Signer::ed_dsa(), Signer::ed_dsa(), Signer::ed_dsa());
    let public_keys = vec![
        public(Some("one"), &one, one.pem()),
        public(Some("two"), &two, two.jwk()),
        public(None, &nameless, nameless.pem()),
    ];
    believe(&world.app, ProjectId::DEFAULT, TokenSettings { public_keys, ..TokenSettings::default() }).await;
    for (kid, believed) in [
        (Some("one"), [true, false, false]),
        (Some("two"), [false, true, false]),
        (Some("three"), [false, false, true]),
        (None, [true, true, true]),
    ] {
        for (signer, believed) in [&one, &two, &nameless].into_iter().zip(believed) {
            let header = kid.map_or(json!({"alg": "EdDSA"}), |kid| json!({"alg": "EdDSA", "kid": kid}));
            let reply = world.get(&signer.token_with(&header, &world.claims())).await;
            assert_eq!(reply.status == 200, believed, "{kid:?}: {}", reply.text());
        }
    }
}

async fn a_token_speaks_for_its_user_alone(app: TestApp) {
    let world = World::new(app).await;
    let (alice, bob) = (world.client(&world.token(json!({}))), world.client(&world.token(json!({"sub": "bob"}))));
    let session = alice.post(SESSIONS, json!({"session_name": "n"})).await.expect(201);
    assert_eq!(session["user_id"], "alice");
    let path = format!("{SESSIONS}/{}", session["session_id"].as_str().unwrap());
    alice.get(&path).await.expect(200);
    world.app.alice().get(&path).await.expect(200);
    bob.get(&path).await.expect_problem(404, "not_found");
    bob.delete(&path).await.expect_problem(404, "not_found");
    assert_eq!(bob.get(SESSIONS).await.text(), "[]");
    alice.with("x-user-id", "alice").get(&path).await.expect(200);
    alice.with("x-user-id", "bob").get(&path).await.expect_problem(403, "user_mismatch");
    alice.post(SESSIONS, json!({"session_name": "n", "user_id": "bob"})).await.expect_problem(403, "user_mismatch");
    alice.get(&format!("{SESSIONS}?user_id=bob")).await.expect_problem(403, "user_mismatch");
}

async fn a_token_may_do_what_its_scope_says_and_never_rules(app: TestApp) {
    let world = World::new(app).await;
    let client = |scope: &str| world.client(&world.token(json!({"scope": scope})));
    client("read").get(SESSIONS).await.expect(200);
    client("read").post(SESSIONS, json!({"session_name": "n"})).await.expect_problem(403, "insufficient_scope");
    client("write").get(SESSIONS).await.expect_problem(403, "insufficient_scope");
    client("read").get("/api/v1/search?q=x").await.expect_problem(403, "insufficient_scope");
    for scope in ["", "READ", "openid", "read,write", "admin", "operator"] {
        client(scope).get(SESSIONS).await.expect_problem(403, "insufficient_scope");
    }
    let every = "read write delete search admin operator";
    for client in [client(every), world.client(&world.token(json!({})))] {
        client.get("/api/v1/search?q=x").await.expect(200);
        for path in ["/api/v1/admin/embeddings", "/api/v1/admin/embeddings/"] {
            client.get(path).await.expect_problem(403, "insufficient_scope");
        }
        client.post("/api/v1/admin/import", json!([])).await.expect_problem(403, "insufficient_scope");
    }
}

async fn a_token_for_sessions_sees_these_alone(app: TestApp) {
    let world = World::new(app).await;
    let alice = world.app.alice();
    let (one, two) = (alice.new_session("one").await, alice.new_session("two").await);
    let bobs = world.app.bob().new_session("bob's").await;
    let hidden = alice.new_message(&two, "hidden").await["message_id"].as_str().unwrap().to_owned();
    // A session of somebody else does not become visible because a token names it.
    let narrow = world.client(&world.token(json!({"session_ids": [one, bobs]})));
    narrow.get(&format!("{SESSIONS}/{one}")).await.expect(200);
    let shown = narrow.new_message(&one, "shown").await["message_id"].as_str().unwrap().to_owned();
    narrow.get(&format!("/api/v1/messages/{shown}")).await.expect(200);
    for path in [
        format!("{SESSIONS}/{two}"),
        format!("{SESSIONS}/{bobs}"),
        format!("{SESSIONS}/{two}/messages"),
        format!("{SESSIONS}/{two}/search?q=hidden"),
        format!("/api/v1/messages/{hidden}"),
    ] {
        narrow.get(&path).await.expect_problem(404, "not_found");
    }
    for path in [format!("{SESSIONS}/{two}"), format!("/api/v1/messages/{hidden}")] {
        narrow.delete(&path).await.expect_problem(404, "not_found");
        narrow.patch(&path, json!({})).await.expect_problem(404, "not_found");
    }
    let reply = narrow.post(&format!("{SESSIONS}/{two}/messages"), json!({"content": "x"})).await;
    reply.expect_problem(404, "not_found");
    assert_eq!(narrow.post(SESSIONS, json!({"session_name": "new"})).await.status, 403);
    // With no session named, there is none.
    let none = world.client(&world.token(json!({"session_ids": []})));
    none.get(&format!("{SESSIONS}/{one}")).await.expect_problem(404, "not_found");
    alice.get(&format!("{SESSIONS}/{two}")).await.expect(200);
}

async fn a_minted_token_is_believed(app: TestApp) {
    let world = World::new(app).await;
    let (ctx, store) = (&world.app.ctx, &world.app.store);
    let new = NewToken {
        user_id: "alice".to_owned(),
        scopes: KeyScopes::all(),
        session_ids: None,
        expires_at: ctx.now().plus_micros(60_000_000),
    };
    let secret_key = Secret::new(SECRET_KEY);
    let project = async || -> Project { store.get_project(ProjectId::DEFAULT).await.unwrap().unwrap() };
    let token = mint(&project().await, Some(&secret_key), &new, ctx.now()).unwrap();
    world.get(&token).await.expect(200);
    world.client(&token).get("/api/v1/admin/embeddings").await.expect_problem(403, "insufficient_scope");
    assert_eq!(mint(&project().await, None, &new, ctx.now()), None);
    // A project that has a secret signs with it, and says what it demands.
    let now = ctx.now();
    let secret = TokenSecret::generate(ctx);
    store.rotate_token_secret(ProjectId::DEFAULT, Some(secret), now, now, None).await.unwrap();
    let (audience, issuer) = (Some("there".to_owned()), Some("here".to_owned()));
    believe(&world.app, ProjectId::DEFAULT, TokenSettings { audience, issuer, ..TokenSettings::default() }).await;
    let token = mint(&project().await, None, &new, ctx.now()).unwrap();
    world.get(&token).await.expect(200);
    assert_eq!(world.client(&token).get(SESSIONS).await.text(), "[]");
    let session = world.app.alice().new_session("one").await;
    let session_ids = Some(vec![chatstore_core::ids::SessionId::parse(&session).unwrap()]);
    let scopes = KeyScopes::parse("read").unwrap();
    let narrow = NewToken { scopes, session_ids, ..new };
    let client = world.client(&mint(&project().await, Some(&secret_key), &narrow, ctx.now()).unwrap());
    client.get(&format!("{SESSIONS}/{session}")).await.expect(200);
    client.delete(&format!("{SESSIONS}/{session}")).await.expect_problem(403, "insufficient_scope");
}
