//! A service of Consul, by blocking queries of its health.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Deserialize;
use tracing::{info, warn};

use crate::http::{Http, HttpError};
use crate::{Backend, Backends, Backoff, Sets};

/// For how long a query waits for something to change.
const WAIT: Duration = Duration::from_secs(60);
/// How much longer than that an answer may take: Consul adds up to a sixteenth, at random.
const GRACE: Duration = Duration::from_secs(15);
/// Between two queries, so that a service that changes all the time does not keep us busy.
const REST: Duration = Duration::from_millis(100);

/// Follows one service at the agent at `address`, such as `http://127.0.0.1:8500`, for ever.
///
/// Who passes all checks serves with the weight that it has for that, who has a warning with the
/// weight for that, who is critical is left out, and who is in maintenance drains. The service's
/// metadata may say `backup`, `drain`, `server_id` and `weight`.
pub async fn follow(http: &Http, address: &str, service: &str, tag: Option<&str>, sets: &Sets) {
    let mut backoff = Backoff::default();
    let mut index = 0;
    loop {
        let url = url(address, service, tag, index);
        match http.get::<Vec<Entry>>(&url, WAIT + GRACE).await {
            Ok((entries, headers)) => {
                if backoff.failures() > 0 {
                    info!(service, "consul answers again");
                }
                backoff.worked();
                let next = headers.get("x-consul-index").and_then(|value| value.to_str().ok());
                index = next_index(index, next.and_then(|value| value.parse().ok()));
                sets.send_if_modified(|known| {
                    let backends = Some(backends(&entries));
                    let is_new = *known != backends;
                    *known = backends;
                    is_new
                });
                tokio::time::sleep(REST).await;
            }
            Err(error) => {
                if backoff.failures() == 0 {
                    warn!(service, "consul: {error}; keeping what is known, and trying again");
                }
                // What it knew when it answered last may be another server's number.
                index = 0;
                let wait = match error {
                    // Nothing is wrong with the way to it: no use in asking at once.
                    HttpError::Senseless(_) => backoff.failed().max(Duration::from_secs(1)),
                    _ => backoff.failed(),
                };
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// What to wait for a change from: a number that has gone back is of another history, and a query
/// without one is answered at once.
fn next_index(former: u64, next: Option<u64>) -> u64 {
    match next {
        Some(next) if next >= former => next.max(1),
        _ => 0,
    }
}

fn url(address: &str, service: &str, tag: Option<&str>, index: u64) -> String {
    let address = address.trim_end_matches('/');
    let mut url = format!("{address}/v1/health/service/{}", encoded(service));
    let _ = write!(url, "?index={index}&wait={}s", WAIT.as_secs());
    if let Some(tag) = tag {
        let _ = write!(url, "&tag={}", encoded(tag));
    }
    url
}

/// As a part of a URL.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Vec<Check>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(default)]
    address: String,
    port: u16,
    #[serde(default)]
    meta: Option<HashMap<String, String>>,
    weights: Option<Weights>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Deserialize)]
struct Check {
    #[serde(rename = "CheckID")]
    id: String,
    #[serde(rename = "Status")]
    status: String,
}

fn backends(entries: &[Entry]) -> Backends {
    let mut backends = Backends::default();
    for entry in entries {
        let service = &entry.service;
        // A service without an address has its node's.
        let host = match service.address.as_str() {
            "" => entry.node.address.as_str(),
            own => own,
        };
        let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
        let address = if is_v6 {
            format!("[{host}]:{}", service.port)
        } else {
            format!("{host}:{}", service.port)
        };
        if let Some(backend) = backend(entry) {
            backends.insert(address, backend);
        }
    }
    backends.without_draining_all()
}

/// What an instance is; nothing where it does not serve.
fn backend(entry: &Entry) -> Option<Backend> {
    let in_maintenance = |check: &Check| {
        check.id == "_node_maintenance" || check.id.starts_with("_service_maintenance:")
    };
    let (maintenance, checks): (Vec<_>, Vec<_>) =
        entry.checks.iter().partition(|check| in_maintenance(check));
    if checks.iter().any(|check| check.status == "critical") {
        return None;
    }
    let weights = entry.service.weights.unwrap_or(Weights { passing: 1, warning: 1 });
    let has_warning = checks.iter().any(|check| check.status == "warning");
    let meta = |key: &str| entry.service.meta.as_ref()?.get(key).map(String::as_str);
    let is = |key: &str| meta(key) == Some("true");
    let own = meta("weight").and_then(|weight| weight.parse().ok());
    let weight = own.unwrap_or(if has_warning { weights.warning } else { weights.passing });
    Some(Backend {
        // A weight of nothing is Consul's way to say: no new ones.
        weight: weight.max(1),
        backup: is("backup"),
        drain: !maintenance.is_empty() || is("drain") || weight == 0,
        server_id: meta("server_id").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(entries: serde_json::Value) -> String {
        backends(&serde_json::from_value::<Vec<Entry>>(entries).unwrap()).to_json()
    }

    fn entry(address: &str, checks: &[(&str, &str)]) -> serde_json::Value {
        let checks: Vec<_> =
            checks.iter().map(|(id, status)| json!({ "CheckID": id, "Status": status })).collect();
        json!({
            "Node": { "Node": "n", "Address": "10.9.9.9" },
            "Service": {
                "Address": address, "Port": 53, "Meta": null,
                "Weights": { "Passing": 10, "Warning": 2 },
            },
            "Checks": checks,
        })
    }

    #[test]
    fn checks_say_who_serves_and_with_which_weight() {
        let text = set(json!([
            entry("10.0.0.1", &[("serfHealth", "passing"), ("dns", "passing")]),
            entry("10.0.0.2", &[("dns", "warning")]),
            entry("10.0.0.3", &[("dns", "critical")]),
            entry("10.0.0.4", &[("dns", "passing"), ("_service_maintenance:dns-4", "critical")]),
            entry("", &[]),
            entry("2001:db8::1", &[("dns", "passing")]),
        ]));
        let groups: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            groups,
            json!([
                { "targets": ["10.0.0.2:53"], "labels": { "weight": "2" } },
                {
                    "targets": ["10.0.0.1:53", "10.9.9.9:53", "[2001:db8::1]:53"],
                    "labels": { "weight": "10" },
                },
                { "targets": ["10.0.0.4:53"], "labels": { "weight": "10", "drain": "true" } },
            ])
        );
    }

    #[test]
    fn a_number_that_goes_back_begins_anew() {
        assert_eq!(next_index(5, Some(9)), 9);
        assert_eq!(next_index(9, Some(5)), 0);
        assert_eq!(next_index(9, None), 0);
        assert_eq!(next_index(0, Some(0)), 1);
    }

    #[test]
    fn names_are_written_so_that_a_url_can_hold_them() {
        let url = url("http://c:8500/", "a b/c", Some("v1&x"), 7);
        assert_eq!(url, "http://c:8500/v1/health/service/a%20b%2Fc?index=7&wait=60s&tag=v1%26x");
    }
}
