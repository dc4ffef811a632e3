//! The admin API: what is at which path, and who may ask for it.
//!
//! | path | method | what |
//! |---|---|---|
//! | `/` | GET | the status page |
//! | `/status`, `/flows`, `/metrics` | GET | how things stand |
//! | `/history` | GET | the last minutes, where `admin.http` has a page to show them |
//! | `/ready`, `/live` | GET | 200 or 503, for orchestrators |
//! | `/reload`, `/drain`, `/undrain`, `/weight`, `/upgrade`, `/stop` | POST | changes, on the control socket only |
//! | `/explain` | GET | where a client's datagrams would go, and why, on the control socket only |
//! | `/snapshot` | GET | what the process is, on the control socket only |
//! | `/record` | GET | a recording from now on, on the control socket only |
//! | `/trace` | GET | what is decided from now on, a line of JSON each, on the control socket only |

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request as HttpRequest, Response as HttpResponse, StatusCode, Uri};
use serde::Serialize;
use tokio::sync::Semaphore;
use tracing::error;

use super::access::Access;
use super::exposition::Format;
use super::page;
use super::reports::{Reports, View};
use super::request::{
    FlowFilter, Handler, RecordRequest, Request, Response, TraceQuery, TraceRequest, network,
};
use super::stream::{Feed, StreamBody};
use crate::observe::record::{self, RecordOptions};
use crate::observe::trace;
use crate::recording::file::RecordingHead;
use crate::sys::clock::Clock;
use crate::sys::process;

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

/// JSON, a document on each line.
const LINES: &str = "application/x-ndjson";

/// The most bytes of a request's body.
const MAX_BODY: usize = 64 << 10;

/// How long a client may take to send a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// How soon the control plane is to answer in order to count as alive.
const LIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is read, by path.
const READ: [&str; 7] = ["/", "/status", "/history", "/metrics", "/flows", "/ready", "/live"];

/// What changes something, or tells what only owners may know.
const CHANGE: [&str; 10] = [
    "/reload",
    "/drain",
    "/undrain",
    "/weight",
    "/upgrade",
    "/stop",
    "/explain",
    "/snapshot",
    "/trace",
    "/record",
];

/// What of that is read all the same.
const TOLD_TO_OWNERS: [&str; 4] = ["/explain", "/snapshot", "/trace", "/record"];

/// The most traces and recordings at once: each takes time of the workers.
const MAX_TRACES: usize = 4;

/// Shorter answers are not worth the time that it takes to compress them.
const MIN_GZIPPED: usize = 1_024;

type Body = Full<Bytes>;

/// An answer that is there, or one that goes on.
pub(super) type AnyBody = Either<Body, StreamBody>;

/// Finds what a request asks for.
pub(super) struct Router {
    /// Whether this is the control socket, on which changes can be asked for.
    is_control: bool,
    host_name: Option<String>,
    reports: Reports,
    handler: Handler,
    /// Room for traces and recordings.
    traces: Arc<Semaphore>,
}

impl Router {
    pub(super) fn new(is_control: bool, reports: Reports, handler: Handler) -> Self {
        let host_name = process::host_name().map(|name| name.to_ascii_lowercase());
        let traces = Arc::new(Semaphore::new(MAX_TRACES));
        Self { is_control, host_name, reports, handler, traces }
    }

    /// Answers one request.
    pub(super) async fn respond(
        &self,
        request: HttpRequest<Incoming>,
        access: &Access,
    ) -> HttpResponse<AnyBody> {
        let access = access.of_request(request.headers());
        if let Some(refusal) = self.refusal(&request, &access) {
            return refusal.map(Either::Left);
        }
        let is_stream = matches!(request.uri().path(), "/trace" | "/record");
        if is_stream && request.method() == Method::GET {
            return match self.stream(request.uri()).await {
                Ok(stream) => stream.map(Either::Right),
                Err(refusal) => refusal.map(Either::Left),
            };
        }
        let takes_gzip = takes_gzip(request.headers());
        let response = self.route(request).await;
        if takes_gzip { gzipped(response).await } else { response }.map(Either::Left)
    }

    /// Why a request is not answered, if it is not.
    fn refusal(
        &self,
        request: &HttpRequest<Incoming>,
        access: &Access,
    ) -> Option<HttpResponse<Body>> {
        if let Access::None(reason) = access {
            return Some(refuse(StatusCode::FORBIDDEN, reason));
        }
        if request.headers().get_all(header::HOST).iter().count() > 1 {
            let advice = "A request has one Host header (RFC 9112, section 3.2).\n";
            return Some(answer(StatusCode::BAD_REQUEST, PLAIN, advice));
        }
        let own = self.host_name.as_deref();
        if !self.is_control && !is_own_name(request.uri(), request.headers(), own) {
            let advice = "This address answers only requests to localhost, an IP address or this \
                          machine's name, so that no web page can read it. A proxy in front of it \
                          must set the Host header so.\n";
            return Some(answer(StatusCode::FORBIDDEN, PLAIN, advice));
        }
        let path = request.uri().path();
        let is_read = READ.contains(&path);
        if !(is_read || self.is_control && CHANGE.contains(&path)) {
            return Some(self.not_found(path));
        }
        let allowed = if is_read || TOLD_TO_OWNERS.contains(&path) { "GET, HEAD" } else { "POST" };
        if !allowed.split(", ").any(|method| method == request.method().as_str()) {
            let refusal = format!("{path} takes {allowed}.\n");
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, refusal);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            return Some(response);
        }
        if !is_read && *access != Access::Full {
            return Some(refuse(
                StatusCode::FORBIDDEN,
                "members of the group flowgate may read and not change; run this as root or as the \
                 user that flowgate runs as",
            ));
        }
        None
    }

    /// Answers a request that is in order.
    async fn route(&self, request: HttpRequest<Incoming>) -> HttpResponse<Body> {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/" => page_answer(),
            "/live" => self.live().await,
            "/ready" => self.ready().await,
            // What was asked for before is in it: nothing is kept for a moment, as for scrapers.
            "/status" if self.is_control => self.ask(Request::Status).await,
            "/status" => self.report(View::Json, "application/json").await,
            "/history" => self.report(View::History, "application/json").await,
            "/metrics" => {
                let format = wanted_format(request.headers());
                self.report(View::Metrics(format), format.content_type()).await
            }
            "/flows" => match flow_filter(request.uri().query().unwrap_or_default()) {
                Ok(filter) => self.ask(Request::Flows { filter }).await,
                Err(reason) => refuse(StatusCode::BAD_REQUEST, &reason),
            },
            "/explain" => match explain_query(request.uri().query().unwrap_or_default()) {
                Ok(explain) => self.ask(explain).await,
                Err(reason) => refuse(StatusCode::BAD_REQUEST, &reason),
            },
            "/snapshot" => self.ask(Request::Snapshot).await,
            // Of a HEAD only the head is sent.
            "/trace" | "/record" => answer(StatusCode::OK, LINES, ""),
            _ => match parse_change(&path[1..], request.into_body()).await {
                Ok(change) => self.ask(change).await,
                Err(reason) => refuse(StatusCode::BAD_REQUEST, &reason),
            },
        }
    }

    fn not_found(&self, path: &str) -> HttpResponse<Body> {
        if CHANGE.contains(&path) {
            let advice = "This address is for reading. Ask on the control socket: \
                          `curl --unix-socket PATH http://flowgate/...`, or `flowgate help`.\n";
            return answer(StatusCode::FORBIDDEN, PLAIN, advice);
        }
        let change: &[&str] = if self.is_control { &CHANGE } else { &[] };
        let paths = [&READ, change].concat().join(", ");
        answer(StatusCode::NOT_FOUND, PLAIN, format!("Here are {paths}.\n"))
    }

    /// Begins a trace or a recording.
    ///
    /// # Errors
    ///
    /// The answer that says why not.
    async fn stream(&self, uri: &Uri) -> Result<HttpResponse<StreamBody>, HttpResponse<Body>> {
        let wrong = |reason: String| refuse(StatusCode::BAD_REQUEST, &reason);
        let query = uri.query().unwrap_or_default();
        let (content_type, request, feed, time) = if uri.path() == "/trace" {
            let (query, time) = trace_query(query).map_err(wrong)?;
            let (sender, feed) = trace::channel();
            let request = Request::Trace(TraceRequest { query, sender });
            (LINES, request, Feed::Trace(feed), time)
        } else {
            let (options, time) = record_query(query).map_err(wrong)?;
            let (sender, feed) = record::channel(RecordingHead {
                flowgate: env!("CARGO_PKG_VERSION").to_owned(),
                time: Clock::start().unix_time().as_secs_f64(),
                sample: options.sample,
                anonymised: options.anonymise.is_some(),
            });
            let request = Request::Record(RecordRequest { options, sender });
            ("application/octet-stream", request, Feed::Record(feed), time)
        };
        let permit = Arc::clone(&self.traces).try_acquire_owned().map_err(|_| {
            let reason =
                format!("there are {MAX_TRACES} traces and recordings already; end one of them");
            refuse(StatusCode::CONFLICT, &reason)
        })?;
        let response = self.ask(request).await;
        if response.status() != StatusCode::OK {
            return Err(response);
        }
        let mut response = answer(StatusCode::OK, content_type, "");
        // What is asked next on this connection would wait for its end.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        Ok(response.map(|_| StreamBody::new(feed, time, permit)))
    }

    /// Asks the control plane, on a thread that may wait.
    async fn ask(&self, request: Request) -> HttpResponse<Body> {
        let handler = Arc::clone(&self.handler);
        match tokio::task::spawn_blocking(move || handler(request)).await {
            Ok(Response::Status(document)) => json(StatusCode::OK, &document),
            Ok(Response::Flows(document)) => json(StatusCode::OK, &document),
            Ok(refused @ Response::Refused { .. }) => json(StatusCode::CONFLICT, &refused),
            Ok(done) => json(StatusCode::OK, &done),
            Err(failure) => {
                error!("answering a request failed, which is a bug: {failure}");
                let reason = "answering failed, which is a bug; see the log of flowgate";
                refuse(StatusCode::INTERNAL_SERVER_ERROR, reason)
            }
        }
    }

    async fn report(&self, view: View, content_type: &'static str) -> HttpResponse<Body> {
        match self.reports.get(view).await {
            Ok(bytes) => {
                let mut response = answer(StatusCode::OK, content_type, bytes);
                response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
                response
            }
            Err(reasons) => {
                let lines = reasons.iter().map(|reason| format!("{}\n", reason.escape_debug()));
                answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, lines.collect::<String>())
            }
        }
    }

    /// Whether the control plane does anything at all.
    async fn live(&self) -> HttpResponse<Body> {
        match tokio::time::timeout(LIVE_TIMEOUT, self.reports.get(View::Ready)).await {
            Ok(_) => answer(StatusCode::OK, PLAIN, "alive\n"),
            Err(_) => {
                let reason = "the control plane does not answer\n";
                answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, reason)
            }
        }
    }

    /// Whether new flows are taken and every cluster can serve them.
    async fn ready(&self) -> HttpResponse<Body> {
        match tokio::time::timeout(LIVE_TIMEOUT, self.reports.get(View::Ready)).await {
            Ok(Ok(reasons)) if reasons.is_empty() => answer(StatusCode::OK, PLAIN, "ready\n"),
            Ok(Ok(reasons)) => answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, reasons),
            Ok(Err(reasons)) => {
                answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, reasons.join("\n") + "\n")
            }
            Err(_) => {
                let reason = "the control plane does not answer\n";
                answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, reason)
            }
        }
    }
}

/// Reads which flows are meant from a query such as `client=10.0.0.0/8&limit=20`.
fn flow_filter(query: &str) -> Result<FlowFilter, String> {
    let mut filter = FlowFilter::default();
    for (key, text) in form_urlencoded::parse(query.as_bytes()) {
        let wrong = |such_as| format!("{key}: {text:?} is not valid; give one such as {such_as}");
        match &*key {
            "client" => filter.client = Some(network(&text).ok_or_else(|| wrong("10.0.0.0/8"))?),
            "backend" => filter.backend = Some(text.parse().map_err(|_| wrong("10.0.0.1:53"))?),
            "listener" => filter.listener = Some(text.into_owned()),
            "limit" => filter.limit = text.parse().map_err(|_| wrong("100"))?,
            _ => {
                return Err(format!(
                    "{key:?} is no key here; there are client, backend, listener and limit"
                ));
            }
        }
    }
    Ok(filter)
}

/// Reads whose datagrams are meant from a query such as `client=192.0.2.7:4711`.
fn explain_query(query: &str) -> Result<Request, String> {
    let (mut client, mut payload) = (None, None);
    for (key, text) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "client" => {
                let any_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0));
                let address = text.parse::<SocketAddr>().or_else(|_| any_port());
                client = Some(address.map_err(|_| {
                    format!("client: {text:?} is not valid; give one such as 192.0.2.7:4711")
                })?);
            }
            "payload" => payload = Some(text.into_owned()),
            _ => return Err(format!("{key:?} is no key here; there are client and payload")),
        }
    }
    let client = client.ok_or("client: missing; give one such as 192.0.2.7:4711")?;
    Ok(Request::Explain { client, payload })
}

/// Reads what a trace is to be about from a query such as `client=10.0.0.0/8&drops=true&for=30s`, and
/// how long it lasts.
fn trace_query(query: &str) -> Result<(TraceQuery, Option<Duration>), String> {
    let (mut trace, mut time) = (TraceQuery::default(), None);
    for (key, text) in form_urlencoded::parse(query.as_bytes()) {
        let wrong = |such_as| format!("{key}: {text:?} is not valid; give one such as {such_as}");
        let flag = || text.parse().map_err(|_| wrong("true or false"));
        match &*key {
            "client" => trace.client = Some(network(&text).ok_or_else(|| wrong("10.0.0.0/8"))?),
            "backend" => trace.backend = Some(text.into_owned()),
            "drops" => trace.drops = flag()?,
            "payload" => trace.payload = flag()?,
            "for" => time = Some(humantime::parse_duration(&text).map_err(|_| wrong("30s"))?),
            _ => {
                return Err(format!(
                    "{key:?} is no key here; there are client, backend, drops, payload and for"
                ));
            }
        }
    }
    Ok((trace, time))
}

/// Reads what a recording is to be from a query such as `sample=0.01&for=10m`, and how long it lasts.
fn record_query(query: &str) -> Result<(RecordOptions, Option<Duration>), String> {
    let mut options = RecordOptions { sample: 1.0, payload: None, anonymise: None };
    let mut time = None;
    for (key, text) in form_urlencoded::parse(query.as_bytes()) {
        let wrong = |such_as| format!("{key}: {text:?} is not valid; give one such as {such_as}");
        match &*key {
            "sample" => {
                options.sample = text.parse().map_err(|_| wrong("0.01"))?;
                if !(options.sample > 0.0 && options.sample <= 1.0) {
                    return Err(wrong("0.01, above 0 and up to 1"));
                }
            }
            "payload" => options.payload = Some(text.parse().map_err(|_| wrong("64"))?),
            "anonymise" => {
                let seed = || process::random_seed().map_err(|error| error.to_string());
                if text.parse().map_err(|_| wrong("true or false"))? {
                    options.anonymise = Some([seed()?, seed()?]);
                }
            }
            "for" => time = Some(humantime::parse_duration(&text).map_err(|_| wrong("10m"))?),
            _ => {
                return Err(format!(
                    "{key:?} is no key here; there are sample, payload, anonymise and for"
                ));
            }
        }
    }
    Ok((options, time))
}

/// Reads a request to change something: the path names it, and the body, if there is one, is a JSON
/// object of its details.
async fn parse_change(command: &str, body: Incoming) -> Result<Request, String> {
    let bytes = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await;
    let bytes = bytes
        .map_err(|_| format!("the body took longer than {} s", BODY_TIMEOUT.as_secs()))?
        .map_err(|_| format!("the body is longer than {MAX_BODY} bytes, or broke off"))?
        .to_bytes();
    Request::from_parts(command, &bytes)
}

fn json(status: StatusCode, document: &impl Serialize) -> HttpResponse<Body> {
    match serde_json::to_vec(document) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            answer(status, "application/json", bytes)
        }
        Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{error}\n")),
    }
}

fn refuse(status: StatusCode, reason: &str) -> HttpResponse<Body> {
    json(status, &Response::refused(reason))
}

/// The page. What it may load and run is what it brings along, marked with a number that nobody
/// can guess.
fn page_answer() -> HttpResponse<Body> {
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
) -> HttpResponse<Body> {
    let mut response = HttpResponse::new(Full::new(body.into()));
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

/// Whether a client understands gzip (RFC 9110, section 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().flat_map(|v| v.to_str().ok());
    let mut by_any = None;
    for coding in accepted.flat_map(|value| value.split(',')) {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q="));
        let is_wanted = weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|q| q > 0.0));
        match name.as_str() {
            "gzip" | "x-gzip" => return is_wanted,
            "*" => by_any = Some(is_wanted),
            _ => {}
        }
    }
    by_any.unwrap_or(false)
}

/// The same answer in fewer bytes, where there are some to be saved.
async fn gzipped(response: HttpResponse<Body>) -> HttpResponse<Body> {
    let (mut head, body) = response.into_parts();
    let Ok(body) = body.collect().await;
    let body = body.to_bytes();
    if body.len() < MIN_GZIPPED {
        return HttpResponse::from_parts(head, Full::new(body));
    }
    // It is memory that is written into.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    let Ok(compressed) = encoder.write_all(&body).and_then(|()| encoder.finish()) else {
        return HttpResponse::from_parts(head, Full::new(body));
    };
    head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    head.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    HttpResponse::from_parts(head, Full::new(compressed.into()))
}

fn wanted_format(headers: &HeaderMap) -> Format {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    Format::negotiate(&accept.collect::<Vec<_>>().join(","))
}

/// Whether a request is to a name that is this machine's: no name at all, an IP address, `localhost`
/// or the host name. A page of some other site can only make its own name lead here
/// (DNS rebinding).
fn is_own_name(uri: &Uri, headers: &HeaderMap, own: Option<&str>) -> bool {
    let host = match (uri.host(), headers.get(header::HOST)) {
        (Some(host), _) => host,
        (None, Some(host)) => host.to_str().map_or("?", without_port),
        (None, None) => return true,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    host.parse::<IpAddr>().is_ok()
        || host == "localhost"
        || host.ends_with(".localhost")
        || own.is_some_and(|own| !own.is_empty() && host == own)
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
        is_own_name(&Uri::from_static(uri), &headers, Some("node1"))
    }

    #[test]
    fn a_name_of_another_site_is_not_local() {
        for host in [
            "localhost",
            "node1:9464",
            "LOCALHOST:9464",
            "a.localhost:1",
            "127.0.0.1",
            "127.0.0.1:9464",
        ] {
            assert!(is_local("/", Some(host)), "{host}");
        }
        for host in ["[::1]:9464", "[::1]", "10.0.0.1"] {
            assert!(is_local("/", Some(host)), "{host}");
        }
        assert!(is_local("/", None));
        for host in [
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.a",
            "node1.evil",
            "",
        ] {
            assert!(!is_local("/", Some(host)), "{host}");
        }
    }

    #[test]
    fn gzip_is_for_those_who_ask_for_it() {
        let takes = |accepted: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted));
            takes_gzip(&headers)
        };
        for accepted in ["gzip", "br, GZIP;q=0.5", "*", "identity, *;q=0.1", "gzip, *;q=0"] {
            assert!(takes(accepted), "{accepted}");
        }
        for accepted in ["", "br", "gzip;q=0", "gzip;q=0, *", "identity", "*;q=0", "gzip;q=x"] {
            assert!(!takes(accepted), "{accepted}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn the_name_in_the_request_line_counts_before_the_header() {
        assert!(!is_local("http://evil.example/", Some("localhost")));
        assert!(is_local("http://localhost:9464/", Some("evil.example")));
    }
}
