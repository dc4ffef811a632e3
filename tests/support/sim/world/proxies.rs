//! Those of the cast who speak for others, where they are trusted to.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flowgate_core::LocalAddr;
use flowgate_core::proxy_protocol::{Endpoints, ProxyHeader, ReceivedHeader};

use super::World;
use crate::sim::model::relay::is_trusted;
use crate::sim::setting::{Party, canonical};

/// The client that each proxy has named last, by its address and the local address it called.
pub(super) type Named = BTreeMap<(SocketAddr, Option<LocalAddr>), SocketAddr>;

/// Some are of the cast too, and come by themselves.
const CLIENTS: [&str; 5] = [
    "198.51.100.1:4000",
    "198.51.100.77:0",
    "[2001:db8::1]:4001",
    "[2001:db8:0:ff::1]:9",
    "[fe80::1]:4002",
];

const CALLED: [&str; 2] = ["203.0.113.9:443", "[2001:db8::99]:443"];

/// An authority and a thing of someone's own.
const TLVS: &[u8] = b"\x02\0\x03abc\xE0\0\0";

impl World {
    /// What one of the cast puts in front of what it sends next, if it speaks for someone: mostly
    /// a header with or without TLVs, sometimes one that is not valid, or that names nobody.
    pub(super) fn header_of(&self, party: Party) -> Option<Vec<u8>> {
        if !is_trusted(&self.config, canonical(party.source())) {
            return None;
        }
        let number = self.next_number as usize;
        let client = CLIENTS[number / 8 % CLIENTS.len()].parse().expect("an address");
        let called = CALLED[number / 64 % CALLED.len()].parse().expect("an address");
        let mut header = ProxyHeader::new(client, called).as_bytes().to_vec();
        match number % 8 {
            0..=2 => return None,
            3 => header[12] = 0x3F,
            4 => header[12] = 0x20,
            5 => {
                header[15] += TLVS.len() as u8;
                header.extend_from_slice(TLVS);
            }
            _ => {}
        }
        Some(header)
    }

    /// Whose datagrams are that begin with these bytes.
    pub(super) fn learn_caller(
        &mut self,
        source: SocketAddr,
        local: Option<LocalAddr>,
        bytes: &[u8],
    ) -> SocketAddr {
        let key = (canonical(source), local.map(|l| LocalAddr { ip: l.ip.to_canonical(), ..l }));
        self.caller = key.0;
        if is_trusted(&self.config, key.0) {
            let itself = SocketAddr::new(key.0.ip(), key.0.port());
            if let Ok(Some(header)) = ReceivedHeader::parse(bytes) {
                let named = header.endpoints.map(|Endpoints { client, .. }| client);
                self.named.insert(key, named.unwrap_or(itself));
            }
            self.caller = self.named.get(&key).copied().unwrap_or(itself);
        }
        self.caller
    }
}
