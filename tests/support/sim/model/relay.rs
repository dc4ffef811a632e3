//! Whose a datagram is: its sender's, or that of a client that a trusted proxy names.
//!
//! Headers are read by the core's own reader, which the fuzz target `proxy_accept` compares with
//! another.

use std::net::SocketAddr;

use flowgate_core::config::ManagerConfig;
use flowgate_core::proxy_protocol::{ReceivedHeader, Tlvs};
use flowgate_core::{DropReason, Instant, LocalAddr, TransactionId};

use super::{Flow, Model, Sender};
use crate::sim::setting::canonical;

/// A client, and the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) client: SocketAddr,
    /// The local address that it calls, where nobody speaks for it.
    pub(super) local: Option<LocalAddr>,
    /// The proxy that speaks for it, and the local address that this calls.
    pub(super) via: Option<Role>,
    /// What names its question, where each is a flow of its own.
    pub(super) question: Option<Name>,
}

/// What names a question.
pub(super) type Name = [u8; 2];

/// The same in what the core has for it.
pub(super) fn name_of(id: TransactionId) -> Name {
    let [first, ..] = id.as_words();
    let [high, low, ..] = first.to_be_bytes();
    [high, low]
}

/// An address, and the local address that is called from there.
pub(super) type Role = (SocketAddr, Option<LocalAddr>);

impl Caller {
    /// Who sends, and where answers go.
    pub(super) fn way(&self) -> Role {
        self.via.unwrap_or((self.client, self.local))
    }
}

/// A datagram without what a proxy has put in front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'p> {
    pub(super) caller: Caller,
    pub(super) destination: SocketAddr,
    pub(super) tlvs: Tlvs<'p>,
    pub(super) datagram: &'p [u8],
    /// Whether it had a header, and so is nobody's neighbour any more.
    pub(super) had_header: bool,
}

/// Whom a proxy has named last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    client: SocketAddr,
    destination: SocketAddr,
    until: Instant,
}

impl Model {
    /// Whose a datagram is, or why it is nobody's. What holds for one without a header holds for
    /// those that follow it in its burst.
    pub(super) fn call<'p>(
        &mut self,
        from: Sender,
        datagram: &'p [u8],
        follows: bool,
        now: Instant,
    ) -> Result<Call<'p>, DropReason> {
        let source = canonical(from.source);
        let local = from.local.map(|local| LocalAddr { ip: local.ip.to_canonical(), ..local });
        let port = self.config.address.port();
        let ours = local.map_or(self.config.address, |local| SocketAddr::new(local.ip, port));
        if source.port() == 0 || !is_trusted(&self.config, source) {
            let caller = Caller { client: source, local, via: None, question: None };
            let (tlvs, had_header) = (Tlvs::NONE, false);
            return Ok(Call { caller, destination: ours, tlvs, datagram, had_header });
        }
        let way = (source, local);
        let until = now + self.config.cluster.idle_timeout;
        let header = ReceivedHeader::parse(datagram).map_err(|_| DropReason::ProxyHeader)?;
        let (named, tlvs, datagram) = match header {
            Some(header) => {
                let itself = SocketAddr::new(source.ip(), source.port());
                let (client, destination) =
                    header.endpoints.map_or((itself, ours), |said| (said.client, said.destination));
                (Named { client, destination, until }, header.tlvs, header.payload)
            }
            None => {
                let has_flows = self.flows.iter().any(|flow| flow.via == Some(way));
                let named =
                    self.named.get(&way).filter(|named| follows || has_flows || named.until > now);
                let named = *named.ok_or(DropReason::ProxyHeaderMissing)?;
                (Named { until, ..named }, Tlvs::NONE, datagram)
            }
        };
        self.named.insert(way, named);
        let (client, via) = (named.client, Some(way));
        let caller = Caller { client, local: None, via, question: None };
        let had_header = header.is_some();
        Ok(Call { caller, destination: named.destination, tlvs, datagram, had_header })
    }

    /// A flow has ended: what its proxy said holds from now on.
    pub(super) fn put_off(&mut self, ended: &Flow, now: Instant) {
        let until = now + self.config.cluster.idle_timeout;
        if let Some(named) = ended.via.and_then(|way| self.named.get_mut(&way)) {
            named.until = until;
        }
    }

    /// Whether all datagrams of a burst are handled each by itself.
    pub(super) fn are_alone(&self, from: Sender, datagram: &[u8]) -> bool {
        let is_header = !matches!(ReceivedHeader::parse(datagram), Ok(None));
        is_header && from.source.port() != 0 && is_trusted(&self.config, canonical(from.source))
    }
}

/// Whether what a sender says of others counts.
pub(in crate::sim) fn is_trusted(config: &ManagerConfig, source: SocketAddr) -> bool {
    config.accept_proxy_protocol.iter().any(|network| network.contains(&source.ip()))
}
