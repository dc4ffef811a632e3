//! An API server, played.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use flowgate_discover::kubernetes::{Service, client_of, follow};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{Answering, Asked, Folder, Followed, serve};

/// What an API server knows of one service's slices.
#[derive(Default)]
pub(crate) struct Known {
    /// Of all its endpoints; 0: 53.
    pub(crate) port: u16,
    pub(crate) version: u64,
    pub(crate) slices: BTreeMap<String, Value>,
    /// What happened, by version.
    pub(crate) history: Vec<(u64, Value)>,
    /// Up to where the history is forgotten.
    pub(crate) forgotten: u64,
    pub(crate) lists: usize,
    pub(crate) watches: usize,
    /// How many questions went unanswered while the server was away.
    pub(crate) unanswered: usize,
    /// How a watch of what is forgotten is refused: by an event, or by the answer itself.
    pub(crate) refuses_by_event: bool,
}

/// A server that can be away.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) known: Arc<Mutex<Known>>,
    /// Raised with all that happens. Odd while the server is away.
    pub(crate) news: Arc<watch::Sender<u64>>,
    pub(crate) is_away: Arc<watch::Sender<bool>>,
}

impl Api {
    pub(crate) fn new() -> Self {
        Self {
            known: Arc::default(),
            news: Arc::new(watch::channel(0).0),
            is_away: Arc::new(watch::channel(false).0),
        }
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Known) -> T) -> T {
        let result = change(&mut self.known.lock().unwrap());
        self.news.send_modify(|news| *news += 1);
        result
    }

    /// Puts a slice of that name; `ready`, `ending` and so on by address.
    pub(crate) fn put(&self, name: &str, endpoints: &[(&str, &str)]) {
        self.with(|known| {
            known.version += 1;
            let slice = slice(name, known, endpoints);
            let kind = if known.slices.insert(name.to_owned(), slice.clone()).is_some() {
                "MODIFIED"
            } else {
                "ADDED"
            };
            known.history.push((known.version, json!({ "type": kind, "object": slice })));
        });
    }

    pub(crate) fn delete(&self, name: &str) {
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

fn slice(name: &str, known: &Known, endpoints: &[(&str, &str)]) -> Value {
    let port = if known.port == 0 { 53 } else { known.port };
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
            "name": name, "namespace": "apps", "resourceVersion": known.version.to_string(),
            "labels": { "kubernetes.io/service-name": "dns" },
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{ "name": "dns", "port": port, "protocol": "UDP" }],
    })
}

pub(crate) async fn followed(api: &Api, folder: &Folder) -> Followed {
    let server = api.clone();
    let (address, _) = serve(move |asked, to| server.clone().answer(asked, to)).await;
    let url = format!("http://{address}").parse().unwrap();
    let client = client_of(kube::Config::new(url)).unwrap();
    let service =
        Service { namespace: Some("apps".to_owned()), name: "dns".to_owned(), port: None };
    Followed::start(folder, |sets| async move { follow(client, &service, &sets).await })
}
