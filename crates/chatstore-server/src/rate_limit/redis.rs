//! Buckets in Redis or Valkey, for all servers together, and the way back to it when it fails.
//!
//! A request waits for Redis once, and not long. When an answer does not come in time or is an error, the connection is
//! given up at once and requests are decided in this process, by its share of each limit, until a task beside them has
//! a connection that works again.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, RedisResult, Script};
use chatstore_core::clock::Ctx;
use chatstore_core::page::CursorKey;
use chatstore_core::rates::Verdict;
use ring::hmac;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{Limit, Limits};
use crate::config::Secret;

/// What a request waits for Redis, unless it is told otherwise.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_millis(40);
/// What connecting may take; no request waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often this server says that it lives, or tries to connect.
const BEAT: Duration = Duration::from_secs(1);
/// A server that was not heard of for this long no longer counts.
const SILENCE_MAX_MS: u32 = 5_000;
/// Longest burst in nanoseconds, about 146 years: what the script's numbers can hold.
const WINDOW_NS_MAX: u64 = 1 << 62;

/// Decides one request. Each key is a bucket: the second and nanosecond, by the server's clock, at which it is full
/// again; its arguments are the rate's interval and window in nanoseconds. Answers what each bucket owes before the
/// request. Seconds stand apart, as the numbers here are exact only to 2^53. A debt beyond a window, from before the
/// clock was set back or the rate was changed, is cut to it at once, so that it locks nobody out.
const COUNT: &str = r"
local time = redis.call('TIME')
local now_s, now_ns = tonumber(time[1]), tonumber(time[2]) * 1000
local function keep(key, owed)
  local full_ns = now_ns + owed
  local seconds = math.floor(full_ns / 1e9)
  local state = string.format('%.0f %.0f', now_s + seconds, full_ns - seconds * 1e9)
  redis.call('SET', key, state, 'PX', string.format('%.0f', math.ceil(owed / 1e6) + 1))
end
local states = redis.call('MGET', unpack(KEYS))
local debts, is_admitted = {}, true
for i = 1, #KEYS do
  local interval, window = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local s, ns = string.match(states[i] or '', '^(%d+) (%d+)$')
  local debt = s and math.max((tonumber(s) - now_s) * 1e9 + (tonumber(ns) - now_ns), 0) or 0
  if debt > window then
    debt = window
    keep(KEYS[i], window)
  end
  debts[i] = debt
  is_admitted = is_admitted and debt + interval <= window
end
if is_admitted then
  for i = 1, #KEYS do
    keep(KEYS[i], debts[i] + tonumber(ARGV[2 * i - 1]))
  end
end
return debts
";

/// Notes that a server lives and counts those that do; times are in milliseconds of the server's clock. Those from the
/// future are from before the clock was set back.
const NOTE: &str = r"
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now_ms - tonumber(ARGV[2])))
redis.call('ZREMRANGEBYSCORE', KEYS[1], string.format('(%.0f', now_ms), '+inf')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
";

/// Buckets that are shared with other servers.
pub(super) struct Shared {
    client: Client,
    /// What a request waits.
    call_timeout: Duration,
    count: Script,
    note: Script,
    /// Names buckets, so that Redis holds no address and no user.
    names: hmac::Key,
    /// What every key begins with: what stands in braces puts all of them on one node of a cluster.
    prefix: String,
    /// The id of this server.
    id: String,
    connection: RwLock<Connection>,
    replicas: AtomicU32,
    is_lost: AtomicBool,
}

/// The connection that requests use, if there is one that works.
#[derive(Default)]
struct Connection {
    opened: Option<MultiplexedConnection>,
    /// Which one it is: whoever fails on an older one says nothing about it.
    nth: u64,
}

impl Shared {
    /// Buckets in the Redis of this URL, not connected yet.
    pub(super) fn new(url: &Secret, ctx: &Ctx, secret: &CursorKey, call_timeout: Duration) -> Option<Self> {
        let Ok(client) = Client::open(url.expose()) else {
            tracing::error!("RATE_LIMIT_STORE is not a URL of Redis: each server counts for itself");
            return None;
        };
        let installation = secret.derive(b"rate limits: installation");
        Some(Self {
            client,
            call_timeout,
            count: Script::new(COUNT),
            note: Script::new(NOTE),
            names: hmac::Key::new(hmac::HMAC_SHA256, &secret.derive(b"rate limits: names")),
            prefix: format!("{{chatstore:{}}}", hex(&installation[..8])),
            id: hex(&ctx.random::<16>()),
            connection: RwLock::default(),
            replicas: AtomicU32::new(1),
            is_lost: AtomicBool::new(false),
        })
    }

    /// Counts one request: against all its limits, or, if one of them refuses it, against none. `None` if Redis does
    /// not answer.
    pub(super) async fn count(&self, limits: &Limits<'_>) -> Option<Vec<Verdict>> {
        let (mut connection, nth) = self.connection()?;
        let mut call = self.count.prepare_invoke();
        let mut shares = Vec::with_capacity(limits.len());
        for limit in limits.iter().flatten() {
            let name = self.name(limit);
            for (at, rate) in limit.rates.iter().enumerate() {
                call.key(format!("{name}:{at}")).arg(rate.interval_ns()).arg(rate.window_ns().min(WINDOW_NS_MAX));
                shares.push(rate.share(1));
            }
        }
        match within(self.call_timeout, call.invoke_async::<Vec<u64>>(&mut connection)).await {
            Ok(debts) => Some(shares.iter().zip(debts).map(|(share, debt)| share.decide(debt, 0)).collect()),
            Err(reason) => {
                self.give_up(nth, &reason);
                None
            }
        }
    }

    /// Servers that were alive when Redis was last asked, this one included.
    pub(super) fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::Relaxed)
    }

    /// Keeps the connection until `stop` is cancelled, then takes this server off the list.
    pub(super) async fn look_after(self: std::sync::Arc<Self>, stop: CancellationToken) {
        let mut beats = interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beats.reset();
        let kept = async {
            loop {
                beats.tick().await;
                self.keep_alive().await;
            }
        };
        if stop.run_until_cancelled(kept).await.is_none()
            && let Some((mut connection, _)) = self.connection()
        {
            let mut leave = ::redis::cmd("ZREM");
            let left = leave.arg(self.servers()).arg(&self.id).query_async::<()>(&mut connection);
            // Else the others forget it a little later.
            let _ = within(self.call_timeout, left).await;
        }
    }

    /// Says that this server lives; without a connection, tries to have one again.
    pub(super) async fn keep_alive(&self) {
        match self.connection() {
            Some((mut connection, nth)) => {
                if let Err(reason) = self.note(&mut connection, CONNECT_TIMEOUT).await {
                    self.give_up(nth, &reason);
                }
            }
            None => match self.connect().await {
                Ok(connection) => self.resume(connection),
                Err(reason) => self.tell_lost(&reason),
            },
        }
    }

    /// A connection that answers, and on which buckets can be written, as fast as requests need it.
    async fn connect(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = within(CONNECT_TIMEOUT, connecting).await?;
        within(CONNECT_TIMEOUT, self.count.load_async(&mut connection)).await?;
        within(CONNECT_TIMEOUT, self.note.load_async(&mut connection)).await?;
        self.note(&mut connection, self.call_timeout).await?;
        Ok(connection)
    }

    async fn note(&self, connection: &mut MultiplexedConnection, time_max: Duration) -> Result<(), String> {
        let mut call = self.note.key(self.servers());
        call.arg(&self.id).arg(SILENCE_MAX_MS);
        let replicas = within(time_max, call.invoke_async::<u32>(connection)).await?;
        self.replicas.store(replicas.max(1), Ordering::Relaxed);
        Ok(())
    }

    fn connection(&self) -> Option<(MultiplexedConnection, u64)> {
        let connection = self.connection.read().unwrap_or_else(PoisonError::into_inner);
        Some((connection.opened.clone()?, connection.nth))
    }

    fn resume(&self, opened: MultiplexedConnection) {
        let mut connection = self.connection.write().unwrap_or_else(PoisonError::into_inner);
        *connection = Connection { opened: Some(opened), nth: connection.nth + 1 };
        drop(connection);
        if self.is_lost.swap(false, Ordering::Relaxed) {
            tracing::info!("Redis is back: limits hold over all servers again");
        }
    }

    fn give_up(&self, nth: u64, reason: &str) {
        let mut connection = self.connection.write().unwrap_or_else(PoisonError::into_inner);
        if connection.nth == nth && connection.opened.take().is_some() {
            drop(connection);
            self.tell_lost(reason);
        }
    }

    /// Says it once, not for every attempt.
    fn tell_lost(&self, reason: &str) {
        if !self.is_lost.swap(true, Ordering::Relaxed) {
            let replicas = self.replicas();
            tracing::warn!(reason, replicas, "Redis is lost: this server applies its share of each limit");
        }
    }

    fn name(&self, limit: &Limit<'_>) -> String {
        format!("{}:{}", self.prefix, hex(&hmac::sign(&self.names, &limit.subject).as_ref()[..16]))
    }

    /// The sorted set of servers, each with the time at which it was last heard of.
    fn servers(&self) -> String {
        format!("{}:servers", self.prefix)
    }
}

/// What comes in time, or why it does not. An error's own words may repeat what was sent, so that only its kind is told.
async fn within<T>(time_max: Duration, called: impl Future<Output = RedisResult<T>>) -> Result<T, String> {
    match timeout(time_max, called).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(match error.code() {
            Some(code) => format!("{} ({code})", error.category()),
            None => error.category().to_owned(),
        }),
        Err(_elapsed) => Err(format!("no answer within {} ms", time_max.as_millis())),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
