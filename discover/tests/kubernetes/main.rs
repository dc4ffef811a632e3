//! Kubernetes, as far as an API can be played: lists and watches of endpoint slices by a server that
//! resets connections, forgets its history and lags. No cluster was asked.

#![cfg(feature = "kubernetes")]

mod api;
mod end_to_end;
#[path = "../support/mod.rs"]
mod support;

use api::{Api, followed};
use support::{Folder, eventually};

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
