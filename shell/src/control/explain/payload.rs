//! What the payload of a client's first datagram says of its backend.

use std::net::SocketAddr;

use flowgate_config::hex;
use flowgate_core::affinity::{self, Explanation, Found, PlacedBy};
use flowgate_core::config::ClusterConfig;

/// What counts beside the client's address.
pub(super) enum Says<'p> {
    /// This is the backend, of something new or of what it knows.
    Backend { address: SocketAddr, is_new: bool },
    /// This key is hashed.
    Key(&'p [u8]),
    /// Nothing.
    Nothing,
}

/// What a payload says, to a cluster with these backends, and the line that tells of it.
pub(super) fn read<'p>(
    cluster: &ClusterConfig,
    payload: Option<&'p [u8]>,
) -> (Says<'p>, Option<String>) {
    if !cluster.affinity.reads_payload() {
        return (Says::Nothing, None);
    }
    let Some(payload) = payload else {
        let line = "its payload counts too: give --payload to see what it says";
        return (Says::Nothing, Some(line.to_owned()));
    };
    let explanation = affinity::explain(cluster, payload);
    let named = explanation.named.and_then(|id| cluster.backends.get(id.index()));
    let says = match named {
        Some(named) => {
            let is_new = matches!(explanation.found, Found::Opening { .. });
            Says::Backend { address: named.address, is_new }
        }
        None if explanation.by == PlacedBy::Key => Says::Key(explanation.id),
        None => Says::Nothing,
    };
    (says, Some(line(&explanation)))
}

fn line(explanation: &Explanation<'_>) -> String {
    match (explanation.by, explanation.found) {
        (PlacedBy::ServerId, _) => format!("connection id {}", hex::encode(explanation.id)),
        (_, Found::Nothing) => "no key in the payload: the client decides".to_owned(),
        (_, Found::Key(key)) => {
            format!("key {} ({:?})", hex::encode(key), String::from_utf8_lossy(key))
        }
        (_, Found::Opening { id }) => {
            format!("id {}, chosen by the client: it names no backend", hex::encode(id))
        }
        (_, Found::Underway { id: [], .. }) => {
            "belongs to a connection, and has no id: the client decides".to_owned()
        }
        (_, Found::Underway { id, .. }) => format!(
            "id {} names no backend by itself; a running instance may have learned its backend",
            hex::encode(id)
        ),
    }
}
