//! etcd itself, where it is installed, and what it rarely does by a server that plays it.

#![cfg(feature = "etcd")]

mod support;

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use flowgate_discover::etcd::follow;
use flowgate_discover::http::{Http, Tls};
use serde_json::{Value, json};
use support::{Folder, Followed, PATIENCE, serve};

/// For how many seconds etcd is away at least. For a proof, set it to 60.
const OUTAGE: &str = "FLOWGATE_OUTAGE";

/// A server with its data in a folder.
struct Etcd {
    process: Child,
    url: String,
    ports: (u16, u16),
    http: Http,
}

impl Etcd {
    /// Starts one that answers; `None`, and a word about it, where it is not installed.
    async fn start(folder: &Path) -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped: etcd is not installed");
            return None;
        }
        loop {
            // Of the ports that are free now, another may take one meanwhile: then others do.
            let free = || TcpListener::bind("127.0.0.1:0").unwrap();
            let (a, b) = (free(), free());
            let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
            let ports = (port(&a), port(&b));
            drop((a, b));
            if let Some(etcd) = Self::start_at(folder, ports).await {
                return Some(etcd);
            }
        }
    }

    async fn start_at(folder: &Path, ports: (u16, u16)) -> Option<Self> {
        let url = format!("http://127.0.0.1:{}", ports.0);
        let peer = format!("http://127.0.0.1:{}", ports.1);
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let http = Http::new(&Tls::default(), Vec::new()).unwrap();
        let mut etcd = Self { process, url, ports, http };
        let end = Instant::now() + PATIENCE;
        while etcd.try_ask("kv/range", &json!({ "key": "AA==" })).await.is_none() {
            if etcd.process.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < end, "etcd never answers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(etcd)
    }

    async fn try_ask(&self, what: &str, body: &Value) -> Option<Value> {
        let url = format!("{}/v3/{what}", self.url);
        self.http.post(&url, body, Duration::from_secs(10)).await.ok()
    }

    async fn put(&self, key: &str, value: &str) -> i64 {
        let body = json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) });
        let answer = self.try_ask("kv/put", &body).await.unwrap();
        answer["header"]["revision"].as_str().unwrap().parse().unwrap()
    }

    async fn delete(&self, key: &str) {
        self.try_ask("kv/deleterange", &json!({ "key": BASE64.encode(key) })).await.unwrap();
    }

    fn followed(&self, folder: &Folder) -> Followed {
        let (http, servers) = (self.http.clone(), vec![self.url.clone()]);
        Followed::start(folder, |sets| async move {
            follow(&http, &servers, "/dns/", &sets).await;
        })
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn keys_come_change_and_go() {
    let folder = Folder::new("etcd-life");
    let Some(etcd) = Etcd::start(&folder.0).await else { return };
    etcd.put("/dns/a", "10.0.0.1:53").await;
    etcd.put("/dnsmasq", "10.0.0.77:53").await;
    let followed = etcd.followed(&folder);
    followed.says(&["10.0.0.1:53"]).await;
    etcd.put("/dns/b", r#"{"address": "10.0.0.2:53", "weight": 3}"#).await;
    followed.says(&["10.0.0.1:53", "10.0.0.2:53 weight=3"]).await;
    etcd.put("/dns/c", "no address").await;
    etcd.put("/dns/b", r#"{"address": "10.0.0.2:53", "drain": true}"#).await;
    followed.says(&["10.0.0.1:53", "10.0.0.2:53 drain"]).await;
    etcd.delete("/dns/b").await;
    followed.says(&["10.0.0.1:53"]).await;
}

#[tokio::test]
async fn a_lease_that_runs_out_takes_its_backend_with_it() {
    let folder = Folder::new("etcd-lease");
    let Some(etcd) = Etcd::start(&folder.0).await else { return };
    let lease = etcd.try_ask("lease/grant", &json!({ "TTL": "5" })).await.unwrap();
    etcd.put("/dns/a", "10.0.0.1:53").await;
    let followed = etcd.followed(&folder);
    let body = json!({
        "key": BASE64.encode("/dns/b"), "value": BASE64.encode("10.0.0.2:53"),
        "lease": lease["ID"],
    });
    etcd.try_ask("kv/put", &body).await.unwrap();
    // Renewed until it has been seen, however slow the machine is.
    let renewing = async {
        loop {
            etcd.try_ask("lease/keepalive", &json!({ "ID": lease["ID"] })).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = followed.says(&["10.0.0.1:53", "10.0.0.2:53"]) => {}
        () = renewing => {}
    }
    followed.says(&["10.0.0.1:53"]).await;
    let left = etcd.try_ask("kv/range", &json!({ "key": BASE64.encode("/dns/b") })).await;
    assert!(left.unwrap().get("kvs").is_none());
}

#[tokio::test]
async fn a_server_that_dies_changes_nothing_and_is_caught_up_with() {
    let folder = Folder::new("etcd-dies");
    let Some(mut etcd) = Etcd::start(&folder.0).await else { return };
    etcd.put("/dns/a", "10.0.0.1:53").await;
    let followed = etcd.followed(&folder);
    followed.says(&["10.0.0.1:53"]).await;
    // Which file it is, and when it was written.
    let written = |file: &Path| {
        let metadata = std::fs::metadata(file).unwrap();
        (metadata.ino(), metadata.modified().unwrap())
    };
    let before = written(&followed.file);

    let outage = std::env::var(OUTAGE).ok().map_or(1, |text| text.parse().expect("seconds"));
    let (away, mut looks) = (Instant::now(), 0);
    etcd.kill();
    while away.elapsed() < Duration::from_secs(outage) {
        followed.says(&["10.0.0.1:53"]).await;
        assert_eq!(written(&followed.file), before, "nobody said anything new");
        looks += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What happens while nobody watches is forgotten: it is at another port then.
    let ports = etcd.ports;
    let mut elsewhere = Etcd::start(&folder.0).await.unwrap();
    let revision = elsewhere.put("/dns/b", "10.0.0.2:53").await;
    elsewhere.delete("/dns/a").await;
    let body = json!({ "revision": revision.to_string() });
    elsewhere.try_ask("kv/compaction", &body).await.unwrap();
    elsewhere.kill();
    assert_eq!(written(&followed.file), before, "nobody said anything new");
    let etcd = loop {
        if let Some(etcd) = Etcd::start_at(&folder.0, ports).await {
            break etcd;
        }
    };
    let (away, back) = (away.elapsed(), Instant::now());
    followed.says(&["10.0.0.2:53"]).await;
    println!(
        "etcd was away for {away:.1?}, the file the same in {looks} looks; caught up with {:.1?} after it was back",
        back.elapsed()
    );
    etcd.put("/dns/c", "10.0.0.3:53").await;
    followed.says(&["10.0.0.2:53", "10.0.0.3:53"]).await;
}

#[tokio::test]
async fn a_watch_of_what_has_been_compacted_reads_all_of_it_again() {
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reads);
    let (address, _) = serve(move |asked, mut to| {
        let reads = Arc::clone(&counted);
        async move {
            if asked.path == "/v3/kv/range" {
                let turn = reads.fetch_add(1, Ordering::SeqCst);
                let value = BASE64.encode(format!("10.0.0.{}:53", turn + 1));
                let pair = json!({ "key": BASE64.encode("/dns/a"), "value": value });
                let body =
                    json!({ "header": { "revision": (5 + turn).to_string() }, "kvs": [pair] });
                return to.json(200, "", &body).await;
            }
            let question: Value = serde_json::from_slice(&asked.body).unwrap();
            let from = question["create_request"]["start_revision"].as_str().unwrap().to_owned();
            to.begin().await;
            to.line(&json!({ "result": { "header": {}, "created": true } })).await;
            if from == "6" {
                let end = json!({ "canceled": true, "compact_revision": "6", "header": {} });
                return to.line(&json!({ "result": end })).await;
            }
            std::future::pending::<()>().await;
        }
    })
    .await;
    let folder = Folder::new("etcd-compacted");
    let http = Http::new(&Tls::default(), Vec::new()).unwrap();
    let followed = Followed::start(&folder, |sets| async move {
        follow(&http, &[format!("http://{address}")], "/dns/", &sets).await;
    });
    followed.says(&["10.0.0.2:53"]).await;
    assert_eq!(reads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn where_one_server_is_away_another_is_asked() {
    let folder = Folder::new("etcd-two");
    let Some(etcd) = Etcd::start(&folder.0).await else { return };
    etcd.put("/dns/a", "10.0.0.1:53").await;
    // Nobody listens at this port of a host's.
    let servers = vec!["http://127.0.0.1:1".to_owned(), etcd.url.clone()];
    let http = etcd.http.clone();
    let followed = Followed::start(&folder, |sets| async move {
        follow(&http, &servers, "/dns/", &sets).await;
    });
    followed.says(&["10.0.0.1:53"]).await;
}
