//! Which web pages may call: the server's own, those on this machine while the server is private to it, and configured ones.
//!
//! A browser sends cookies and reaches loopback addresses for any page, so on a server without keys the names in `Host` and
//! `Origin` are all that tells our page from a foreign one (DNS rebinding, cross-site requests).

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};

use crate::{api_error::ApiError, error::IngressError};

/// The rules about `Host` and `Origin`.
#[derive(Debug, Clone)]
pub(crate) struct Origins {
    /// Configured origins of other sites.
    allowed: Vec<String>,
    /// The address listened on.
    listen: SocketAddr,
    /// Whether the server has no keys.
    open: bool,
}

impl Origins {
    /// The rules of a server at `listen`; `open` if it has no keys.
    pub(crate) fn new(allowed: &[String], listen: SocketAddr, open: bool) -> Result<Self, IngressError> {
        let bad = allowed.iter().find(|origin| !is_origin(origin));
        match bad {
            Some(bad) => Err(IngressError::Origin(bad.clone())),
            None => {
                Ok(Self { allowed: allowed.iter().map(|origin| origin.to_ascii_lowercase()).collect(), listen, open })
            }
        }
    }

    /// Refuses requests for a name that is not this server's, and calls from foreign pages.
    pub(crate) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = host_of(uri, headers);
        if self.open && self.listen.ip().is_loopback() && host.is_some_and(|host| !self.is_local_host(host)) {
            return Err(forbidden(
                "host_not_allowed",
                "This server answers only to its own name: use localhost or 127.0.0.1.",
            ));
        }
        let acts =
            !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) || headers.contains_key(header::UPGRADE);
        match headers.get(header::ORIGIN) {
            Some(origin) if acts && !self.is_allowed(origin, host) => Err(forbidden(
                "origin_not_allowed",
                "Pages of this origin may not call this server; configure it as allowed.",
            )),
            _ => Ok(()),
        }
    }

    /// Whether pages of `origin` may call and read answers.
    pub(crate) fn is_allowed(&self, origin: &HeaderValue, host: Option<&str>) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        let Some((_, authority)) = origin.split_once("://") else { return false };
        host.is_some_and(|host| host.eq_ignore_ascii_case(authority))
            || (self.listen.ip().is_loopback() && is_loopback_name(without_port(authority)))
            || self.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
    }

    fn is_local_host(&self, host: &str) -> bool {
        let name = without_port(host);
        is_loopback_name(name) || name.parse().is_ok_and(|address: IpAddr| address == self.listen.ip())
    }
}

/// The name that the request was sent to: HTTP/2's authority, or the header.
pub(crate) fn host_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let authority = uri.authority().map(|authority| authority.as_str());
    // A header that is not text must not pass as absent.
    authority.or_else(|| headers.get(header::HOST).map(|host| host.to_str().unwrap_or("invalid")))
}

fn forbidden(code: &'static str, message: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, code, message)
}

fn is_origin(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|authority| !authority.is_empty() && !authority.contains('/') && text.parse::<Uri>().is_ok())
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') && port.bytes().all(|b| b.is_ascii_digit()) => unbracketed(name),
        _ => unbracketed(authority),
    }
}

fn unbracketed(name: &str) -> &str {
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
}

fn is_loopback_name(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(listen: &str, open: bool) -> Origins {
        let allowed = ["https://chat.example.org".to_owned()];
        Origins::new(&allowed, listen.parse().expect("an address"), open).expect("good origins")
    }

    fn check(origins: &Origins, method: Method, host: &str, origin: Option<&str>) -> Result<(), String> {
        let value = |text: &str| HeaderValue::from_str(text).expect("a header value");
        let mut headers = HeaderMap::from_iter([(header::HOST, value(host))]);
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, value(origin));
        }
        origins.check(&method, &Uri::from_static("/v1/models"), &headers).map_err(|error| error.code.into_owned())
    }

    #[test]
    fn a_rebound_name_is_refused_on_loopback_without_keys() {
        let local = origins("127.0.0.1:8080", true);
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST", "127.0.0.1"] {
            assert_eq!(check(&local, Method::GET, host, None), Ok(()), "{host}");
        }
        for host in ["evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.1"] {
            assert_eq!(check(&local, Method::GET, host, None), Err("host_not_allowed".into()), "{host}");
        }
        assert_eq!(check(&origins("127.0.0.1:8080", false), Method::GET, "name.example", None), Ok(()));
        assert_eq!(check(&origins("10.1.2.3:8080", true), Method::GET, "name.example", None), Ok(()));
    }

    #[test]
    fn foreign_pages_may_not_post() {
        let public = origins("10.1.2.3:443", false);
        let refused = Err("origin_not_allowed".to_owned());
        assert_eq!(check(&public, Method::POST, "us.example", Some("https://us.example")), Ok(()));
        assert_eq!(check(&public, Method::POST, "us.example", Some("https://chat.example.org")), Ok(()));
        assert_eq!(check(&public, Method::POST, "us.example", Some("https://evil.example")), refused);
        assert_eq!(check(&public, Method::POST, "us.example", Some("null")), refused);
        assert_eq!(check(&public, Method::POST, "us.example", Some("http://localhost:3000")), refused);
        assert_eq!(check(&public, Method::GET, "us.example", Some("https://evil.example")), Ok(()));
        let local = origins("127.0.0.1:8080", true);
        assert_eq!(check(&local, Method::POST, "127.0.0.1:8080", Some("http://localhost:3000")), Ok(()));
        assert_eq!(check(&local, Method::POST, "127.0.0.1:8080", Some("https://evil.example")), refused);
    }

    #[test]
    fn a_foreign_page_may_not_open_a_websocket() {
        let public = origins("10.1.2.3:443", false);
        let text = HeaderValue::from_static;
        let headers = HeaderMap::from_iter([
            (header::HOST, text("us.example")),
            (header::ORIGIN, text("https://evil.example")),
            (header::UPGRADE, text("websocket")),
        ]);
        assert!(public.check(&Method::GET, &Uri::from_static("/ws"), &headers).is_err());
    }

    #[test]
    fn configured_origins_are_checked() {
        let listen = "127.0.0.1:1".parse().expect("an address");
        for good in ["https://a.example", "http://a.example:8080"] {
            assert!(Origins::new(&[good.to_owned()], listen, true).is_ok(), "{good}");
        }
        for bad in ["*", "a.example", "https://", "https://a.example/path", "ftp://a.example"] {
            assert!(Origins::new(&[bad.to_owned()], listen, true).is_err(), "{bad}");
        }
    }
}
