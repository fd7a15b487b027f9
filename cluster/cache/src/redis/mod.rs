//! The cache and the limiter of a cluster, in Redis 7: one server, one behind sentinels, or a Redis cluster.
//!
//! Redis may be gone or flushed at any time, and nothing fails for that: the cache then holds nothing, and each node limits by itself. So
//! that nobody waits for a server that is gone, one command that fails or is late is followed by a second in which no other is sent; then one
//! is tried.

mod cache;
mod limiter;
mod reach;

use std::{fmt, sync::Arc, time::Duration};

use fred::{
    clients::Client,
    interfaces::{ClientLike, LuaInterface},
    types::{
        Builder, ConnectHandle, FromValue, Key, Value,
        config::{Config, ReconnectPolicy, UnresponsiveConfig},
    },
};
use thiserror::Error;

use self::reach::Reach;
pub use self::{cache::RedisCache, limiter::RedisLimiter};
use crate::metrics;

/// What a URL may begin with.
const SCHEMES: [&str; 6] = ["redis", "rediss", "redis-cluster", "rediss-cluster", "redis-sentinel", "rediss-sentinel"];
/// Commands that wait for an answer or a connection at most, over all callers; those past it fail at once.
const MAX_WAITING: usize = 10_000;
/// How long until a lost connection is tried again, in milliseconds: at first, and at most.
const RECONNECT_MS: (u32, u32) = (50, 2_000);

/// How Redis is reached.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisOptions {
    /// `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`; `rediss://` over TLS, with the system's authorities;
    /// `redis-cluster://HOST:PORT?node=HOST:PORT`, `redis-sentinel://HOST:PORT?sentinelServiceName=NAME&node=HOST:PORT`, and both with `rediss-`.
    pub url: String,
    /// Who logs in, instead of whom the URL names: a user (`default` where there are none of one's own) and the password.
    pub credentials: Option<(String, String)>,
    /// What all keys begin with, so that several clusters can share a server.
    pub prefix: String,
    /// How long a command may take before it counts as failed.
    pub timeout: Duration,
}

impl RedisOptions {
    /// A server, with a time-out of 50 ms.
    pub fn new(url: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self { url: url.into(), credentials: None, prefix: prefix.into(), timeout: Duration::from_millis(50) }
    }
}

/// Without the URL, which may hold a password.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url: _, credentials: _, prefix, timeout } = self;
        f.debug_struct("RedisOptions").field("prefix", prefix).field("timeout", timeout).finish_non_exhaustive()
    }
}

/// A URL that does not say how Redis is reached. The message does not repeat it, since it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the URL of Redis cannot be used: {0}. Write redis://HOST:PORT, or redis-cluster:// or redis-sentinel:// as documented"
)]
pub struct InvalidUrl(String);

/// A connection, for any number of caches and limiters. Dropping the last of them closes it.
#[derive(Debug)]
pub struct Redis {
    client: Client,
    connection: ConnectHandle,
    prefix: String,
    reach: Reach,
}

impl Redis {
    /// Begins to connect, and goes on trying for as long as it lives: whether Redis is there shows in use.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`].
    pub fn connect(options: RedisOptions) -> Result<Arc<Self>, InvalidUrl> {
        metrics::describe();
        let RedisOptions { url, credentials, prefix, timeout } = options;
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        if !SCHEMES.contains(&scheme) {
            return Err(InvalidUrl(format!("its scheme is none of {}", SCHEMES.join(", "))));
        }
        let mut config = Config::from_url(&url).map_err(|error| InvalidUrl(error.details().to_owned()))?;
        if let Some((user, password)) = credentials {
            (config.username, config.password) = (Some(user), Some(password));
        }
        config.fail_fast = false;
        let mut builder = Builder::from_config(config);
        builder
            .with_performance_config(|performance| performance.default_command_timeout = timeout)
            .with_connection_config(|connection| {
                connection.connection_timeout = timeout.max(Duration::from_secs(1));
                connection.internal_command_timeout = timeout.max(Duration::from_secs(1));
                connection.max_command_attempts = 1;
                connection.max_command_buffer_len = MAX_WAITING;
                // A server that hangs is left, so that the next connection may find another.
                let max_timeout = Some(Duration::from_secs(2).max(4 * timeout));
                connection.unresponsive = UnresponsiveConfig { max_timeout, interval: Duration::from_millis(500) };
            })
            .set_policy(ReconnectPolicy::new_exponential(0, RECONNECT_MS.0, RECONNECT_MS.1, 2));
        let client = builder.build().map_err(|error| InvalidUrl(error.details().to_owned()))?;
        let connection = client.connect();
        Ok(Arc::new(Self { client, connection, prefix, reach: Reach::new(timeout) }))
    }

    /// Whether the last command was answered, for status pages.
    pub fn is_up(&self) -> bool {
        self.reach.is_up()
    }

    /// The key of `kind` for what is known by `scoped`.
    fn key(&self, kind: &str, scoped: &[u8]) -> Key {
        [self.prefix.as_bytes(), kind.as_bytes(), scoped].concat().into_boxed_slice().into()
    }

    /// Runs a script on one key; nothing where Redis cannot be reached.
    async fn run<R: FromValue>(&self, script: &Script, key: Key, arguments: Vec<Value>) -> Option<R> {
        self.reach
            .ask(async {
                let known = self.client.evalsha(&*script.digest, key.clone(), arguments.clone()).await;
                match known {
                    // After a start or a flush. Sent with its text, it reaches the node of the key, wherever that is.
                    Err(error) if error.details().starts_with("NOSCRIPT") => {
                        self.client.eval(script.text, key, arguments).await
                    }
                    known => known,
                }
            })
            .await
    }
}

/// A Lua script, known to the server by its SHA-1.
#[derive(Debug)]
struct Script {
    text: &'static str,
    digest: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, digest: fred::util::sha1_hash(text) }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
