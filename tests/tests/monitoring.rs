//! What is shipped for monitoring speaks of metrics that exist: rules for Prometheus, a dashboard for
//! Grafana, the guide.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use flowgate_core::DropReason;
use flowgate_tests::e2e::{Peer, own_address, simple_config};
use flowgate_tests::process::Process;
use flowgate_tests::skip::skip_test;
use regex::Regex;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Each metric that a running process has, with its labels.
fn metrics() -> BTreeMap<String, BTreeSet<String>> {
    let backend = Peer::v4();
    let http = own_address();
    let config = |level: &str| {
        let rest = simple_config("127.0.0.1:0", &[&backend], "");
        format!("[log]\nlevel = {level:?}\n[admin]\nhttp = \"{http}\"\nsocket = {:?}\n{rest}", "S")
    };
    let socket = flowgate_tests::scratch::unused_path("monitoring.sock");
    let config = |level: &str| config(level).replace("\"S\"", &format!("{socket:?}"));
    let mut flowgate = Process::run(FLOWGATE, &config("info"));
    flowgate.address();
    // Some metrics are about the last reload.
    flowgate.rewrite_config(&config("warn"));
    flowgate.signal(nix::sys::signal::Signal::SIGHUP);
    flowgate_tests::e2e::eventually("it is reloaded", || {
        let text = scrape(http)?;
        text.contains("\nflowgate_last_reload_success 1\n").then(|| parse(&text))
    })
}

fn scrape(http: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(http).ok()?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn parse(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let label = Regex::new("[{,]([a-z_]+)=\"").expect("a pattern");
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            all.entry(rest.split(' ').next().expect("a name").to_owned()).or_default();
        } else if let Some((name, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let labels = all.entry(name.to_owned()).or_default();
            let rest = format!("{{{rest}");
            labels.extend(label.captures_iter(&rest).map(|found| found[1].to_owned()));
        }
    }
    all
}

/// What a text says of metrics that is not true.
fn wrong(text: &str, metrics: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mention = Regex::new(r"\b((?:flowgate|process)_[a-z_]*[a-z])\b(?:\{([^}]*)\})?");
    let matcher = Regex::new("([a-z_]+)(?:=~|!~|!=|=)\"").expect("a pattern");
    let mut wrong = Vec::new();
    for found in mention.expect("a pattern").captures_iter(text) {
        let Some(labels) = metrics.get(&found[1]) else {
            wrong.push(format!("there is no {}", &found[1]));
            continue;
        };
        let matchers = found.get(2).map_or("", |matchers| matchers.as_str());
        for matched in matcher.captures_iter(matchers) {
            let label = &matched[1];
            // What has no sample yet has labels all the same.
            let exists = labels.is_empty() || labels.contains(label);
            if !exists && !["instance", "job"].contains(&label) {
                wrong.push(format!("{} has no label {label}", &found[1]));
            }
        }
    }
    wrong
}

/// The queries of a dashboard, wherever they are in it.
fn queries(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str() {
                    Some(text) if ["expr", "query"].contains(&key.as_str()) => {
                        found.push(text.to_owned());
                    }
                    _ => queries(value, found),
                }
            }
        }
        serde_json::Value::Array(all) => all.iter().for_each(|value| queries(value, found)),
        _ => {}
    }
}

#[test]
fn rules_dashboard_and_guide_speak_of_metrics_that_exist() {
    let metrics = metrics();
    assert!(metrics.len() > 25, "{metrics:?}");
    assert_eq!(wrong("flowgate_flows_active{cluster=\"a\"} flowgate_none", &metrics).len(), 2);

    let rules = read("dist/prometheus/flowgate.rules.yml");
    let rules: String = rules.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    assert_eq!(wrong(&rules, &metrics), [""; 0]);

    let dashboard: serde_json::Value =
        serde_json::from_str(&read("dist/grafana/flowgate.json")).expect("JSON");
    let mut all = Vec::new();
    queries(&dashboard, &mut all);
    assert!(all.len() > 20, "{all:?}");
    for query in all {
        assert_eq!(wrong(&query, &metrics), [""; 0], "{query}");
    }
    // Neither takes for an incident what clients are refused on purpose.
    let dashboard_text = read("dist/grafana/flowgate.json");
    for text in [&rules, &dashboard_text] {
        let (_, except) = text.split_once("reason!~").expect("reasons that do not count");
        let (except, _) = except.split_once('}').expect("the end of the selector");
        let except: Vec<_> = except.split(['"', '|', '\\']).collect();
        for reason in DropReason::ALL.iter().filter(|reason| reason.is_on_purpose()) {
            assert!(except.contains(&reason.as_str()), "{reason} is not in {except:?}");
        }
    }
    // No two panels cover each other.
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let at = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(x < 24 && taken.insert((x, y)), "{}", panel["title"]);
            }
        }
    }

    // The guide has a row for each.
    let guide = read("docs/operations.md");
    let rows: String = guide.lines().filter(|line| line.starts_with("| `")).collect();
    for metric in metrics.keys() {
        // Of a histogram there is one for all of its series.
        let ends = ["_bucket", "_sum", "_count"];
        let family = ends.into_iter().find_map(|end| metric.strip_suffix(end));
        if family.is_some_and(|family| metrics.contains_key(family)) {
            continue;
        }
        assert!(rows.contains(&format!("`{metric}`")), "the guide has no row for {metric}");
    }
}

#[test]
fn prometheus_takes_the_rules() {
    let mut promtool = Command::new("promtool");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    promtool.args(["check", "rules"]).arg(root.join("dist/prometheus/flowgate.rules.yml"));
    match promtool.output() {
        Err(error) => skip_test(&format!("promtool (Debian: prometheus): {error}")),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let complaints = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}{complaints}");
            assert!(said.contains(" rules found"), "{said}");
        }
    }
}
