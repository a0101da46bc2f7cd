//! Limits that several servers share: exact over all of them, and what happens when Redis fails under load.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::cell::RefCell;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use chatstore_core::clock::Ctx;
use chatstore_core::ids::ProjectId;
use chatstore_core::page::CursorKey;
use chatstore_core::projects::ProjectSettings;
use chatstore_core::rates::{ClassRates, Rates, RequestClass};
use chatstore_server::access::AccessSettings;
use chatstore_server::client_address::ClientAddress;
use chatstore_server::config::{RateLimitStore, Secret};
use chatstore_server::rate_limit::{Account, Limiter, Standing};
use redis::AsyncConnectionConfig;
use tokio::time::{Instant, interval, sleep, timeout};

const PASSWORD: &str = "canary-of-the-tests";
/// What requests wait for Redis in tests of what it counts: no test machine is that slow.
const PATIENCE: Duration = Duration::from_secs(2);

/// A Redis of the test's own.
struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    async fn start() -> Self {
        // The port is free again when Redis asks for it, unless somebody else is faster.
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        Self::start_at(port).await
    }

    async fn start_at(port: u16) -> Self {
        let program = std::env::var("TEST_REDIS_SERVER").ok().filter(|program| !program.is_empty());
        let program =
            program.expect("TEST_REDIS_SERVER names no redis-server: run this test through `cargo xtask test`");
        let mut command = Command::new(program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
        command.args(["--requirepass", PASSWORD]).stdin(Stdio::null()).stdout(Stdio::null());
        let redis = Self { process: command.spawn().unwrap(), port };
        eventually("Redis answers", async || redis.try_call(&["PING"]).await.is_ok()).await;
        redis
    }

    fn url(&self) -> String {
        format!("redis://:{PASSWORD}@127.0.0.1:{}", self.port)
    }

    async fn try_call(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let client = redis::Client::open(self.url())?;
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query_async(&mut connection).await
    }

    async fn call<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        redis::from_redis_value(self.try_call(words).await.unwrap()).unwrap()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn kill(mut self) -> u16 {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.port
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Nothing can be done about one that is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until something holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = timeout(Duration::from_secs(10), async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within 10 s: {what}");
}

fn secret() -> CursorKey {
    CursorKey::new([7; 32])
}

/// The settings of a server; `rates` are those of a key.
fn settings(url: &str, rates: &str) -> AccessSettings {
    AccessSettings {
        rates: ClassRates { reads: Rates::parse(rates), ..ClassRates::default() },
        rate_limit_store: RateLimitStore::Redis(Secret::new(url)),
        ..AccessSettings::default()
    }
}

/// One server's limiter.
async fn limiter(url: &str, rates: &str) -> Arc<Limiter> {
    Arc::new(Limiter::start_with(&settings(url, rates), Ctx::system(), &secret(), PATIENCE).await)
}

async fn limiters(redis: &Redis, rates: &str) -> Vec<Arc<Limiter>> {
    let mut limiters = Vec::new();
    for _ in 0..3 {
        limiters.push(limiter(&redis.url(), rates).await);
    }
    limiters
}

async fn count(limiter: &Limiter, key_id: &str) -> Standing {
    let account = Account { key_id: Some(key_id), ..Account::of_address(ClientAddress(None)) };
    limiter.count(&account, RequestClass::Reads).await
}

async fn is_admitted(limiter: &Limiter, key_id: &str) -> bool {
    count(limiter, key_id).await.refusal().is_none()
}

/// How requests fared.
#[derive(Default)]
struct Load {
    admitted: usize,
    latencies: Vec<Duration>,
}

impl Load {
    fn percentile(&self, part: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort();
        sorted[((sorted.len() - 1) as f64 * part) as usize]
    }
}

/// Sends requests at a steady pace to each in turn, whether earlier ones are answered or not.
async fn load(limiters: &[Arc<Limiter>], key_id: &'static str, per_second: u32, time: Duration) -> Load {
    let mut ticks = interval(Duration::from_millis(5));
    let (started, mut sent) = (Instant::now(), 0);
    let mut tasks = tokio::task::JoinSet::new();
    let mut elapsed = Duration::ZERO;
    while elapsed < time {
        ticks.tick().await;
        elapsed = started.elapsed();
        let due = (elapsed.as_secs_f64() * f64::from(per_second)) as usize;
        for nth in sent..due {
            let limiter = limiters[nth % limiters.len()].clone();
            tasks.spawn(async move {
                let began = Instant::now();
                (is_admitted(&limiter, key_id).await, began.elapsed())
            });
        }
        sent = due.max(sent);
    }
    let mut load = Load::default();
    for (is_admitted, latency) in tasks.join_all().await {
        load.admitted += usize::from(is_admitted);
        load.latencies.push(latency);
    }
    load
}

/// Whether a limiter counts in Redis: what one takes, the other misses.
async fn are_joined(limiters: &[Arc<Limiter>], key_id: &str) -> bool {
    let mut admitted = 0;
    for nth in 0..12 {
        admitted += usize::from(is_admitted(&limiters[nth % limiters.len()], key_id).await);
    }
    admitted == 6
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_at_five_times_the_limit_admit_the_limit() {
    let redis = Redis::start().await;
    let limiters = limiters(&redis, "100/second").await;
    let started = Instant::now();
    let load = load(&limiters, "key", 500, Duration::from_secs(4)).await;
    let seconds = started.elapsed().as_secs_f64();
    let most = (100.0 * seconds + 100.0).ceil() as usize;
    assert!(load.admitted <= most, "{} of {most} in {seconds} s", load.admitted);
    // The first burst is at hand at once; the rest as time gives it.
    let least = (0.98 * (100.0 * 4.0 + 100.0)) as usize;
    assert!(load.admitted >= least, "{} of {least} in {seconds} s", load.admitted);
}

#[tokio::test]
async fn every_rate_and_limit_is_counted_at_once_or_not_at_all() {
    let redis = Redis::start().await;
    let limiter = limiter(&redis.url(), "2/hour;3/day").await;
    let headers = async || {
        let mut headers = HeaderMap::new();
        count(&limiter, "key").await.write(&mut headers);
        headers["ratelimit"].to_str().unwrap().to_owned()
    };
    assert_eq!(headers().await, "\"key-reads-3600\";r=1;t=1800, \"key-reads-86400\";r=2;t=28800");
    assert!(headers().await.starts_with("\"key-reads-3600\";r=0;t=1800, \"key-reads-86400\";r=1;t="));
    for _ in 0..3 {
        assert!(headers().await.starts_with("\"key-reads-3600\";r=0;t="));
    }
    // Refused ones did not count: the other rate still has one.
    let others: Vec<String> = redis.call(&["KEYS", "*:1"]).await;
    assert_eq!(others.len(), 1);
    let (owed_until, now): (String, (u64, u64)) = (redis.call(&["GET", &others[0]]).await, redis.call(&["TIME"]).await);
    let owed_until: u64 = owed_until.split(' ').next().unwrap().parse().unwrap();
    assert!((57_000..=57_601).contains(&(owed_until - now.0)), "{owed_until}");
}

#[tokio::test]
async fn a_refusal_by_redis_never_lies() {
    let redis = Redis::start().await;
    let limiter = limiter(&redis.url(), "1/second").await;
    while is_admitted(&limiter, "key").await {}
    for _ in 0..3 {
        let refused = count(&limiter, "key").await;
        let mut headers = HeaderMap::new();
        refused.write(&mut headers);
        assert_eq!(headers["ratelimit"], "\"key-reads\";r=0;t=1");
        assert!(refused.refusal().is_some());
        sleep(Duration::from_secs(1)).await;
        assert!(is_admitted(&limiter, "key").await);
        while is_admitted(&limiter, "key").await {}
    }
}

#[tokio::test]
async fn redis_holds_no_name_and_nothing_for_ever() {
    let redis = Redis::start().await;
    // One request is owed for two seconds: a machine that is slow still finds every bucket.
    let limiter = limiter(&redis.url(), "30/minute").await;
    let settings = ProjectSettings { total_limit: Rates::parse("30/minute"), ..ProjectSettings::default() };
    let account = Account {
        address: ClientAddress(Some("203.0.113.77".parse().unwrap())),
        project: Some((ProjectId::DEFAULT, &settings)),
        key_id: Some("key-canary"),
        key_settings: None,
        user_id: Some("user-canary"),
    };
    assert!(limiter.count(&account, RequestClass::Reads).await.refusal().is_none());
    let keys: Vec<String> = redis.call(&["KEYS", "*"]).await;
    assert_eq!(keys.len(), 5, "{keys:?}");
    let tags: std::collections::HashSet<&str> = keys.iter().map(|key| key.split('}').next().unwrap()).collect();
    assert!(tags.len() == 1 && tags.iter().all(|tag| tag.starts_with('{')), "{keys:?}");
    for key in &keys {
        assert!(!key.contains("canary") && !key.contains("203.0"), "{key}");
        assert!((1..=5_000).contains(&redis.call::<i64>(&["PTTL", key]).await), "{key}");
    }
    // Full buckets go; only the list of servers stays, as long as one of them lives.
    eventually("buckets expire", async || redis.call::<Vec<String>>(&["KEYS", "*"]).await.len() == 1).await;
}

#[tokio::test]
async fn a_clock_that_was_set_back_locks_nobody_out() {
    let redis = Redis::start().await;
    let limiter = limiter(&redis.url(), "60/minute").await;
    assert!(is_admitted(&limiter, "key").await);
    let keys: Vec<String> = redis.call(&["KEYS", "*:0"]).await;
    // As if it had been written a year later.
    let (seconds, _): (u64, u64) = redis.call(&["TIME"]).await;
    redis.call::<()>(&["SET", &keys[0], &format!("{} 0", seconds + 31_536_000)]).await;
    let mut headers = HeaderMap::new();
    count(&limiter, "key").await.write(&mut headers);
    assert_eq!(headers["ratelimit"], "\"key-reads\";r=0;t=1");
    assert!(!is_admitted(&limiter, "key").await);
    sleep(Duration::from_millis(1_010)).await;
    assert!(is_admitted(&limiter, "key").await);
    assert!(!is_admitted(&limiter, "key").await);
}

/// Breaks Redis under load and mends it again.
async fn survives(name: &str, fail: impl AsyncFnOnce(Redis) -> Redis, mend: impl AsyncFnOnce(Redis) -> Redis) {
    let redis = Redis::start().await;
    let mut limiters = Vec::new();
    for _ in 0..3 {
        limiters.push(Arc::new(Limiter::start(&settings(&redis.url(), "6/day"), Ctx::system(), &secret()).await));
    }
    // Each knows of the others at its next beat.
    sleep(Duration::from_millis(1_100)).await;
    let mut nth = 0;
    eventually(&format!("{name}: the servers count together"), async || {
        nth += 1;
        are_joined(&limiters, &format!("before-{nth}")).await
    })
    .await;
    let loaded = {
        let limiters = limiters.clone();
        tokio::spawn(async move { load(&limiters, "load", 600, Duration::from_secs(3)).await })
    };
    sleep(Duration::from_millis(500)).await;
    let redis = fail(redis).await;
    let load = loaded.await.unwrap();
    // Few decisions wait, and none for more than the call's 40 ms; what is above is the scheduling of a busy test machine.
    let (median, most) = (load.percentile(0.5), load.percentile(0.99));
    assert!(median < Duration::from_millis(30), "{name}: median {median:?}");
    assert!(most < Duration::from_secs(1), "{name}: 99 % {most:?}");
    // While it is away each applies a third: two requests.
    let mut admitted = 0;
    for nth in 0..12 {
        admitted += usize::from(is_admitted(&limiters[nth % 3], "away").await);
    }
    assert_eq!(admitted, 6, "{name}");
    let _redis = mend(redis).await;
    eventually(&format!("{name}: the servers count together again"), async || {
        nth += 1;
        let mut admitted = 0;
        for limiter in &limiters {
            for _ in 0..7 {
                admitted += usize::from(is_admitted(limiter, &format!("after-{nth}")).await);
            }
        }
        // Alone, the first would have admitted two.
        let first = limiters[0].clone();
        let mut alone = 0;
        for _ in 0..7 {
            alone += usize::from(is_admitted(&first, &format!("alone-{nth}")).await);
        }
        admitted == 6 && alone == 6
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_under_load_it_is_replaced_by_shares_until_it_is_back() {
    survives(
        "killed",
        async |redis| {
            let port = redis.kill();
            Redis { process: Command::new("true").spawn().unwrap(), port }
        },
        async |redis| Redis::start_at(redis.port).await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_under_load_it_is_replaced_by_shares_until_it_is_back() {
    survives(
        "frozen",
        async |redis| {
            redis.signal("-STOP");
            redis
        },
        async |redis| {
            redis.signal("-CONT");
            redis
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_it_is_replaced_by_shares_until_it_is_back() {
    survives(
        "read-only",
        async |redis| {
            redis.call::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
            redis
        },
        async |redis| {
            redis.call::<()>(&["REPLICAOF", "NO", "ONE"]).await;
            redis
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_memory_it_is_replaced_by_shares_until_it_is_back() {
    survives(
        "full",
        async |redis| {
            redis.call::<()>(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
            redis.call::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
            redis
        },
        async |redis| {
            redis.call::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
            redis
        },
    )
    .await;
}

#[tokio::test]
async fn flushed_it_counts_anew_and_loads_its_script_again() {
    let redis = Redis::start().await;
    let limiters = limiters(&redis, "6/day").await;
    assert!(are_joined(&limiters, "key").await);
    redis.call::<()>(&["FLUSHALL"]).await;
    redis.call::<()>(&["SCRIPT", "FLUSH"]).await;
    assert!(are_joined(&limiters, "key").await);
}

thread_local! {
    /// What was logged at any level on this thread, which is that of one test.
    static LOGGED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Logged;

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOGGED.with_borrow_mut(|logged| logged.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Logged {
    fn text() -> String {
        LOGGED.with_borrow(|logged| String::from_utf8(logged.clone()).unwrap())
    }

    fn lines(text: &str) -> usize {
        Self::text().lines().filter(|line| line.contains(text)).count()
    }
}

#[tokio::test]
async fn the_log_tells_a_loss_and_its_end_once_and_no_password() {
    // For every thread: what one thread has no use for is else switched off for all.
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(|| Logged).init();
    let redis = Redis::start().await;
    let _wrong = limiter(&redis.url().replace(PASSWORD, "canary-too"), "6/day").await;
    assert_eq!(Logged::lines("WARN"), 1, "{}", Logged::text());
    let limiter = limiter(&redis.url(), "6/day").await;
    redis.signal("-STOP");
    for _ in 0..5 {
        count(&limiter, "key").await;
    }
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(Logged::lines("WARN"), 2, "{}", Logged::text());
    redis.signal("-CONT");
    eventually("the log says that it is back", async || Logged::lines("Redis is back") == 1).await;
    assert!(!Logged::text().contains("canary"), "{}", Logged::text());
}

#[tokio::test]
async fn without_redis_from_the_start_a_server_counts_for_itself() {
    let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let limiter = limiter(&format!("redis://127.0.0.1:{port}"), "3/day").await;
    let mut admitted = 0;
    for _ in 0..9 {
        admitted += usize::from(is_admitted(&limiter, "key").await);
    }
    assert_eq!(admitted, 3);
}

#[tokio::test]
async fn a_server_that_leaves_is_counted_no_longer() {
    let redis = Redis::start().await;
    let mut limiters = limiters(&redis, "6/day").await;
    let servers = async || {
        let keys: Vec<String> = redis.call(&["KEYS", "*:servers"]).await;
        redis.call::<usize>(&["ZCARD", &keys[0]]).await
    };
    assert_eq!(servers().await, 3);
    limiters.pop();
    eventually("it leaves at once", async || servers().await == 2).await;
}
