//! Whose address counts: the peer's, or what trusted proxies say.

use chatstore_core::api_keys::{ApiKey, KeyScopes, KeySettings, PresentedKey};
use chatstore_core::ids::ProjectId;
use chatstore_core::rates::{ClassRates, Rates};
use chatstore_server::access::AccessSettings;

use crate::app::{TestApp, access, api_tests};
use crate::rate_limits::at;

api_tests! {
    each_address_has_a_budget_of_its_own
    addresses_of_one_network_of_ipv6_share_a_budget
    a_forged_header_changes_nothing
    proxies_that_disagree_open_no_key
}

async fn limited(app: &TestApp, trusted_proxies: usize) -> TestApp {
    let rates = ClassRates { reads: Rates::parse("1/day"), ..ClassRates::default() };
    app.with_access(AccessSettings { rates, trusted_proxies, ..access() }).await
}

/// The statuses of reads of the front page, each from one address.
async fn statuses(app: &TestApp, addresses: &[&str]) -> Vec<u16> {
    let mut statuses = Vec::new();
    for address in addresses {
        statuses.push(at(app, address, "no-key").get("/").await.status);
    }
    statuses
}

async fn each_address_has_a_budget_of_its_own(app: TestApp) {
    let app = limited(&app, 0).await;
    let addresses = ["203.0.113.1", "203.0.113.2", "203.0.113.1", "::ffff:203.0.113.2", "::ffff:203.0.113.3"];
    assert_eq!(statuses(&app, &addresses).await, [200, 200, 429, 429, 200]);
}

async fn addresses_of_one_network_of_ipv6_share_a_budget(app: TestApp) {
    let app = limited(&app, 0).await;
    let addresses = ["2001:db8:0:1::1", "2001:db8:0:1:ffff::9", "2001:db8:0:2::1", "2001:db8:0:1::1"];
    assert_eq!(statuses(&app, &addresses).await, [200, 429, 200, 429]);
}

async fn a_forged_header_changes_nothing(app: TestApp) {
    let direct = limited(&app, 0).await;
    let mut statuses = Vec::new();
    for n in 0..3 {
        let client = at(&direct, "203.0.113.1", "no-key").with("x-forwarded-for", format!("6.6.6.{n}"));
        statuses.push(client.get("/").await.status);
    }
    assert_eq!(statuses, [200, 429, 429]);
    let proxied = limited(&app, 1).await;
    let mut statuses = Vec::new();
    for (n, client) in ["203.0.113.1", "203.0.113.1", "203.0.113.2"].into_iter().enumerate() {
        let proxy = at(&proxied, "10.0.0.1", "no-key");
        statuses.push(proxy.with("x-forwarded-for", format!("6.6.6.{n}, {client}")).get("/").await.status);
    }
    assert_eq!(statuses, [200, 429, 200]);
}

async fn proxies_that_disagree_open_no_key(app: TestApp) {
    let presented = PresentedKey::generate(&app.ctx);
    let scopes = KeyScopes::parse("read").unwrap();
    let key = ApiKey::new(&presented, ProjectId::DEFAULT, "a key", scopes, app.ctx.now());
    let settings = KeySettings { allowed_addresses: vec!["10.0.0.0/8".to_owned()], ..KeySettings::default() };
    app.store.create_api_key(ApiKey { settings, ..key }, None).await.unwrap();
    let app = app.with_access(AccessSettings { trusted_proxies: 1, ..access() }).await;
    let proxy = at(&app, "10.0.0.1", presented.expose());
    proxy.with("x-forwarded-for", "10.0.0.7").get("/api/v1/sessions").await.expect(200);
    let outside = proxy.with("x-forwarded-for", "203.0.113.1");
    outside.get("/api/v1/sessions").await.expect_problem(403, "address_not_allowed");
    let forged = outside.with("forwarded", "for=10.0.0.7");
    forged.get("/api/v1/sessions").await.expect_problem(403, "address_not_allowed");
}
