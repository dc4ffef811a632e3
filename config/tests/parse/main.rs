//! From text to configuration, or to every reason why not.

mod accept;
mod affinity;
mod announce;
mod backends;
mod difference;
mod direct;
mod examples;
mod fast_path;
mod health;
mod messages;
mod modes;
mod properties;
mod reach;
mod refused;
mod retry;
mod schema;
mod source;
mod syntax;
mod texts;
mod valid;

use std::net::SocketAddr;

use flowgate_config::{Config, parse};

const MINIMAL: &str = r#"
[[listener]]
address = "0.0.0.0:53"
cluster = "resolvers"

[cluster.resolvers]
backends = ["10.0.0.1:53"]
"#;

fn valid(text: &str) -> Config {
    parse(text, "flowgate.toml").unwrap_or_else(|errors| panic!("{errors}"))
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// The minimal configuration with lines added to its cluster.
fn with_cluster_lines(lines: &str) -> Config {
    valid(&format!("{MINIMAL}\n{lines}"))
}

/// The minimal configuration with lines added to its listener.
fn with_listener_lines(lines: &str) -> Config {
    valid(&MINIMAL.replacen("[cluster", &format!("{lines}\n[cluster"), 1))
}

/// The messages about a text, without the file's name.
fn messages(text: &str) -> Vec<String> {
    match parse(text, "f") {
        Ok(config) => panic!("valid: {config:?}"),
        Err(errors) => errors.iter().map(|e| e.to_string()["f:".len()..].to_owned()).collect(),
    }
}

/// The messages about a valid text with `lines` added to its listener, without the place.
fn in_listener(lines: &str) -> Vec<String> {
    let text = format!(
        "[cluster.web]\nbackends = []\n[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n{lines}"
    );
    without_place(messages(&text), "listener[0].")
}

/// The messages about a valid text with `lines` added to its cluster, without the place.
fn in_cluster(lines: &str) -> Vec<String> {
    let text = format!(
        "[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n[cluster.web]\nbackends = [\"10.0.0.1:53\"]\n{lines}"
    );
    without_place(messages(&text), "cluster.web.")
}

/// The messages about a valid text with `lines` at its top, without the place.
fn at_top(lines: &str) -> Vec<String> {
    let text = format!(
        "{lines}\n[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n[cluster.web]\nbackends = []\n"
    );
    without_place(messages(&text), "")
}

fn without_place(messages: Vec<String>, prefix: &str) -> Vec<String> {
    let strip = |message: String| {
        let key_on = message.splitn(3, ':').nth(2).expect("line, column, rest").trim_start();
        key_on.strip_prefix(prefix).unwrap_or(key_on).to_owned()
    };
    messages.into_iter().map(strip).collect()
}
