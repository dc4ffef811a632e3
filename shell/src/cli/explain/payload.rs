//! What the payload of a client's first datagram says of its backend.

use std::net::SocketAddr;

use flowgate_config::hex;
use flowgate_core::affinity::{self, Explanation, Found, PlacedBy};
use flowgate_core::config::ClusterConfig;

/// A payload, as it is given on the command line: in hexadecimal digits.
#[derive(Clone, Debug)]
pub(crate) struct Payload(Vec<u8>);

impl Payload {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = hex::decode(&digits).map(Self);
        bytes.ok_or_else(|| "expected two hexadecimal digits for each byte".to_owned())
    }
}

/// What counts beside the client's address.
pub(super) enum Says<'p> {
    /// This is the backend.
    Backend(SocketAddr),
    /// This key is hashed.
    Key(&'p [u8]),
    /// Nothing.
    Nothing,
}

/// What a payload says, to a cluster with these backends, and the line that tells of it.
pub(super) fn read<'p>(
    cluster: &ClusterConfig,
    payload: Option<&'p Payload>,
) -> (Says<'p>, Option<String>) {
    if !cluster.affinity.reads_payload() {
        return (Says::Nothing, None);
    }
    let Some(Payload(payload)) = payload else {
        let line = "its payload counts too: give --payload to see what it says";
        return (Says::Nothing, Some(line.to_owned()));
    };
    let explanation = affinity::explain(cluster, payload);
    let named = explanation.named.and_then(|id| cluster.backends.get(id.index()));
    let says = match named {
        Some(named) => Says::Backend(named.address),
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
