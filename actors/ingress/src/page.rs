//! The chat page, out of the binary.
//!
//! The page names its files with their hashes (`app.js?v=…`, put in when the server starts), and under such a name a file may be
//! kept for ever; under its plain name it is asked for again and answered with 304 while it is the same.

use std::collections::BTreeMap;

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use sha2::{Digest, Sha256};

use crate::{api_error::ApiError, app::Shared};

include!(concat!(env!("OUT_DIR"), "/files.rs"));

const INDEX: &str = "index.html";

/// Everything that the page may do: its own scripts, styles and pictures, calls to its own server, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
    connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const FOR_EVER: &str = "public, max-age=31536000, immutable";
const ASK_AGAIN: &str = "no-cache";

/// The page's files by their paths.
#[derive(Debug)]
pub(crate) struct Assets(BTreeMap<&'static str, Asset>);

#[derive(Debug)]
struct Asset {
    bytes: Bytes,
    kind: HeaderValue,
    etag: HeaderValue,
    version: String,
}

impl Assets {
    /// Hashes the files and puts the hashes into the page.
    pub(crate) fn new() -> Self {
        Self::of(FILES)
    }

    fn of(files: &[(&'static str, &'static [u8])]) -> Self {
        let mut assets: BTreeMap<_, _> =
            files.iter().map(|&(name, bytes)| (name, Asset::new(name, Bytes::from_static(bytes)))).collect();
        if let Some(index) = assets.get(INDEX) {
            let page = with_versions(&String::from_utf8_lossy(&index.bytes), &assets);
            assets.insert(INDEX, Asset::new(INDEX, page.into()));
        }
        Self(assets)
    }

    fn answer(&self, path: &str, query: Option<&str>, headers: &HeaderMap) -> Option<Response> {
        let name = path.trim_start_matches('/');
        let asset = self.0.get(if name.is_empty() { INDEX } else { name })?;
        let named = query.and_then(|query| query.strip_prefix("v=")).is_some_and(|version| version == asset.version);
        let known = headers.get(header::IF_NONE_MATCH).is_some_and(|tags| names(tags, &asset.etag));
        let mut response = Response::new(if known { Body::empty() } else { Body::from(asset.bytes.clone()) });
        if known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let out = response.headers_mut();
        out.insert(header::CONTENT_TYPE, asset.kind.clone());
        out.insert(header::ETAG, asset.etag.clone());
        out.insert(header::CACHE_CONTROL, HeaderValue::from_static(if named { FOR_EVER } else { ASK_AGAIN }));
        out.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        out.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        out.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        Some(response)
    }
}

impl Asset {
    fn new(name: &str, bytes: Bytes) -> Self {
        let digest = Sha256::digest(&bytes);
        let version: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let etag = HeaderValue::from_str(&format!("\"{version}\"")).expect("hexadecimal digits are a header value");
        Self { bytes, kind: HeaderValue::from_static(media_type(name)), etag, version }
    }
}

/// Replaces `"app.js"` by `"app.js?v=…"`, with or without a leading slash, for every file.
fn with_versions(page: &str, assets: &BTreeMap<&'static str, Asset>) -> String {
    let mut page = page.to_owned();
    for (name, asset) in assets {
        for slash in ["", "/"] {
            page = page.replace(&format!("\"{slash}{name}\""), &format!("\"{slash}{name}?v={}\"", asset.version));
        }
    }
    page
}

fn names(tags: &HeaderValue, etag: &HeaderValue) -> bool {
    let (Ok(tags), Ok(etag)) = (tags.to_str(), etag.to_str()) else { return false };
    tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag || tag.trim() == "*")
}

fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "webp" => "image/webp",
        "woff2" => "font/woff2",
        "webmanifest" => "application/manifest+json",
        _ => "text/plain; charset=utf-8",
    }
}

/// Serves the page's files; any other path is unknown.
pub(crate) async fn serve(State(app): State<Shared>, request: Request) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let found = app.assets.answer(request.uri().path(), request.uri().query(), request.headers());
    match found {
        Some(response) if reads => response,
        _ => unknown(&request).into_response(),
    }
}

fn unknown(request: &Request) -> ApiError {
    ApiError::not_found("unknown_url", format!("Unknown request URL: {} {}.", request.method(), request.uri().path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &[u8] = b"<script src=\"/app.js\"></script><link href=\"style.css\">";

    fn assets() -> Assets {
        Assets::of(&[("index.html", PAGE), ("app.js", b"1"), ("style.css", b"2")])
    }

    fn header(response: &Response, name: header::HeaderName) -> &str {
        response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    #[test]
    fn the_page_names_its_files_with_their_hashes() {
        let assets = assets();
        let version = &assets.0["app.js"].version;
        let page = String::from_utf8_lossy(&assets.0[INDEX].bytes).into_owned();
        assert!(page.contains(&format!("\"/app.js?v={version}\"")), "{page}");
        assert!(page.contains("\"style.css?v="), "{page}");
        let query = format!("v={version}");
        let kept = assets.answer("/app.js", Some(&query), &HeaderMap::new()).expect("a file");
        assert_eq!(header(&kept, header::CACHE_CONTROL), FOR_EVER);
        let other = assets.answer("/app.js", Some("v=0"), &HeaderMap::new()).expect("a file");
        assert_eq!(header(&other, header::CACHE_CONTROL), ASK_AGAIN);
    }

    #[test]
    fn an_unchanged_file_is_not_sent_again() {
        let assets = assets();
        let first = assets.answer("/", None, &HeaderMap::new()).expect("the page");
        assert_eq!(first.status(), StatusCode::OK);
        assert!(header(&first, header::CONTENT_SECURITY_POLICY).contains("frame-ancestors 'none'"));
        let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone())]);
        assert_eq!(assets.answer("/", None, &headers).expect("the page").status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn other_paths_are_nothing() {
        let assets = assets();
        for path in ["/../Cargo.toml", "/app.js/x", "/%2e%2e/app.js", "/nothing"] {
            assert!(assets.answer(path, None, &HeaderMap::new()).is_none(), "{path}");
        }
    }
}
