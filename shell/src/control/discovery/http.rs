//! An HTTP server that is asked again and again.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CACHE_CONTROL, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use super::{Followed, jittered};

/// How long an answer may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer that is read.
const MAX_LEN: usize = 64 << 20;

/// However long an answer is good for, it is asked for again no sooner and no later than this.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(60 * 60);

type Http = Client<HttpConnector, Empty<Bytes>>;

/// An answer, and for how long it is good.
struct Answer {
    /// None: it is as it was.
    body: Option<Bytes>,
    etag: Option<HeaderValue>,
    good_for: Option<Duration>,
}

pub(super) async fn follow(url: &str, interval: Duration, followed: &mut Followed) {
    let http = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
    let mut etag = None;
    let mut good_for = interval;
    loop {
        let asked = tokio::time::timeout(REPLY_TIMEOUT, ask(&http, url, etag.clone())).await;
        let answer = asked.unwrap_or_else(|_| Err(format!("no answer within {REPLY_TIMEOUT:?}")));
        let failed = match answer {
            Ok(answer) => {
                // What is as it was stays good for as long, unless it says otherwise (RFC 9111, 4.3.4).
                let as_it_was = if answer.body.is_some() { interval } else { good_for };
                good_for = answer.good_for.unwrap_or(as_it_was);
                match answer.body {
                    Some(body) => {
                        let failed = followed.learn(flowgate_config::parse_found(&body));
                        // What is of no use, such as an empty set, is asked for anew.
                        etag = answer.etag.filter(|_| failed.is_none());
                        failed
                    }
                    None if etag.is_none() => followed.learn(Err(
                        "the server answers 304 Not Modified to a question without a condition"
                            .into(),
                    )),
                    // There is an answer, and it is the one that we have.
                    None => {
                        followed.recovered();
                        None
                    }
                }
            }
            Err(why) => followed.learn(Err(why)),
        };
        tokio::time::sleep(failed.unwrap_or_else(|| jittered(good_for))).await;
    }
}

async fn ask(http: &Http, url: &str, etag: Option<HeaderValue>) -> Result<Answer, String> {
    let mut request = Request::get(url).header(ACCEPT, "application/json");
    if let Some(etag) = etag {
        request = request.header(IF_NONE_MATCH, etag);
    }
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let response = http.request(request).await.map_err(|error| chain(&error))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let read = Limited::new(response.into_body(), MAX_LEN).collect().await;
    let body = read.map_err(|error| chain(error.as_ref()))?.to_bytes();
    let body = match status {
        StatusCode::OK => Some(body),
        StatusCode::NOT_MODIFIED => None,
        _ => return Err(format!("the server answers {status}")),
    };
    Ok(Answer { body, etag: headers.get(ETAG).cloned(), good_for: good_for(&headers) })
}

/// How long `Cache-Control` says that an answer is good.
fn good_for(headers: &HeaderMap) -> Option<Duration> {
    let control = headers.get(CACHE_CONTROL)?.to_str().ok()?;
    let age = control.split(',').find_map(|part| part.trim().strip_prefix("max-age="))?;
    let seconds = age.parse().ok()?;
    Some(Duration::from_secs(seconds).clamp(MIN_INTERVAL, MAX_INTERVAL))
}

/// What went wrong, with what it came from.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_good_as_long_as_it_says_within_reason() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static(value))])
        };
        assert_eq!(good_for(&headers("private, max-age=7")), Some(Duration::from_secs(7)));
        assert_eq!(good_for(&headers("max-age=0")), Some(MIN_INTERVAL));
        assert_eq!(good_for(&headers("max-age=999999")), Some(MAX_INTERVAL));
        assert_eq!(good_for(&headers("no-store")), None);
        assert_eq!(good_for(&HeaderMap::new()), None);
    }
}
