//! What is at which path, and who may see it.

use std::net::{IpAddr, SocketAddr};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};

use super::exposition::Format;
use super::page;
use super::reports::{Reports, View};

/// What every answer says about itself: it is what it says it is, it is nobody else's to show, and
/// it is old at once.
const HEADERS: [(&str, &str); 6] = [
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
];

/// What an answer that is not the page may do in a browser: nothing.
const NO_CONTENT: &str = "default-src 'none'; frame-ancestors 'none'";

const PLAIN: &str = "text/plain; charset=utf-8";

/// The pages, and where they come from.
pub(super) struct Site {
    is_local: bool,
    reports: Reports,
}

impl Site {
    pub(super) fn new(address: SocketAddr, reports: Reports) -> Self {
        Self { is_local: address.ip().to_canonical().is_loopback(), reports }
    }

    /// Answers one request. Its body, if it has one, is not read.
    pub(super) async fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if self.is_local && !is_local_name(request.uri(), request.headers()) {
            let advice = "This address answers only requests to localhost or an IP address, so \
                          that no web page can read it. A proxy in front of it must set the Host \
                          header so.\n";
            return answer(StatusCode::FORBIDDEN, PLAIN, advice);
        }
        let path = request.uri().path();
        if !matches!(path, "/" | "/status" | "/metrics") {
            return answer(StatusCode::NOT_FOUND, PLAIN, "Here are /, /status and /metrics.\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let refusal = "Only GET and HEAD do something here.\n";
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, refusal);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/status" => self.report(View::Json, "application/json").await,
            "/metrics" => {
                let format = wanted_format(request.headers());
                self.report(View::Metrics(format), format.content_type()).await
            }
            _ => page_answer(),
        }
    }

    async fn report(&self, view: View, content_type: &'static str) -> Response<Full<Bytes>> {
        match self.reports.get(view).await {
            Ok(bytes) => {
                let mut response = answer(StatusCode::OK, content_type, bytes);
                response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
                response
            }
            Err(reasons) => {
                let lines = reasons.iter().map(|reason| format!("{}\n", reason.escape_debug()));
                answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, lines.collect::<String>())
            }
        }
    }
}

/// The page. What it may load and run is what it brings along, marked with a number that nobody
/// can guess.
fn page_answer() -> Response<Full<Bytes>> {
    let Ok(nonce) = page::nonce() else {
        return answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "No random numbers.\n");
    };
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    let mut response = answer(StatusCode::OK, "text/html; charset=utf-8", page::html(&nonce));
    if let Ok(policy) = HeaderValue::try_from(policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

fn answer(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.extend(
        HEADERS
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))),
    );
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(NO_CONTENT));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn wanted_format(headers: &HeaderMap) -> Format {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    Format::negotiate(&accept.collect::<Vec<_>>().join(","))
}

/// Whether a request is to a name that only this machine has: no name at all, `localhost` or an IP
/// address. A page of some other site can only make its own name lead here.
fn is_local_name(uri: &Uri, headers: &HeaderMap) -> bool {
    let host = match (uri.host(), headers.get(header::HOST)) {
        (Some(host), _) => host,
        (None, Some(host)) => host.to_str().map_or("?", without_port),
        (None, None) => return true,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    host.parse::<IpAddr>().is_ok() || host == "localhost" || host.ends_with(".localhost")
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_local(uri: &'static str, host: Option<&'static str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.extend(host.map(|host| (header::HOST, HeaderValue::from_static(host))));
        is_local_name(&Uri::from_static(uri), &headers)
    }

    #[test]
    fn a_name_of_another_site_is_not_local() {
        for host in ["localhost", "LOCALHOST:9464", "a.localhost:1", "127.0.0.1", "127.0.0.1:9464"]
        {
            assert!(is_local("/", Some(host)), "{host}");
        }
        for host in ["[::1]:9464", "[::1]", "10.0.0.1"] {
            assert!(is_local("/", Some(host)), "{host}");
        }
        assert!(is_local("/", None));
        for host in
            ["evil.example", "evil.example:9464", "localhost.evil.example", "127.0.0.1.a", ""]
        {
            assert!(!is_local("/", Some(host)), "{host}");
        }
    }

    #[test]
    fn the_name_in_the_request_line_counts_before_the_header() {
        assert!(!is_local("http://evil.example/", Some("localhost")));
        assert!(is_local("http://localhost:9464/", Some("evil.example")));
    }
}
