//! What clients and servers of each protocol send, as far as it counts here.

use std::net::SocketAddr;

use flowgate_core::affinity::Affinity;
use flowgate_core::config::{BackendConfig, ManagerConfig, QuicLb};
use flowgate_quic_lb::{Decoder, QuicLbConfig, ServerId};

use super::{Bug, IDLE_TIMEOUT};

/// Which ids there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    QuicLearned,
    QuicLb,
    WireGuard,
    Dtls,
    Sip,
}

impl Protocol {
    pub(super) const ALL: [Self; 5] =
        [Self::QuicLearned, Self::QuicLb, Self::WireGuard, Self::Dtls, Self::Sip];

    const fn affinity(self) -> Affinity {
        match self {
            Self::QuicLearned | Self::QuicLb => Affinity::Quic,
            Self::WireGuard => Affinity::WireGuard,
            Self::Dtls => Affinity::DtlsCid { length: 8 },
            Self::Sip => Affinity::SipCallId,
        }
    }

    /// Whether its servers choose ids; otherwise clients have keys, which are hashed.
    pub(super) const fn has_ids(self) -> bool {
        !matches!(self, Self::Sip)
    }

    /// Whether ids are known for as long as they are used, and a while longer.
    pub(super) const fn learns(self) -> bool {
        matches!(self, Self::QuicLearned | Self::WireGuard | Self::Dtls)
    }

    /// An id, of these random bytes.
    pub(super) fn id_of(self, random: [u8; 8]) -> Vec<u8> {
        match self {
            Self::WireGuard => random[..4].to_vec(),
            _ => random.to_vec(),
        }
    }

    /// How a client begins, with an id of its own making.
    pub(super) fn hello(self, id: &[u8]) -> Vec<u8> {
        match self {
            Self::QuicLearned | Self::QuicLb => long_header(0xC0, id, b"of client"),
            Self::WireGuard => wireguard(1, &id[..4], &[], 148),
            Self::Dtls => handshake(1, &[]),
            Self::Sip => sip("INVITE sip:bob@example.com SIP/2.0", id),
        }
    }

    /// How a server answers that, with the id that it has chosen.
    pub(super) fn announcement(self, id: &[u8]) -> Vec<u8> {
        match self {
            Self::QuicLearned | Self::QuicLb => long_header(0xE0, b"of client", id),
            Self::WireGuard => wireguard(2, id, b"ours", 92),
            Self::Dtls => handshake(2, id),
            Self::Sip => sip("SIP/2.0 200 OK", id),
        }
    }

    /// How a client goes on.
    pub(super) fn data(self, id: &[u8]) -> Vec<u8> {
        match self {
            Self::QuicLearned | Self::QuicLb => [&[0x41], id, &[7; 40]].concat(),
            Self::WireGuard => wireguard(4, id, &[], 96),
            Self::Dtls => {
                [&[25, 0xFE, 0xFD, 0, 1, 0, 0, 0, 0, 0, 9], id, &[0, 24], &[7; 24]].concat()
            }
            Self::Sip => sip("BYE sip:bob@example.com SIP/2.0", id),
        }
    }

    /// What a server sends that announces nothing.
    pub(super) fn reply(self) -> Vec<u8> {
        match self {
            Self::QuicLearned | Self::QuicLb => vec![0x41; 40],
            Self::WireGuard => wireguard(4, b"ours", &[], 96),
            Self::Dtls => [&[23, 0xFE, 0xFD], &[7; 40][..]].concat(),
            Self::Sip => b"SIP/2.0 100 Trying\r\n\r\n".to_vec(),
        }
    }
}

fn long_header(first: u8, destination: &[u8], source: &[u8]) -> Vec<u8> {
    let mut packet = vec![first, 0, 0, 0, 1];
    for id in [destination, source] {
        packet.push(id.len() as u8);
        packet.extend(id);
    }
    packet.extend([0; 40]);
    packet
}

fn wireguard(kind: u8, index: &[u8], other: &[u8], length: usize) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0], &index[..index.len().min(4)], other].concat();
    message.resize(length, 0);
    message
}

/// A Hello of DTLS 1.2, of which a server's says which id it has chosen.
fn handshake(kind: u8, id: &[u8]) -> Vec<u8> {
    let number = |value: usize, bytes: usize| value.to_be_bytes()[8 - bytes..].to_vec();
    let extension = [&[0, 54, 0, id.len() as u8 + 1, id.len() as u8][..], id].concat();
    let head = [&[0xFE, 0xFD][..], &[7; 32], &[0, 0xC0, 0xA8, 0]].concat();
    let body = [head, number(extension.len(), 2), extension].concat();
    let length = number(body.len(), 3);
    let message = [&[kind][..], &length, &[0, 0, 0, 0, 0], &length, &body].concat();
    let record = [22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0];
    [&record[..], &number(message.len(), 2), &message].concat()
}

fn sip(start: &str, id: &[u8]) -> Vec<u8> {
    let call = id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{start}\r\nVia: SIP/2.0/UDP host\r\nCall-ID: {call}@host\r\n\r\n").into_bytes()
}

pub(super) fn client(number: usize, place: u16) -> SocketAddr {
    SocketAddr::from(([10, 1, number as u8, place as u8], 4_000 + place))
}

pub(super) fn forger(number: usize, place: u16) -> SocketAddr {
    SocketAddr::from(([10, 66, number as u8, 6], 6_000 + place))
}

/// Somebody who has not been here before.
pub(super) fn stranger(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::from(([10, 77, high, low], 7_000))
}

pub(super) fn quic_lb() -> QuicLbConfig {
    QuicLbConfig::new(0, 4, 8).expect("lengths that may be").with_key(&[9; 16])
}

pub(super) fn server_id(server: usize) -> ServerId {
    ServerId::new(&[0, 0, 7, server as u8]).expect("short enough")
}

/// As little configuration as makes a cluster of so many.
pub(super) fn config(protocol: Protocol, bug: Option<Bug>, backends: usize) -> ManagerConfig {
    let text = "[[listener]]\naddress = \"192.0.2.1:443\"\ncluster = \"web\"\n\
                [cluster.web]\nbalance = \"rendezvous\"\nbackends = [\"10.0.0.1:443\"]\n";
    let parsed = flowgate_config::parse(text, "simulated.toml").expect("a valid configuration");
    let backends = (0..backends).map(|server| BackendConfig {
        server_id: (protocol == Protocol::QuicLb).then(|| server_id(server)),
        ..BackendConfig::new(SocketAddr::from(([10, 0, 0, server as u8 + 1], 443)))
    });
    let address = SocketAddr::from(([192, 0, 2, 1], 443));
    let listener = &parsed.listeners[0];
    let mut config =
        listener.manager_config(address, 4_096, vec![address.into()], false, backends.collect());
    config.cluster.idle_timeout = IDLE_TIMEOUT;
    config.cluster.affinity = match bug {
        Some(Bug::IgnoresIds) => Affinity::SourceIp,
        Some(Bug::IgnoresKeys) if protocol == Protocol::Sip => Affinity::SourceIp,
        _ => protocol.affinity(),
    };
    if protocol == Protocol::QuicLb && bug != Some(Bug::CannotReadIds) {
        let mut decoder = Decoder::default();
        decoder.insert(quic_lb());
        config.cluster.quic_lb = QuicLb(decoder.into());
    }
    config
}
