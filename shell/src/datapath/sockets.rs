//! The sockets of a shard, and what waits for them.

#[cfg(target_os = "linux")]
mod hand_over;

use flowgate_core::{Transactions, UpstreamId};

use crate::datapath::client::Clients;
use crate::datapath::egress::EgressSockets;
use crate::datapath::kernel::Kernel;
use crate::datapath::send::queue::SendQueue;
use crate::datapath::upstream::Upstreams;

#[cfg(target_os = "linux")]
pub use hand_over::SocketsSnapshot;

/// How many bytes may wait for sockets of one shard, all send queues together.
const QUEUE_BUDGET: usize = 16 << 20;

/// The sockets of a shard.
pub struct Sockets<K: Kernel> {
    /// The shard's place in its worker, for tokens.
    pub shard: u32,
    /// Where clients send to, and answers leave from.
    pub listener: K::Socket,
    /// What waits for room in the listener's send buffer.
    pub listener_queue: SendQueue,
    /// How much has left by the listener since it was seen how full its send buffer is.
    pub unlooked: usize,
    /// Those towards backends that flows use.
    pub upstreams: Upstreams<K::Socket>,
    /// One for each client that has its own.
    pub clients: Clients<K::Socket>,
    /// What leaves without a flow: for the cluster, and for its mirror.
    pub egress_sockets: [EgressSockets<K::Socket>; 2],
    /// What waited for sockets that another process had, and that did not come over.
    pub orphaned_queues: Vec<SendQueue>,
    /// How many more bytes may wait for sockets.
    pub send_queue_budget: usize,
    /// The receive buffer to ask of the kernel for upstream sockets, in bytes: the listener's. 0: the
    /// usual one.
    pub receive_buffer: usize,
    /// Whether nothing that is sent may be cut into fragments, as at the listener.
    pub dont_fragment: bool,
    /// The longest payload that goes either way.
    pub max_datagram_size: u16,
    /// How many datagrams upstream sockets are known to have lost since their receive buffers were
    /// full.
    pub upstream_drops: u64,
    /// What names a question in what the network quotes, where each is a flow.
    pub questions: Option<Transactions>,
}

impl<K: Kernel> Sockets<K> {
    /// The sockets of a shard that has a listener, and room for this many upstream sockets without
    /// allocating later.
    pub fn new(shard: u32, listener: K::Socket, upstreams: usize) -> Self {
        Self {
            shard,
            listener,
            listener_queue: SendQueue::default(),
            unlooked: 0,
            upstreams: Upstreams::new(upstreams),
            clients: Clients::default(),
            egress_sockets: <[EgressSockets<K::Socket>; 2]>::default(),
            orphaned_queues: Vec::new(),
            send_queue_budget: QUEUE_BUDGET,
            receive_buffer: 0,
            dont_fragment: false,
            max_datagram_size: 0,
            upstream_drops: 0,
            questions: None,
        }
    }

    /// All that it may send by.
    pub fn all(&self) -> impl Iterator<Item = &K::Socket> {
        let egress = self.egress_sockets.iter().flat_map(|sockets| sockets.iter());
        let upstreams = self.upstreams.iter().map(|upstream| &upstream.socket);
        let egress = egress.map(|(_, egress)| &egress.socket);
        [&self.listener].into_iter().chain(upstreams).chain(self.clients.sockets()).chain(egress)
    }

    /// Whether something waits for room in a send buffer.
    pub const fn has_unsent(&self) -> bool {
        self.send_queue_budget < QUEUE_BUDGET
    }

    /// Takes note that an upstream socket has lost this many datagrams in all.
    pub fn note_drops(&mut self, id: UpstreamId, drops: u32) {
        // One that has closed since was counted then.
        if let Some(upstream) = self.upstreams.get_mut(id) {
            self.upstream_drops += u64::from(drops.saturating_sub(upstream.drops));
            upstream.drops = upstream.drops.max(drops);
        }
    }

    /// How many datagrams wait for room in the send buffers of sockets that serve no flow.
    pub fn queued_one_way(&self) -> usize {
        self.egress_sockets.iter().map(EgressSockets::queued).sum()
    }
}
