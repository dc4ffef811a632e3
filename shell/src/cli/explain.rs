//! `flowgate explain`: where a client's datagrams would go, and why.

mod backend_setup;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;

use flowgate_config::{Cluster, hex};

pub(super) use backend_setup::backend_setup;

use super::Failure;
use super::ask::{SocketOption, fault, put};
use crate::admin::escape::{escaped, escaped_json};
use crate::admin::request::{Request, Response};
use crate::control::explain::{
    ExplainedBackend, ExplainedListener, Question, describe_client, explain_all,
};
use crate::control::reach;

/// A payload, as it is given on the command line: in hexadecimal digits.
#[derive(Clone, Debug)]
pub(super) struct Payload(Vec<u8>);

impl Payload {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = hex::decode(&digits).map(Self);
        bytes.ok_or_else(|| "expected two hexadecimal digits for each byte".to_owned())
    }
}

/// By a configuration alone: no backend is down or full.
pub(super) fn run(
    path: &Path,
    client: SocketAddr,
    payload: Option<&Payload>,
    json: bool,
) -> Result<(), Failure> {
    let config = flowgate_config::load(path)?;
    reach::check(&config)?;
    let look = |cluster: &Cluster| {
        let all = cluster.backends(addresses_of).into_iter();
        let stands = |backend| ExplainedBackend { backend, is_out: None, is_down: false };
        all.map(stands).collect()
    };
    let payload = payload.map(|payload| &*payload.0);
    print(client, &explain_all(&config, Question { client, payload }, &look), json)
}

/// As things stand in a running process.
pub(super) fn run_live(
    socket: &SocketOption,
    client: SocketAddr,
    payload: Option<&Payload>,
    json: bool,
) -> Result<(), Failure> {
    let payload = payload.map(|payload| hex::encode(&payload.0));
    match socket.ask(&Request::Explain { client, payload })? {
        Response::Explained { mut listeners } => {
            let lines = listeners.iter_mut().flat_map(|listener| &mut listener.because);
            lines.for_each(|line| *line = escaped(line));
            print(client, &listeners, json)
        }
        answer => Err(fault(&answer)),
    }
}

fn print(client: SocketAddr, all: &[ExplainedListener], json: bool) -> Result<(), Failure> {
    if json {
        let document = serde_json::json!({ "client": describe_client(client), "listeners": all });
        return put(&(escaped_json(&format!("{document:#}")) + "\n"));
    }
    let mut text = format!("client {}\n", describe_client(client));
    for ExplainedListener { listener, address, cluster, because, .. } in all {
        text += &format!("\nlistener {listener:?} on {address}\n");
        if let Some(cluster) = cluster {
            text += &format!("  cluster {cluster:?}\n");
        }
        text.extend(because.iter().map(|line| format!("  {line}\n")));
    }
    put(&text)
}

/// What a host's name resolves to at this moment; nothing where it does not.
fn addresses_of(host: &str) -> Vec<IpAddr> {
    let resolved = (host, 0).to_socket_addrs();
    resolved.map(|all| all.map(|address| address.ip()).collect()).unwrap_or_default()
}
