//! Datagrams that come by a proxy, which says in a PROXY header whose they are.

use core::time::Duration;

use super::UdpManager;
use super::forward::RecvMeta;
use crate::burst::Burst;
use crate::config::ClusterConfig;
use crate::counters::Traffic;
use crate::flow::key::FlowKey;
use crate::output::Outputs;
use crate::proxy_protocol::table::ProxiedClient;
use crate::proxy_protocol::{ProxyInfo, ReceivedHeader, Tlvs, has_header};
use crate::reason::{Direction, DropReason};
use crate::time::Instant;

/// How long what a proxy says holds where there are no flows.
const WITHOUT_FLOWS: Duration = Duration::from_secs(60);

impl UdpManager {
    /// Whether a sender is a proxy whose headers count.
    #[inline]
    pub(super) fn is_proxy(&self, sender: &FlowKey) -> bool {
        let networks = &self.config.accept_proxy_protocol;
        if networks.is_empty() {
            return false;
        }
        let ip = sender.client.address().ip();
        networks.iter().any(|network| network.contains(&ip))
    }

    /// Takes a proxy's datagrams: each that has a header by itself, and those without a header that
    /// follow one another together.
    #[inline(never)]
    pub(super) fn handle_proxied_burst<'p>(
        &mut self,
        proxy: &FlowKey,
        recv_meta: RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let mut rest = Some(burst);
        while let Some(burst) = rest {
            let without = burst.datagrams().take_while(|datagram| !has_header(datagram)).count();
            let (followers, others) = burst.split_at(without as u16);
            if let Some(followers) = followers {
                self.handle_followers(proxy, recv_meta, followers, now, outputs);
            }
            let Some((Some(one), more)) = others.map(|others| others.split_at(1)) else { return };
            rest = more;
            match ReceivedHeader::parse(one.bytes()) {
                Ok(Some(header)) => self.handle_told(proxy, recv_meta, &header, now, outputs),
                // It has one.
                Ok(None) | Err(_) => self.refuse(DropReason::ProxyHeader, &one, outputs),
            }
        }
    }

    /// Takes a datagram that had a header.
    fn handle_told<'p>(
        &mut self,
        proxy: &FlowKey,
        recv_meta: RecvMeta<'p>,
        header: &ReceivedHeader<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        // A part of a datagram is no longer than one.
        let Some(burst) = Burst::single(header.payload) else { return };
        let proxied = match header.endpoints {
            Some(endpoints) => {
                ProxiedClient { client: endpoints.client, destination: endpoints.destination }
            }
            None => ProxiedClient {
                client: proxy.client.address(),
                destination: self.destination(proxy.local()),
            },
        };
        let Some(number) = self.proxies.note(proxy, proxied, self.remembered_until(now)) else {
            self.refuse(DropReason::MaxFlows, &burst, outputs);
            return;
        };
        let proxy_info = ProxyInfo { destination: proxied.destination, tlvs: header.tlvs };
        let recv_meta = RecvMeta { proxy_info: Some(proxy_info), ..recv_meta };
        let key = FlowKey::proxied(proxied.client, number);
        self.handle_datagrams(&key, proxy, &recv_meta, burst, now, outputs);
    }

    /// Takes datagrams without a header: they are those of the client that the last one named.
    fn handle_followers<'p>(
        &mut self,
        proxy: &FlowKey,
        recv_meta: RecvMeta<'p>,
        burst: Burst<'p>,
        now: Instant,
        outputs: &mut impl Outputs<'p>,
    ) {
        let until = self.remembered_until(now);
        let Some((number, proxied)) = self.proxies.recall(proxy, now, until) else {
            self.refuse(DropReason::ProxyHeaderMissing, &burst, outputs);
            return;
        };
        let proxy_info = ProxyInfo { destination: proxied.destination, tlvs: Tlvs::NONE };
        let recv_meta = RecvMeta { proxy_info: Some(proxy_info), ..recv_meta };
        let key = FlowKey::proxied(proxied.client, number);
        self.handle_datagrams(&key, proxy, &recv_meta, burst, now, outputs);
    }

    /// Until when what a proxy says now holds for datagrams that have no header, where no flow
    /// remembers it: as long as a flow would, had it been admitted.
    pub(super) fn remembered_until(&self, now: Instant) -> Instant {
        let ClusterConfig { mode, idle_timeout, .. } = &self.config.cluster;
        now + if mode.has_flows() { *idle_timeout } else { WITHOUT_FLOWS }
    }

    /// Counts datagrams that arrived and go no further.
    pub(super) fn refuse<'p>(
        &mut self,
        reason: DropReason,
        burst: &Burst<'p>,
        outputs: &mut impl Outputs<'p>,
    ) {
        self.counters.to_backend.received.add(Traffic::of(burst));
        self.drop_burst(Direction::ToBackend, reason, burst, outputs);
    }
}
