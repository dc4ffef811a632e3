//! Consul, as far as an agent can be played: blocking queries that wait, go back and fail. No agent
//! was asked.

#![cfg(feature = "consul")]

mod support;

use std::sync::{Arc, Mutex};

use flowgate_discover::consul::follow;
use flowgate_discover::http::{Http, Tls};
use serde_json::{Value, json};
use support::{Folder, Followed, serve};
use tokio::sync::watch;

#[derive(Default)]
struct Known {
    addresses: Vec<&'static str>,
    is_away: bool,
    queries: usize,
}

struct Agent {
    known: Arc<Mutex<Known>>,
    index: Arc<watch::Sender<u64>>,
}

impl Agent {
    fn set(&self, index: u64, addresses: &[&'static str], is_away: bool) {
        let mut known = self.known.lock().unwrap();
        known.addresses = addresses.to_vec();
        known.is_away = is_away;
        drop(known);
        self.index.send_replace(index);
    }
}

async fn agent() -> (Agent, String) {
    let known = Arc::<Mutex<Known>>::default();
    let index = Arc::new(watch::channel(1).0);
    let (shared, indexes) = (Arc::clone(&known), Arc::clone(&index));
    let (address, _) = serve(move |asked, to| {
        let (known, mut index) = (Arc::clone(&shared), indexes.subscribe());
        async move {
            assert!(asked.path.starts_with("/v1/health/service/dns?"), "{}", asked.path);
            let waits_for: u64 = asked.query("index").unwrap().parse().unwrap();
            known.lock().unwrap().queries += 1;
            // It answers what differs from what is known, older or newer.
            let _ = index.wait_for(|index| waits_for == 0 || *index != waits_for).await;
            let now = *index.borrow();
            let (entries, is_away) = {
                let known = known.lock().unwrap();
                let entries: Vec<Value> =
                    known.addresses.iter().map(|address| entry(address)).collect();
                (entries, known.is_away)
            };
            if is_away {
                return to.json(500, "", &json!("No cluster leader")).await;
            }
            to.json(200, &format!("x-consul-index: {now}\r\n"), &json!(entries)).await;
        }
    })
    .await;
    (Agent { known, index }, format!("http://{address}"))
}

fn entry(address: &str) -> Value {
    json!({
        "Node": { "Address": "10.9.9.9" },
        "Service": { "Address": address, "Port": 53, "Weights": { "Passing": 1, "Warning": 1 } },
        "Checks": [{ "CheckID": "dns", "Status": "passing" }],
    })
}

#[tokio::test]
async fn a_service_is_followed_through_changes_failures_and_a_new_history() {
    let folder = Folder::new("consul");
    let (agent, address) = agent().await;
    agent.set(10, &["10.0.0.1"], false);
    let http = Http::new(&Tls::default(), Vec::new()).unwrap();
    let followed = Followed::start(&folder, |sets| async move {
        follow(&http, &address, "dns", None, &sets).await;
    });
    followed.says(&["10.0.0.1:53"]).await;
    agent.set(11, &["10.0.0.1", "10.0.0.2"], false);
    followed.says(&["10.0.0.1:53", "10.0.0.2:53"]).await;

    agent.set(12, &["10.0.0.7"], true);
    let asked = agent.known.lock().unwrap().queries;
    let again = || agent.known.lock().unwrap().queries > asked + 1;
    support::eventually(again, || "another try".to_owned()).await;
    assert_eq!(support::read(&followed.file).unwrap().len(), 2, "a failure changes nothing");

    // The servers were set up again: their count begins again.
    agent.set(3, &["10.0.0.3"], false);
    followed.says(&["10.0.0.3:53"]).await;
    agent.set(4, &["10.0.0.3", "10.0.0.4"], false);
    followed.says(&["10.0.0.3:53", "10.0.0.4:53"]).await;
}
