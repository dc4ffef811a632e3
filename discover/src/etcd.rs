//! Keys of etcd, by its JSON gateway: what is below a prefix, and what changes there.
//!
//! Each key below the prefix is one backend. Its value is `10.0.0.1:53`, or an object:
//! `{"address": "10.0.0.1:53", "weight": 2, "backup": true, "drain": true, "server_id": "0a"}`.
//! What else the object holds is not looked at. A backend whose key has a lease goes with it.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::json;
use tracing::{info, warn};

use crate::http::{Http, HttpError};
use crate::{Backend, Backends, Backoff, Sets};

/// How long an answer may take, but for one that waits for changes.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// After how long all is read again, whatever the watch said: it costs little, and a watch that
/// says nothing looks like a quiet one.
const REREAD: Duration = Duration::from_secs(300);

/// Why a watch ended.
enum End {
    /// It was time to read all of it again.
    Due,
    /// What we wanted to go on from has been compacted away, or the server called it off.
    Cancelled(String),
    Failed(HttpError),
}

/// Follows the keys below `prefix`, for ever, at the first of these servers that answers.
pub async fn follow(http: &Http, servers: &[String], prefix: &str, sets: &Sets) {
    let mut backoff = Backoff::default();
    let mut turn = 0;
    while !servers.is_empty() {
        let server = servers[turn % servers.len()].trim_end_matches('/');
        match read_then_watch(http, server, prefix, sets, &mut backoff).await {
            End::Due => {}
            End::Cancelled(why) => {
                info!(server, prefix, "etcd ended the watch: {why}; reading all of it again");
                tokio::time::sleep(backoff.failed()).await;
            }
            End::Failed(error) => {
                if backoff.failures() == 0 {
                    warn!(server, prefix, "etcd: {error}; keeping what is known, trying again");
                }
                turn += 1;
                tokio::time::sleep(backoff.failed()).await;
            }
        }
    }
}

async fn read_then_watch(
    http: &Http,
    server: &str,
    prefix: &str,
    sets: &Sets,
    backoff: &mut Backoff,
) -> End {
    let (mut keys, revision) = match read(http, server, prefix).await {
        Ok(read) => read,
        Err(error) => return End::Failed(error),
    };
    if backoff.failures() > 0 {
        info!(server, prefix, "etcd answers again");
    }
    tell(sets, &keys);
    let watched = watch(http, server, prefix, revision, |events| {
        // It lives as long as it says something.
        backoff.worked();
        for event in events {
            event.happen_to(&mut keys);
        }
        tell(sets, &keys);
    });
    match tokio::time::timeout(REREAD.mul_f64(0.5 + fastrand::f64() / 2.0), watched).await {
        Ok(end) => end,
        Err(_) => {
            backoff.worked();
            End::Due
        }
    }
}

/// All keys below a prefix, and the revision at which they were so.
async fn read(
    http: &Http,
    server: &str,
    prefix: &str,
) -> Result<(BTreeMap<String, String>, i64), HttpError> {
    let question = range(prefix);
    let url = format!("{server}/v3/kv/range");
    let answer: Range = http.post(&url, &question, REPLY_TIMEOUT).await?;
    let keys = answer.kvs.into_iter().map(|pair| (pair.key, pair.value)).collect();
    Ok((keys, answer.header.revision))
}

/// Tells what changes after a revision, until that ends.
async fn watch(
    http: &Http,
    server: &str,
    prefix: &str,
    revision: i64,
    mut on_events: impl FnMut(Vec<Event>),
) -> End {
    let mut request = range(prefix);
    request["start_revision"] = (revision + 1).to_string().into();
    let question = json!({ "create_request": request });
    let mut lines = match http.lines(&format!("{server}/v3/watch"), &question, REPLY_TIMEOUT).await
    {
        Ok(lines) => lines,
        Err(error) => return End::Failed(error),
    };
    loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => return End::Failed(HttpError::BrokeOff("the watch ended".to_owned())),
            Err(error) => return End::Failed(error),
        };
        match serde_json::from_slice::<Message>(&line) {
            Ok(Message { result: Some(result), .. }) if result.canceled => {
                let why = match result.compact_revision {
                    0 => result.cancel_reason,
                    at => format!("revision {} has been compacted, {at} is there", revision + 1),
                };
                return End::Cancelled(why);
            }
            Ok(Message { result: Some(result), .. }) => on_events(result.events),
            Ok(Message { error, .. }) => return End::Cancelled(error.to_string()),
            Err(error) => return End::Failed(error.into()),
        }
    }
}

/// The keys below a prefix, as etcd says it: from it to the first that does not begin with it.
fn range(prefix: &str) -> serde_json::Value {
    let mut end = prefix.as_bytes().to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    match end.last_mut() {
        Some(last) => *last += 1,
        // All keys there are.
        None => end.push(0),
    }
    let start = if prefix.is_empty() { "\0" } else { prefix };
    json!({ "key": BASE64.encode(start), "range_end": BASE64.encode(end) })
}

fn tell(sets: &Sets, keys: &BTreeMap<String, String>) {
    let mut backends = Backends::default();
    for (key, value) in keys {
        match backend(value) {
            Ok((address, backend)) => backends.insert(address, backend),
            Err(why) => warn!(key = decoded(key), "not a backend: {why}"),
        }
    }
    let backends = Some(backends.without_draining_all());
    sets.send_if_modified(|known| {
        let is_new = *known != backends;
        *known = backends;
        is_new
    });
}

/// What a value says, which is in base64.
fn backend(value: &str) -> Result<(String, Backend), String> {
    let value = decoded(value);
    let text = value.trim();
    let said = if text.starts_with('{') {
        serde_json::from_str::<Registration>(text).map_err(|error| error.to_string())?
    } else {
        Registration { address: text.to_owned(), ..Registration::default() }
    };
    let is_address = said.address.parse::<std::net::SocketAddr>().is_ok()
        || said.address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains([':', '/', ' ']) && port.parse::<u16>().is_ok()
        });
    if !is_address {
        return Err(format!("{:?} is no address and port", said.address));
    }
    let backend = Backend {
        weight: said.weight.unwrap_or(1),
        backup: said.backup,
        drain: said.drain,
        server_id: said.server_id,
    };
    Ok((said.address, backend))
}

fn decoded(text: &str) -> String {
    String::from_utf8_lossy(&BASE64.decode(text).unwrap_or_default()).into_owned()
}

#[derive(Default, Deserialize)]
struct Registration {
    address: String,
    weight: Option<u32>,
    #[serde(default)]
    backup: bool,
    #[serde(default)]
    drain: bool,
    server_id: Option<String>,
}

#[derive(Deserialize)]
struct Range {
    header: Header,
    #[serde(default)]
    kvs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(deserialize_with = "number")]
    revision: i64,
}

#[derive(Deserialize)]
struct Pair {
    key: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Message {
    result: Option<Watched>,
    #[serde(default)]
    error: serde_json::Value,
}

#[derive(Deserialize)]
struct Watched {
    #[serde(default)]
    events: Vec<Event>,
    #[serde(default)]
    canceled: bool,
    #[serde(default)]
    cancel_reason: String,
    #[serde(default, deserialize_with = "number")]
    compact_revision: i64,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default, rename = "type")]
    kind: String,
    kv: Pair,
}

impl Event {
    fn happen_to(self, keys: &mut BTreeMap<String, String>) {
        // What was put has no kind: etcd does not write what is as usual.
        if self.kind == "DELETE" {
            keys.remove(&self.kv.key);
        } else {
            keys.insert(self.kv.key, self.kv.value);
        }
    }
}

/// The gateway writes long numbers as text.
fn number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Number(i64),
        Text(String),
    }
    match Number::deserialize(deserializer)? {
        Number::Number(number) => Ok(number),
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(value: &str) -> Result<(String, Backend), String> {
        backend(&BASE64.encode(value))
    }

    #[test]
    fn a_value_is_an_address_or_an_object() {
        let plain = ("10.0.0.1:53".to_owned(), Backend::default());
        assert_eq!(said(" 10.0.0.1:53\n"), Ok(plain));
        let text = r#"{"address": "[2001:db8::1]:53", "weight": 2, "drain": true, "server_id": "0a", "zone": "b"}"#;
        let id = Some("0a".to_owned());
        let expected = Backend { weight: 2, drain: true, server_id: id, backup: false };
        assert_eq!(said(text), Ok(("[2001:db8::1]:53".to_owned(), expected)));
        assert!(said("dns.example:53").is_ok());
        for wrong in ["", "10.0.0.1", "2001:db8::1:53", "{\"weight\": 2}", "http://a:1", ":53"] {
            assert!(said(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_prefix_ends_before_what_does_not_begin_with_it() {
        let ends = |prefix: &str| decoded(range(prefix)["range_end"].as_str().unwrap());
        assert_eq!(ends("/dns/"), "/dns0");
        assert_eq!(ends(""), "\0");
    }
}
