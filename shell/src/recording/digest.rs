//! A sum over bytes, or over what a manager has emitted, in which every bit counts. It finds damage and
//! differences; it keeps no secret, and proves nothing against an attacker.

use std::net::{IpAddr, SocketAddr};

use flowgate_core::{
    Burst, FlowId, FlowRecord, LocalAddr, LocalSource, Output, Repeat, SendId, UpstreamId,
};

/// Odd, and about half of its bits are set.
const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;

/// The sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// The sum of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = Self(bytes.len() as u64);
        digest.bytes(bytes);
        digest
    }

    /// What it is so far.
    pub const fn value(self) -> u64 {
        self.0 ^ (self.0 >> 31)
    }

    /// Takes in a number.
    #[inline]
    pub const fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(MULTIPLIER).rotate_left(29).wrapping_add(1);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        let last = rest.iter().rev().fold(0, |last, &byte| last << 8 | u64::from(byte));
        self.word(last | (rest.len() as u64) << 56);
    }

    fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => self.word(4 << 32 | u64::from(ip.to_bits())),
            IpAddr::V6(ip) => {
                self.word((ip.to_bits() >> 64) as u64);
                self.word(ip.to_bits() as u64);
            }
        }
    }

    fn address(&mut self, address: SocketAddr) {
        self.ip(address.ip());
        self.word(address.port().into());
    }

    fn local(&mut self, local: Option<LocalAddr>) {
        if let Some(LocalAddr { ip, interface }) = local {
            self.ip(ip);
            self.word(interface.into());
        }
    }

    #[inline]
    fn flow(&mut self, flow: FlowId) {
        self.word((flow.index() as u64) << 32 | u64::from(flow.generation()));
    }

    #[inline]
    fn upstream(&mut self, upstream: UpstreamId) {
        self.word((upstream.index() as u64) << 16 | u64::from(upstream.generation()));
    }

    /// Of the datagrams only the form counts: the manager lends the bytes on and changes none.
    #[inline]
    fn burst(&mut self, burst: &Burst<'_>) {
        let form = u64::from(burst.stride()) << 16 | u64::from(burst.count());
        self.word((burst.bytes().len() as u64) << 32 | form);
    }

    fn send_id(&mut self, send_id: SendId) {
        match send_id {
            SendId::Flow { flow, upstream } => {
                self.flow(flow);
                self.upstream(upstream);
            }
            SendId::OneWay(backend) => self.word(1 << 62 | backend.index() as u64),
            SendId::Copy(backend) => self.word(1 << 63 | backend.index() as u64),
        }
    }

    fn source(&mut self, source: LocalSource) {
        match source {
            LocalSource::Any => self.word(0),
            LocalSource::Local { ip, ports, salt } => {
                self.word(1);
                ip.into_iter().for_each(|ip| self.ip(ip));
                if let Some(ports) = ports {
                    self.word(u64::from(ports.first) << 16 | u64::from(ports.last));
                }
                self.word(salt);
            }
            LocalSource::Client(client) => self.address(client),
        }
    }

    /// Takes in what a manager emits. Each kind begins with a number of its own.
    #[inline]
    pub fn output(&mut self, output: &Output<'_>) {
        match output {
            Output::Send { .. }
            | Output::Repeat(_)
            | Output::SendOneWay { .. }
            | Output::Mirror { .. }
            | Output::SendToClient { .. } => self.sent(output),
            Output::Drop { direction, reason, datagrams } => {
                self.word(10 << 40 | (*direction as u64) << 16 | u64::from(*datagrams));
                self.bytes(reason.as_str().as_bytes());
            }
            _ => self.arranged(output),
        }
    }

    /// Takes in where datagrams go.
    #[inline]
    fn sent(&mut self, output: &Output<'_>) {
        match output {
            Output::Send { flow, upstream, backend, to, prefix, tlvs, tos, ttl, burst } => {
                self.word(3 << 40 | u64::from(*tos) << 8 | u64::from(*ttl));
                self.word(backend.index() as u64);
                self.flow(*flow);
                self.upstream(*upstream);
                to.iter().for_each(|to| self.address(*to));
                prefix.iter().for_each(|prefix| self.bytes(prefix.as_bytes()));
                self.word(tlvs.len() as u64);
                self.burst(burst);
            }
            Output::Repeat(Repeat { flow, upstream, backend, to, send_id, tos, ttl }) => {
                self.word(16 << 40 | u64::from(*tos) << 8 | u64::from(*ttl));
                self.word(backend.index() as u64);
                self.flow(*flow);
                self.upstream(*upstream);
                to.iter().for_each(|to| self.address(*to));
                self.send_id(*send_id);
            }
            Output::SendOneWay { send_id, address, source, prefix, tlvs, tos, ttl, burst } => {
                self.word(4 << 40 | u64::from(*tos) << 8 | u64::from(*ttl));
                self.send_id(*send_id);
                self.address(*address);
                source.iter().for_each(|source| self.address(*source));
                prefix.iter().for_each(|prefix| self.bytes(prefix.as_bytes()));
                self.word(tlvs.len() as u64);
                self.burst(burst);
            }
            Output::Mirror { client, local, proxy_info, tos, ttl, burst } => {
                let is_relayed = u64::from(proxy_info.is_some());
                self.word(5 << 40 | is_relayed << 16 | u64::from(*tos) << 8 | u64::from(*ttl));
                self.address(*client);
                self.local(*local);
                self.burst(burst);
            }
            Output::SendToClient { flow, upstream, client, local, tos, burst } => {
                self.word(6 << 40 | u64::from(*tos));
                self.flow(*flow);
                self.upstream(*upstream);
                self.address(*client);
                self.local(*local);
                self.burst(burst);
            }
            _ => {}
        }
    }

    /// Takes in what becomes of flows and sockets.
    fn arranged(&mut self, output: &Output<'_>) {
        match output {
            Output::OpenUpstream { upstream, connect, v6, ttl, source } => {
                self.word(1 << 40 | u64::from(*ttl) << 8 | u64::from(*v6));
                self.upstream(*upstream);
                connect.iter().for_each(|connect| self.address(*connect));
                self.source(*source);
            }
            Output::OpenFlow { flow, upstream, backend, address, has_moved } => {
                self.word(11 << 40 | u64::from(*has_moved) << 32 | backend.index() as u64);
                self.flow(*flow);
                self.upstream(*upstream);
                self.address(*address);
            }
            Output::OpenClient { flow, client } => {
                self.word(2 << 40);
                self.flow(*flow);
                self.address(*client);
            }
            Output::CloseFlow { flow, upstream, reason } => {
                self.word(7 << 40);
                self.flow(*flow);
                self.upstream(*upstream);
                self.bytes(reason.as_str().as_bytes());
            }
            Output::CloseUpstream { upstream } => {
                self.word(8 << 40);
                self.upstream(*upstream);
            }
            Output::RecordFlow { flow, record } => self.ended(*flow, record),
            Output::Offload { .. }
            | Output::Recall { .. }
            | Output::RecallBackend { .. }
            | Output::AskActivity { .. } => self.kernel_path(output),
            Output::Send { .. }
            | Output::Repeat(_)
            | Output::SendOneWay { .. }
            | Output::Mirror { .. }
            | Output::SendToClient { .. }
            | Output::Drop { .. } => {}
        }
    }

    fn ended(&mut self, flow: FlowId, record: &FlowRecord) {
        self.word(9 << 40 | record.backend.index() as u64);
        self.flow(flow);
        self.address(record.client);
        self.address(record.backend_address);
        for traffic in [record.to_backend, record.to_client] {
            self.word(traffic.datagrams);
            self.word(traffic.bytes);
        }
        self.word(record.lasted_ns);
        self.word(record.first_answer_ns.map_or(0, |nanos| nanos + 1));
    }

    /// Takes in what the kernel is to forward past the sockets.
    fn kernel_path(&mut self, output: &Output<'_>) {
        match output {
            Output::Offload { flow, upstream, backend, address, client, local } => {
                self.word(12 << 40 | backend.index() as u64);
                self.flow(*flow);
                self.upstream(*upstream);
                self.address(*address);
                self.address(*client);
                self.local(*local);
            }
            Output::Recall { flow } => {
                self.word(13 << 40);
                self.flow(*flow);
            }
            Output::RecallBackend { backend } => self.word(14 << 40 | backend.index() as u64),
            Output::AskActivity { flow } => {
                self.word(15 << 40);
                self.flow(*flow);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use flowgate_core::counters::Traffic;
    use flowgate_core::proxy_protocol::Tlvs;
    use flowgate_core::{BackendId, CloseReason, Direction, DropReason};

    use super::*;

    #[test]
    fn every_bit_and_the_length_count() {
        let bytes = [7; 37];
        let sum = Digest::of(&bytes).value();
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Digest::of(&other).value(), sum, "bit {bit}");
        }
        assert_ne!(Digest::of(&bytes[..36]).value(), sum);
        assert_ne!(Digest::of(&[0; 8]), Digest::of(&[0; 9]));
    }

    #[test]
    fn the_same_outputs_in_another_order_are_others() {
        let drop = |datagrams| Output::Drop {
            direction: Direction::ToBackend,
            reason: DropReason::Denied,
            datagrams,
        };
        let sum = |numbers: [u16; 2]| {
            let mut digest = Digest::default();
            numbers.iter().for_each(|&datagrams| digest.output(&drop(datagrams)));
            digest.value()
        };
        assert_eq!(sum([1, 2]), sum([1, 2]));
        assert_ne!(sum([1, 2]), sum([2, 1]));
    }

    #[test]
    fn every_kind_of_output_counts() {
        let (flow, upstream, backend) =
            (FlowId::new(3, 1), UpstreamId::new(4, 2), BackendId::new(5));
        let address: SocketAddr = ([10, 0, 0, 1], 53).into();
        let (burst, tlvs) = (Burst::single(b"question").unwrap(), Tlvs::NONE);
        let (local, prefix, source, to) = (None, None, None, None);
        let (client, tos, ttl) = (address, 0, 64);
        let send_id = SendId::Flow { flow, upstream };
        let traffic = Traffic::default();
        let record = FlowRecord {
            client,
            backend,
            backend_address: address,
            reason: CloseReason::Complete,
            to_backend: traffic,
            to_client: traffic,
            lasted_ns: 1,
            first_answer_ns: None,
        };
        let outputs = [
            Output::OpenUpstream {
                upstream,
                connect: None,
                v6: false,
                ttl,
                source: LocalSource::Any,
            },
            Output::OpenFlow { flow, upstream, backend, address, has_moved: false },
            Output::OpenClient { flow, client },
            Output::Send { flow, upstream, backend, to, prefix, tlvs, tos, ttl, burst },
            Output::Repeat(Repeat { flow, upstream, backend, to, send_id, tos, ttl }),
            Output::SendOneWay { send_id, address, source, prefix, tlvs, tos, ttl, burst },
            Output::Mirror { client, local, proxy_info: None, tos, ttl, burst },
            Output::SendToClient { flow, upstream, client, local, tos, burst },
            Output::CloseFlow { flow, upstream, reason: CloseReason::Complete },
            Output::CloseUpstream { upstream },
            Output::RecordFlow { flow, record },
            Output::Offload { flow, upstream, backend, address, client, local },
            Output::Recall { flow },
            Output::RecallBackend { backend },
            Output::AskActivity { flow },
            Output::Drop {
                direction: Direction::ToBackend,
                reason: DropReason::Denied,
                datagrams: 1,
            },
        ];
        let mut sums = vec![Digest::default().value()];
        for output in &outputs {
            let mut digest = Digest::default();
            digest.output(output);
            sums.push(digest.value());
        }
        let all = sums.len();
        sums.sort_unstable();
        sums.dedup();
        assert_eq!(sums.len(), all, "two kinds have the same sum, or one has none");
    }
}
