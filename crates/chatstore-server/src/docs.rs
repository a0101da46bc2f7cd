//! The pages a person meets: the landing page at `/` and the API reference at `/docs`.
//!
//! Everything is served from the binary, so both pages work without a network.

use std::io::{Cursor, Read};
use std::sync::OnceLock;

use axum::body::Body;
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    IF_NONE_MATCH, VARY,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;
use zip::{CompressionMethod, ZipArchive};

const LANDING_HTML: &str = include_str!("../assets/index.html");
const DOCS_HTML: &str = include_str!("../assets/docs.html");

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

const LANDING_CSP: &str = "default-src 'none'; style-src 'self'; img-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Swagger UI's style sheet carries its icons as `data:` images, and "Try it out" calls this
/// same server; it needs no inline script and no inline style.
const DOCS_CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// For files that load nothing themselves, should someone open one directly.
const FILE_CSP: &str = "default-src 'none'; frame-ancestors 'none'";

/// Our own files under `/docs/`: name, content type, contents.
const OWN_FILES: [(&str, &str, &[u8]); 3] = [
    ("init.js", JAVASCRIPT, include_bytes!("../assets/docs-init.js")),
    ("style.css", CSS, include_bytes!("../assets/style.css")),
    ("favicon.svg", SVG, include_bytes!("../assets/favicon.svg")),
];

/// Files under `/docs/` from the Swagger UI release: name, content type, path in its archive
/// below the archive's one root folder.
const VENDORED_FILES: [(&str, &str, &str); 4] = [
    ("swagger-ui.css", CSS, "dist/swagger-ui.css"),
    ("swagger-ui-bundle.js", JAVASCRIPT, "dist/swagger-ui-bundle.js"),
    ("swagger-ui-license.txt", TEXT, "LICENSE"),
    ("swagger-ui-notice.txt", TEXT, "NOTICE"),
];

/// One file under `/docs/`.
#[derive(Debug)]
pub struct DocsFile {
    name: &'static str,
    /// The value of `Content-Type`.
    pub content_type: &'static str,
    /// The value of `ETag`, made from the contents; weak, as it names both encodings.
    pub etag: HeaderValue,
    contents: Contents,
}

#[derive(Debug)]
enum Contents {
    Plain(Bytes),
    /// A gzip member around the bytes the archive holds: most clients take it as it is, so
    /// the megabytes it stands for are not kept.
    Gzip(Bytes),
}

impl DocsFile {
    /// The file as it is; `None` if the compressed form does not unpack.
    #[must_use]
    pub fn bytes(&self) -> Option<Bytes> {
        match &self.contents {
            Contents::Plain(bytes) => Some(bytes.clone()),
            Contents::Gzip(_) => {
                VENDORED_FILES.iter().find(|(name, ..)| *name == self.name).and_then(|(_, _, path)| unpack(path))
            }
        }
    }

    /// The file as a gzip stream, where it is kept so.
    #[must_use]
    pub fn gzip(&self) -> Option<Bytes> {
        match &self.contents {
            Contents::Plain(_) => None,
            Contents::Gzip(bytes) => Some(bytes.clone()),
        }
    }

    fn new(name: &'static str, content_type: &'static str, contents: Contents) -> Self {
        let (Contents::Plain(bytes) | Contents::Gzip(bytes)) = &contents;
        let hash = URL_SAFE_NO_PAD.encode(&Sha256::digest(bytes)[..12]);
        let etag = HeaderValue::try_from(format!("W/\"{hash}\"")).expect("base64 is made of visible ASCII");
        Self { name, content_type, etag, contents }
    }
}

/// The file `/docs/{name}`, of a closed list; `None` for any other name.
#[must_use]
pub fn docs_file(name: &str) -> Option<&'static DocsFile> {
    static FILES: OnceLock<Vec<DocsFile>> = OnceLock::new();
    FILES
        .get_or_init(|| {
            let own = OWN_FILES.into_iter().map(|(name, content_type, bytes)| {
                let contents = Contents::Plain(Bytes::from_static(bytes));
                DocsFile::new(name, content_type, contents)
            });
            let vendored = VENDORED_FILES
                .into_iter()
                .filter_map(|(name, content_type, path)| Some(DocsFile::new(name, content_type, vendored(path)?)));
            own.chain(vendored).collect()
        })
        .iter()
        .find(|file| file.name == name)
}

type Archive = ZipArchive<Cursor<&'static [u8]>>;

fn open_entry(path: &str) -> Option<(Archive, usize)> {
    let archive = ZipArchive::new(Cursor::new(SWAGGER_UI_VENDORED)).ok()?;
    // The root folder is named after the release, which this must not depend on.
    let index = (0..archive.len()).find(|&index| {
        let name = archive.name_for_index(index).and_then(Result::ok);
        name.and_then(|name| Some(name.split_once('/')?.1 == path)) == Some(true)
    })?;
    Some((archive, index))
}

fn unpack(path: &str) -> Option<Bytes> {
    let (mut archive, index) = open_entry(path)?;
    let mut bytes = Vec::new();
    let mut entry = archive.by_index(index).ok()?;
    entry.read_to_end(&mut bytes).ok()?;
    Some(bytes.into())
}

/// Puts a gzip header and trailer around an entry's deflate stream: no need to compress again.
fn vendored(path: &str) -> Option<Contents> {
    /// Deflate, no flags, no time, unknown system (RFC 1952).
    const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

    let (mut archive, index) = open_entry(path)?;
    let mut entry = archive.by_index_raw(index).ok()?;
    if entry.compression() != CompressionMethod::Deflated {
        return unpack(path).map(Contents::Plain);
    }
    let mut bytes = HEADER.to_vec();
    entry.read_to_end(&mut bytes).ok()?;
    bytes.extend_from_slice(&entry.crc32().to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(entry.size()).ok()?.to_le_bytes());
    Some(Contents::Gzip(bytes.into()))
}

/// Answers `GET /docs` with the API reference.
pub async fn docs() -> Response {
    let mut response = page(HTML, DOCS_CSP, DOCS_HTML);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The answer to `GET /docs/{name}`; `None` for an unknown name.
#[must_use]
pub fn docs_asset_response(name: &str, request: &HeaderMap) -> Option<Response> {
    let file = docs_file(name)?;
    let mut response = if is_fresh(request, &file.etag) {
        let mut response = page(file.content_type, FILE_CSP, Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().remove(CONTENT_TYPE);
        response
    } else if let Some(gzip) = file.gzip().filter(|_| accepts_gzip(request)) {
        let mut response = page(file.content_type, FILE_CSP, gzip);
        let headers = response.headers_mut();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        page(file.content_type, FILE_CSP, file.bytes()?)
    };
    let headers = response.headers_mut();
    // Names carry no version, so a browser has to ask whether its copy still holds.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    headers.insert(ETAG, file.etag.clone());
    Some(response)
}

/// The landing page at `/`, for browsers.
#[must_use]
pub fn landing_html(version: &str, ready: bool) -> Response {
    let (class, text) = if ready { ("ready", "ready") } else { ("not-ready", "not ready") };
    // The version goes in last, so that nothing in it is taken for a placeholder.
    let html = LANDING_HTML
        .replace("{{status_class}}", class)
        .replace("{{status_text}}", text)
        .replace("{{version}}", &escape_html(version));
    landing(HTML, LANDING_CSP, html)
}

/// The landing page's facts at `/`, for programs.
#[must_use]
pub fn landing_json(version: &str, ready: bool) -> Response {
    let body = serde_json::json!({
        "name": "chatstore",
        "version": version,
        "status": if ready { "ready" } else { "not_ready" },
        "links": {
            "docs": "/docs",
            "openapi": "/openapi.json",
            "health": "/healthz",
            "readiness": "/readyz",
            "api": "/api/v1",
        },
    });
    landing(JSON, FILE_CSP, body.to_string())
}

/// Whether the client would rather have HTML than JSON.
///
/// A client that does not say (`*/*`, or no `Accept` at all) is taken for a program.
#[must_use]
pub fn wants_html(headers: &HeaderMap) -> bool {
    // On equal weights a type the client named beats one its wildcard let in.
    let rank = |kind, subtype| {
        preferences(headers, &ACCEPT)
            .filter_map(|(range, weight)| {
                let specificity = match range.split_once('/')? {
                    ("*", "*") => 0,
                    (k, "*") if k.eq_ignore_ascii_case(kind) => 1,
                    (k, s) if k.eq_ignore_ascii_case(kind) && s.eq_ignore_ascii_case(subtype) => 2,
                    _ => return None,
                };
                Some((specificity, weight))
            })
            // The most specific range decides a type's weight, whatever the others say.
            .max()
            .map_or((0, 0), |(specificity, weight)| (weight, specificity))
    };
    let html = rank("text", "html");
    html.0 > 0 && html > rank("application", "json")
}

fn landing(content_type: &'static str, csp: &'static str, body: String) -> Response {
    let mut response = page(content_type, csp, body);
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn page(content_type: &'static str, csp: &'static str, body: impl Into<Body>) -> Response {
    let headers = [(CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, csp)];
    (headers, body.into()).into_response()
}

/// The items of a header such as `Accept`, each with its weight in thousandths.
fn preferences<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = (&'a str, u16)> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).map(
        |item| {
            let mut parts = item.split(';').map(str::trim);
            let range = parts.next().unwrap_or_default();
            let weight = parts
                .filter_map(|parameter| parameter.split_once('='))
                .find(|(key, _)| key.trim().eq_ignore_ascii_case("q"))
                .map_or(1000, |(_, value)| thousandths(value.trim()));
            (range, weight)
        },
    )
}

/// A weight of `0` to `1` in thousandths; what is no such number counts as a refusal.
fn thousandths(value: &str) -> u16 {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    match whole {
        "1" => 1000,
        "0" if digits && fraction.len() <= 3 => format!("{fraction:0<3}").parse().unwrap_or(0),
        _ => 0,
    }
}

fn accepts_gzip(request: &HeaderMap) -> bool {
    // A client that names gzip decides by that, one that does not by `*`.
    let weight = |wanted: &str| {
        preferences(request, &ACCEPT_ENCODING)
            .find(|(coding, _)| coding.eq_ignore_ascii_case(wanted))
            .map(|(_, weight)| weight)
    };
    weight("gzip").or_else(|| weight("*")).unwrap_or(0) > 0
}

fn is_fresh(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let ours = etag.to_str().map(opaque).unwrap_or_default();
    request
        .get_all(IF_NONE_MATCH)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| tag.trim() == "*" || opaque(tag) == ours)
}

fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn request(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    fn header(response: &Response, name: HeaderName) -> &str {
        response.headers().get(name).unwrap().to_str().unwrap()
    }

    async fn body(response: Response) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    fn names() -> impl Iterator<Item = &'static str> {
        let own = OWN_FILES.iter().map(|(name, ..)| *name);
        own.chain(VENDORED_FILES.iter().map(|(name, ..)| *name))
    }

    #[test]
    fn negotiates_html_only_when_preferred() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let cases = [
            (browser, true),
            ("text/html", true),
            ("TEXT/HTML", true),
            ("text/*", true),
            ("text/html, */*", true),
            ("text/html;q=0.5, */*;q=0.1", true),
            ("application/json;q=0.9, text/html", true),
            ("application/*;q=0.2, text/html;q=0.3", true),
            ("text/html;level=1;q=0.4, application/json;q=0.399", true),
            ("application/json;q=0, */*", true),
            ("*/*", false),
            ("", false),
            ("application/json", false),
            ("text/html, application/json", false),
            ("text/html;q=0.8, application/json", false),
            ("text/html;q=0.4, */*;q=0.8", false),
            ("text/html;q=0, */*;q=0.8", false),
            ("text/html;q=0", false),
            ("text/html;q=nan", false),
            ("text/html;q=2", false),
            ("image/png", false),
            ("nonsense", false),
        ];
        for (accept, expected) in cases {
            assert_eq!(wants_html(&request(ACCEPT, accept)), expected, "{accept:?}");
        }
        assert!(!wants_html(&HeaderMap::new()));
    }

    #[test]
    fn accepts_gzip_unless_refused() {
        let cases = [
            ("gzip, deflate, br", true),
            ("*", true),
            ("GZIP;q=0.001", true),
            ("gzip;q=0, *", false),
            ("br", false),
            ("identity", false),
            ("gzip;q=0.0001", false),
        ];
        for (accept, expected) in cases {
            let headers = request(ACCEPT_ENCODING, accept);
            assert_eq!(accepts_gzip(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn pages_load_only_files_that_exist_here() {
        let pages = ["/", "/docs", "/openapi.json", "/healthz", "/readyz"];
        for html in [LANDING_HTML, DOCS_HTML] {
            let targets: Vec<&str> = [" src=\"", " href=\""]
                .iter()
                .flat_map(|attribute| html.split(attribute).skip(1))
                .map(|rest| rest.split('"').next().unwrap())
                .collect();
            assert!(targets.len() >= 4);
            for target in targets {
                let known = match target.strip_prefix("/docs/") {
                    Some(name) => docs_file(name).is_some(),
                    None => pages.contains(&target),
                };
                assert!(known, "{target}");
            }
            for inline in ["<style", " style=", " on", "javascript:", "<script>"] {
                let found = html.split('<').any(|tag| {
                    let tag = format!("<{}", tag.split('>').next().unwrap());
                    tag.contains(inline)
                });
                assert!(!found, "{inline} is against the policy");
            }
        }
        let css = str::from_utf8(OWN_FILES[1].2).unwrap();
        assert!(!css.contains("url(") && !css.contains("@import"));
        let script = str::from_utf8(OWN_FILES[0].2).unwrap();
        assert!(!script.contains("://") && script.contains("url: \"/openapi.json\""));
    }

    #[test]
    fn files_are_complete() {
        for name in names() {
            let file = docs_file(name).unwrap_or_else(|| panic!("{name} is missing"));
            let bytes = file.bytes().unwrap();
            assert!(!bytes.is_empty(), "{name}");
            if let Some(gzip) = file.gzip() {
                assert!(gzip.starts_with(&[0x1f, 0x8b, 8]));
                let size = u32::try_from(bytes.len()).unwrap().to_le_bytes();
                assert!(gzip.ends_with(&size), "{name}");
                assert!(gzip.len() < bytes.len());
            }
        }
        let bundle = docs_file("swagger-ui-bundle.js").unwrap().bytes().unwrap();
        assert!(bundle.len() > 1_000_000);
        assert!(docs_file("swagger-ui-bundle.js").unwrap().gzip().is_some());
        for name in ["", "index.html", "../Cargo.toml", "dist/swagger-ui.css"] {
            assert!(docs_file(name).is_none(), "{name:?}");
        }
    }

    #[tokio::test]
    async fn every_answer_is_locked_down() {
        let mut answers = vec![(HTML, docs().await), (HTML, landing_html("1", true)), (JSON, landing_json("1", true))];
        for name in names() {
            let content_type = match name.rsplit_once('.').unwrap().1 {
                "css" => CSS,
                "js" => JAVASCRIPT,
                "svg" => SVG,
                _ => TEXT,
            };
            let response = docs_asset_response(name, &HeaderMap::new()).unwrap();
            answers.push((content_type, response));
        }
        for (content_type, response) in &answers {
            assert_eq!(header(response, CONTENT_TYPE), *content_type);
            let policy = header(response, CONTENT_SECURITY_POLICY);
            assert!(policy.starts_with("default-src 'none'; "));
            assert!(policy.contains("frame-ancestors 'none'"));
            assert!(!policy.contains("unsafe") && !policy.contains("  "));
        }
    }

    #[tokio::test]
    async fn files_are_revalidated_and_compressed() {
        let name = "swagger-ui.css";
        let file = docs_file(name).unwrap();
        let plain = docs_asset_response(name, &HeaderMap::new()).unwrap();
        assert!(!plain.headers().contains_key(CONTENT_ENCODING));
        assert_eq!(header(&plain, VARY), "Accept-Encoding");
        let etag = header(&plain, ETAG).to_owned();
        assert_eq!(body(plain).await, file.bytes().unwrap());

        let packed = docs_asset_response(name, &request(ACCEPT_ENCODING, "gzip")).unwrap();
        assert_eq!(header(&packed, CONTENT_ENCODING), "gzip");
        assert_eq!(body(packed).await, file.gzip().unwrap());

        let listed = format!("\"other\", {etag}");
        for known in [etag.as_str(), etag.trim_start_matches("W/"), &listed, "*"] {
            let fresh = docs_asset_response(name, &request(IF_NONE_MATCH, known)).unwrap();
            assert_eq!(fresh.status(), StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(header(&fresh, ETAG), etag);
            assert!(body(fresh).await.is_empty());
        }
        let stale = docs_asset_response(name, &request(IF_NONE_MATCH, "\"other\"")).unwrap();
        assert_eq!(stale.status(), StatusCode::OK);

        assert!(docs_asset_response("nope", &HeaderMap::new()).is_none());
    }

    #[tokio::test]
    async fn landing_page_states_version_and_readiness() {
        let response = landing_html("1.2.3", true);
        assert_eq!(header(&response, VARY), "Accept");
        assert_eq!(header(&response, CACHE_CONTROL), "no-store");
        let html = body(response).await;
        let html = str::from_utf8(&html).unwrap();
        assert!(html.contains("version 1.2.3<"));
        assert!(html.contains("class=\"status ready\">ready<"));
        assert!(!html.contains("{{"));

        let html = body(landing_html("<b>\"&'{{status_text}}", false)).await;
        let html = str::from_utf8(&html).unwrap();
        assert!(html.contains("class=\"status not-ready\">not ready<"));
        assert!(html.contains("&lt;b&gt;&quot;&amp;&#39;{{status_text}}"));
        assert!(!html.contains("<b>"));
    }

    #[tokio::test]
    async fn landing_json_states_the_same() {
        let response = landing_json("1.2.3\"", false);
        assert_eq!(header(&response, VARY), "Accept");
        assert_eq!(header(&response, CACHE_CONTROL), "no-store");
        let json: serde_json::Value = serde_json::from_slice(&body(response).await).unwrap();
        assert_eq!(json["name"], "chatstore");
        assert_eq!(json["version"], "1.2.3\"");
        assert_eq!(json["status"], "not_ready");
        assert_eq!(json["links"]["docs"], "/docs");
        assert_eq!(json["links"]["openapi"], "/openapi.json");
        assert_eq!(json["links"]["health"], "/healthz");
        assert_eq!(json["links"]["readiness"], "/readyz");
        assert_eq!(json["links"]["api"], "/api/v1");
        let json = body(landing_json("1", true)).await;
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["status"], "ready");
    }
}
