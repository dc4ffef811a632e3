//! Kubernetes, as far as an API can be played: lists and watches of endpoint slices by a server that
//! resets connections, forgets its history and lags. No cluster was asked.

#![cfg(feature = "kubernetes")]

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use flowgate_discover::kubernetes::{Service, client_of, follow};
use serde_json::{Value, json};
use support::{Answering, Asked, Folder, Followed, eventually, serve};
use tokio::sync::watch;

/// What an API server knows of one service's slices.
#[derive(Default)]
struct Known {
    version: u64,
    slices: BTreeMap<String, Value>,
    /// What happened, by version.
    history: Vec<(u64, Value)>,
    /// Up to where the history is forgotten.
    forgotten: u64,
    lists: usize,
    watches: usize,
    /// How many questions went unanswered while the server was away.
    unanswered: usize,
    /// How a watch of what is forgotten is refused: by an event, or by the answer itself.
    refuses_by_event: bool,
}

/// A server that can be away.
#[derive(Clone)]
struct Api {
    known: Arc<Mutex<Known>>,
    /// Raised with all that happens. Odd while the server is away.
    news: Arc<watch::Sender<u64>>,
    is_away: Arc<watch::Sender<bool>>,
}

impl Api {
    fn new() -> Self {
        Self {
            known: Arc::default(),
            news: Arc::new(watch::channel(0).0),
            is_away: Arc::new(watch::channel(false).0),
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let result = change(&mut self.known.lock().unwrap());
        self.news.send_modify(|news| *news += 1);
        result
    }

    /// Puts a slice of that name; `ready`, `ending` and so on by address.
    fn put(&self, name: &str, endpoints: &[(&str, &str)]) {
        self.with(|known| {
            known.version += 1;
            let slice = slice(name, known.version, endpoints);
            let kind = if known.slices.insert(name.to_owned(), slice.clone()).is_some() {
                "MODIFIED"
            } else {
                "ADDED"
            };
            known.history.push((known.version, json!({ "type": kind, "object": slice })));
        });
    }

    fn delete(&self, name: &str) {
        self.with(|known| {
            known.version += 1;
            let mut slice = known.slices.remove(name).unwrap();
            slice["metadata"]["resourceVersion"] = known.version.to_string().into();
            known.history.push((known.version, json!({ "type": "DELETED", "object": slice })));
        });
    }

    async fn answer(self, asked: Asked, mut to: Answering) {
        assert!(asked.path.contains("kubernetes.io%2Fservice-name%3Ddns"), "{}", asked.path);
        if *self.is_away.borrow() {
            self.with(|known| known.unanswered += 1);
            return;
        }
        if asked.query("watch") != Some("true") && asked.query("watch") != Some("1") {
            let list = self.with(|known| {
                known.lists += 1;
                json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
                    "metadata": { "resourceVersion": known.version.to_string() },
                    "items": known.slices.values().collect::<Vec<_>>(),
                })
            });
            return to.json(200, "", &list).await;
        }
        let from: u64 = asked.query("resourceVersion").unwrap().parse().unwrap();
        let mut news = self.news.subscribe();
        let mut is_away = self.is_away.subscribe();
        let (is_gone, by_event) = self.with(|known| {
            known.watches += 1;
            (from < known.forgotten, known.refuses_by_event)
        });
        if is_gone && !by_event {
            return to.json(410, "", &gone()).await;
        }
        to.begin().await;
        if is_gone {
            return to.line(&json!({ "type": "ERROR", "object": gone() })).await;
        }
        let mut told = from;
        loop {
            let events: Vec<_> = {
                let known = self.known.lock().unwrap();
                let new = known.history.iter().filter(|(version, _)| *version > told);
                new.cloned().collect()
            };
            for (version, event) in events {
                to.line(&event).await;
                told = version;
            }
            tokio::select! {
                _ = news.changed() => {}
                _ = is_away.changed() => return,
            }
        }
    }
}

fn gone() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "reason": "Expired", "code": 410, "message": "too old resource version",
    })
}

fn slice(name: &str, version: u64, endpoints: &[(&str, &str)]) -> Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, state)| {
            let (ready, serving, terminating) = match *state {
                "ready" => (true, true, false),
                "ending" => (false, true, true),
                "ended" => (false, false, true),
                other => panic!("{other}"),
            };
            let conditions =
                json!({ "ready": ready, "serving": serving, "terminating": terminating });
            json!({ "addresses": [address], "conditions": conditions })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "apps", "resourceVersion": version.to_string(),
            "labels": { "kubernetes.io/service-name": "dns" },
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }],
    })
}

async fn followed(api: &Api, folder: &Folder) -> Followed {
    let server = api.clone();
    let (address, _) = serve(move |asked, to| server.clone().answer(asked, to)).await;
    let url = format!("http://{address}").parse().unwrap();
    let client = client_of(kube::Config::new(url)).unwrap();
    let service =
        Service { namespace: Some("apps".to_owned()), name: "dns".to_owned(), port: None };
    Followed::start(folder, |sets| async move { follow(client, &service, &sets).await })
}

#[tokio::test]
async fn pods_come_drain_and_go() {
    let (api, folder) = (Api::new(), Folder::new("k8s-life"));
    api.put("dns-a", &[("10.0.0.1", "ready"), ("10.0.0.2", "ready")]);
    let followed = followed(&api, &folder).await;
    followed.says(&["10.0.0.1:53", "10.0.0.2:53"]).await;
    api.put("dns-a", &[("10.0.0.1", "ready"), ("10.0.0.2", "ending")]);
    followed.says(&["10.0.0.1:53", "10.0.0.2:53 drain"]).await;
    api.put("dns-b", &[("10.0.0.3", "ready")]);
    followed.says(&["10.0.0.1:53", "10.0.0.2:53 drain", "10.0.0.3:53"]).await;
    api.put("dns-a", &[("10.0.0.1", "ready"), ("10.0.0.2", "ended")]);
    followed.says(&["10.0.0.1:53", "10.0.0.3:53"]).await;
    api.delete("dns-b");
    followed.says(&["10.0.0.1:53"]).await;
    assert_eq!(api.with(|known| known.lists), 1, "all but the first came by the watch");
}

#[tokio::test]
async fn a_service_that_loses_all_its_pods_keeps_the_last_ones() {
    let (api, folder) = (Api::new(), Folder::new("k8s-none"));
    api.put("dns-a", &[("10.0.0.1", "ready")]);
    let followed = followed(&api, &folder).await;
    followed.says(&["10.0.0.1:53"]).await;
    api.put("dns-a", &[]);
    api.put("dns-b", &[("10.0.0.9", "ready")]);
    // That came after the empty one.
    followed.says(&["10.0.0.9:53"]).await;
    api.delete("dns-b");
    api.put("dns-a", &[("10.0.0.1", "ready")]);
    followed.says(&["10.0.0.1:53"]).await;
}

#[tokio::test]
async fn an_api_that_is_away_changes_nothing_and_is_caught_up_with() {
    let (api, folder) = (Api::new(), Folder::new("k8s-away"));
    api.put("dns-a", &[("10.0.0.1", "ready")]);
    let followed = followed(&api, &folder).await;
    followed.says(&["10.0.0.1:53"]).await;
    eventually(|| api.with(|known| known.watches) > 0, || "a watch".to_owned()).await;

    api.is_away.send_replace(true);
    eventually(|| api.with(|known| known.unanswered) > 0, || "a question in vain".to_owned()).await;
    api.put("dns-a", &[("10.0.0.1", "ready"), ("10.0.0.2", "ready")]);
    assert_eq!(support::read(&followed.file).unwrap().len(), 1);
    api.is_away.send_replace(false);
    followed.says(&["10.0.0.1:53", "10.0.0.2:53"]).await;
    assert_eq!(api.with(|known| known.lists), 1, "it went on from where the watch broke");
}

async fn history_forgotten(by_event: bool, name: &str) {
    let (api, folder) = (Api::new(), Folder::new(name));
    api.put("dns-a", &[("10.0.0.1", "ready")]);
    let followed = followed(&api, &folder).await;
    followed.says(&["10.0.0.1:53"]).await;
    eventually(|| api.with(|known| known.watches) > 0, || "a watch".to_owned()).await;

    api.is_away.send_replace(true);
    api.put("dns-a", &[("10.0.0.2", "ready")]);
    api.put("dns-b", &[("10.0.0.3", "ready")]);
    api.with(|known| {
        known.forgotten = known.version;
        known.history.clear();
        known.refuses_by_event = by_event;
    });
    api.is_away.send_replace(false);
    followed.says(&["10.0.0.2:53", "10.0.0.3:53"]).await;
    assert!(api.with(|known| known.lists) > 1, "what is forgotten has to be listed again");
    api.delete("dns-b");
    followed.says(&["10.0.0.2:53"]).await;
}

#[tokio::test]
async fn a_history_that_is_forgotten_is_listed_anew() {
    history_forgotten(false, "k8s-410").await;
}

#[tokio::test]
async fn an_event_may_say_that_the_history_is_forgotten() {
    history_forgotten(true, "k8s-410-event").await;
}
