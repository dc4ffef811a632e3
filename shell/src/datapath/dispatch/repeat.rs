//! Sending a question again that the manager has kept.

use flowgate_core::proxy_protocol::Tlvs;
use flowgate_core::{Burst, Direction, DropReason, Repeat, UdpManager};

use super::Dispatch;
use crate::datapath::kernel::Kernel;
use crate::datapath::role::Role;
use crate::datapath::send::outbox::Outgoing;
use crate::datapath::token::Token;

impl<K: Kernel> Dispatch<'_, '_, K> {
    /// Sends what the manager has just told to send again. Its bytes are the manager's, and no longer
    /// there when the tick ends: they go by way of the socket's queue.
    pub(super) fn send_repeats(&mut self, manager: &UdpManager) {
        for repeat in std::mem::take(&mut self.repeats) {
            self.send_repeat(&repeat, manager);
        }
    }

    fn send_repeat(&mut self, repeat: &Repeat, manager: &UdpManager) {
        let &Repeat { flow, upstream: id, backend, to, send_id, tos, ttl } = repeat;
        let Some(kept) = manager.kept(flow) else { return };
        let Some(burst) = Burst::single(kept.datagram) else { return };
        let outgoing = Outgoing {
            role: Role::Primary,
            send_id,
            backend: Some(backend),
            direction: Direction::ToBackend,
            destination: to,
            local: None,
            source: None,
            prefix: None,
            tlvs: Tlvs::NONE,
            tos,
            ttl: Some(ttl),
            may_use_gso: false,
            burst,
        };
        // What was ordered before goes first.
        self.flush_upstream(id);
        let sockets = &mut *self.sockets;
        let Some(upstream) = sockets.upstreams.get_mut(id) else {
            self.lose_for_want_of_a_socket(id, &outgoing);
            return;
        };
        let wire = [kept.front, kept.datagram].concat().into_boxed_slice();
        let budget = &mut sockets.send_queue_budget;
        if !upstream.send_queue.push_wire(&outgoing, wire, kept.datagram.len(), budget) {
            self.lose(&outgoing, DropReason::QueueFull);
            return;
        }
        if !upstream.send_queue.is_watched {
            let shard = sockets.shard;
            self.resume(Token::Upstream { shard, upstream: id });
        }
    }
}
