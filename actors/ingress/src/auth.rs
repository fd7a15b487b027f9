//! Who is calling: the bearer key decides on the tenant, and nothing else does.
//!
//! Keys are kept as SHA-256 digests. A presented key is compared with every configured one in constant time and without an early
//! exit, so that the time of an answer tells nothing about how close a guess came.

use std::{fmt, net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, StatusCode, header};
use parlance_cluster_protocol::UserHash;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::{api_error::ApiError, error::IngressError};

/// The tenant of a node without keys.
const DEFAULT_TENANT: &str = "default";

/// The shortest key that is accepted, in bytes: 16 characters of base64 are 96 bits.
const MIN_KEY: usize = 16;

/// The longest key, in bytes; a longer one is refused before it is hashed.
const MAX_KEY: usize = 512;

/// The longest tenant name, in bytes.
const MAX_TENANT: usize = 64;

/// The most keys of one node.
const MAX_KEYS: usize = 10_000;

/// The prefix of the WebSocket subprotocol that carries a key, since browsers cannot set headers there.
const KEY_SUBPROTOCOL: &str = "bearer.";

/// Who may call.
#[derive(Clone)]
pub struct Auth {
    keys: Arc<[ApiKey]>,
    /// The tenant of everybody while there are no keys.
    everybody: Tenant,
}

struct ApiKey {
    digest: [u8; 32],
    tenant: Tenant,
}

/// A caller's tenant. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tenant {
    /// Its name, part of every session key.
    pub(crate) name: Arc<str>,
    /// What logs show instead of the name.
    pub(crate) tag: Arc<str>,
}

/// Where a request came from. Absent on requests that came through no socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Lets the node's own machine alone change what all tenants share: keys know tenants, and no roles yet.
pub(crate) fn require_operator(peer: Option<Peer>) -> Result<(), ApiError> {
    if peer.is_some_and(|Peer(address)| address.to_canonical().is_loopback()) {
        return Ok(());
    }
    let message = "The node's models are changed from its own machine only: connect through a loopback address.";
    Err(ApiError::new(StatusCode::FORBIDDEN, "operator_only", message))
}

impl Tenant {
    fn new(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let tag: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Self { name: name.into(), tag: tag.into() }
    }
}

impl Auth {
    /// Everybody is the tenant `default`. For loopback alone.
    pub fn open() -> Self {
        Self::of(Vec::new())
    }

    fn of(keys: Vec<ApiKey>) -> Self {
        Self { keys: keys.into(), everybody: Tenant::new(DEFAULT_TENANT) }
    }

    /// Reads a key file: a line is `KEY`, or `TENANT KEY`; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    ///
    /// [`IngressError::KeyFile`] with the line; a file without any key is refused too, since it would let nobody in.
    pub fn from_key_file(text: &str) -> Result<Self, IngressError> {
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (tenant, key) = match words.as_slice() {
                [] => continue,
                [first, ..] if first.starts_with('#') => continue,
                [key] => (DEFAULT_TENANT, *key),
                [tenant, key] => (*tenant, *key),
                _ => return Err(key_file(index + 1, "expected `KEY` or `TENANT KEY`")),
            };
            check_entry(tenant, key).map_err(|reason| key_file(index + 1, reason))?;
            keys.push(ApiKey { digest: Sha256::digest(key.as_bytes()).into(), tenant: Tenant::new(tenant) });
        }
        match keys.len() {
            0 => Err(key_file(0, "it holds no key; write one key per line")),
            1..=MAX_KEYS => Ok(Self::of(keys)),
            _ => Err(key_file(0, &format!("at most {MAX_KEYS} keys"))),
        }
    }

    /// Whether anybody may call.
    pub fn is_open(&self) -> bool {
        self.keys.is_empty()
    }

    /// The caller's tenant.
    pub(crate) fn tenant(&self, headers: &HeaderMap) -> Result<Tenant, ApiError> {
        if self.is_open() {
            return Ok(self.everybody.clone());
        }
        let value = headers.get(header::AUTHORIZATION).ok_or_else(|| unauthorized(MISSING))?;
        let key =
            value.as_bytes().split_at_checked(BEARER.len()).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER));
        key.and_then(|(_, key)| self.tenant_of_key(key.trim_ascii())).ok_or_else(|| unauthorized(WRONG))
    }

    /// The tenant of a key in a WebSocket's subprotocol, if it carries one.
    pub(crate) fn tenant_of_subprotocols(&self, headers: &HeaderMap) -> Option<Tenant> {
        let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
        let encoded =
            values.flat_map(|value| value.split(',')).find_map(|name| name.trim().strip_prefix(KEY_SUBPROTOCOL))?;
        self.tenant_of_key(&URL_SAFE_NO_PAD.decode(encoded).ok()?)
    }

    /// The tenant that a key belongs to.
    pub(crate) fn tenant_of_key(&self, key: &[u8]) -> Option<Tenant> {
        if key.len() > MAX_KEY {
            return None;
        }
        let presented: [u8; 32] = Sha256::digest(key).into();
        let mut found = u64::MAX;
        for (index, known) in self.keys.iter().enumerate() {
            let equal = known.digest.ct_eq(&presented);
            found.conditional_assign(&(index as u64), equal);
        }
        self.keys.get(usize::try_from(found).ok()?).map(|key| key.tenant.clone())
    }
}

/// Shows how many keys there are, never one of them.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Auth({} keys)", self.keys.len())
    }
}

const BEARER: &[u8] = b"Bearer ";
const MISSING: &str = "You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'.";
const WRONG: &str = "Incorrect API key provided.";

fn unauthorized(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
}

/// The error for a WebSocket whose key is missing or wrong.
pub(crate) fn wrong_key() -> ApiError {
    unauthorized(WRONG)
}

fn key_file(line: usize, reason: &str) -> IngressError {
    IngressError::KeyFile { line, reason: reason.to_owned() }
}

fn check_entry(tenant: &str, key: &str) -> Result<(), &'static str> {
    if !(MIN_KEY..=MAX_KEY).contains(&key.len()) {
        return Err("a key has 16 to 512 characters");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if tenant.len() > MAX_TENANT || !tenant.bytes().all(allowed) {
        return Err("a tenant's name has 1 to 64 characters out of A-Z a-z 0-9 . _ -");
    }
    Ok(())
}

/// Hashes the caller's name for its user under the node's secret and the tenant, so that the name itself is never stored and the
/// same name of two tenants gives two hashes.
pub(crate) fn user_hash(secret: &[u8; 32], tenant: &str, user: &str) -> UserHash {
    let tenant_key: [u8; 32] = keyed(secret, tenant.as_bytes());
    keyed(&tenant_key, user.as_bytes())
}

fn keyed(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const FILE: &str = "# ours\n\nfirst-key-0123456789\nacme second-key-0123456789\n";

    fn bearer(value: &str) -> HeaderMap {
        let value = HeaderValue::from_str(value).expect("a header value");
        HeaderMap::from_iter([(header::AUTHORIZATION, value)])
    }

    #[test]
    fn keys_decide_on_the_tenant() {
        let auth = Auth::from_key_file(FILE).expect("a good file");
        assert_eq!(&*auth.tenant(&bearer("Bearer first-key-0123456789")).expect("a known key").name, "default");
        assert_eq!(&*auth.tenant(&bearer("bearer second-key-0123456789")).expect("a known key").name, "acme");
    }

    #[test]
    fn anything_else_is_refused() {
        let auth = Auth::from_key_file(FILE).expect("a good file");
        let long = format!("Bearer {}", "x".repeat(100_000));
        for bad in
            ["Bearer ", "Bearer first-key-012345678", "Basic first-key-0123456789", "first-key-0123456789", &long]
        {
            let error = auth.tenant(&bearer(bad)).expect_err("a wrong key");
            assert_eq!(error.status, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(auth.tenant(&HeaderMap::new()).expect_err("no key").code, "invalid_api_key");
    }

    #[test]
    fn a_browser_sends_its_key_as_a_subprotocol() {
        let auth = Auth::from_key_file(FILE).expect("a good file");
        let offer = format!("parlance, bearer.{}", URL_SAFE_NO_PAD.encode("second-key-0123456789"));
        let value = HeaderValue::from_str(&offer).expect("a header value");
        let headers = HeaderMap::from_iter([(header::SEC_WEBSOCKET_PROTOCOL, value)]);
        assert_eq!(auth.tenant_of_subprotocols(&headers).map(|tenant| tenant.name.to_string()), Some("acme".into()));
        assert_eq!(auth.tenant_of_subprotocols(&HeaderMap::new()), None);
    }

    #[test]
    fn bad_key_files_are_refused_with_the_line_and_without_the_key() {
        for (text, line) in
            [("", 0), ("# only\n", 0), ("short\n", 1), ("a b c\n", 1), ("\nte/nant first-key-0123456789", 2)]
        {
            let error = Auth::from_key_file(text).expect_err("a bad file");
            assert!(matches!(error, IngressError::KeyFile { line: found, .. } if found == line), "{error}");
            assert!(!error.to_string().contains("short") && !error.to_string().contains("first-key"));
        }
    }

    #[test]
    fn users_are_hashed_per_tenant() {
        let one = user_hash(&[1; 32], "a", "ann");
        assert_eq!(one, user_hash(&[1; 32], "a", "ann"));
        assert_ne!(one, user_hash(&[1; 32], "b", "ann"));
        assert_ne!(one, user_hash(&[2; 32], "a", "ann"));
    }
}
