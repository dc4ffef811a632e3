//! One listener socket with its manager and its flows: all that a worker needs to serve it.

#[cfg(target_os = "linux")]
mod adopt;

use std::collections::VecDeque;
use std::sync::Arc;

use flowgate_core::route::Routes;
use flowgate_core::{
    Deadline, Direction, FlowRecord, Instant, ManagerInput, PreparedConfig, UdpManager, UpstreamId,
};

use super::recv::{LISTENER_BATCH, Reading};
use crate::datapath::client::Clients;
use crate::datapath::dispatch::{Dispatch, Scratch};
use crate::datapath::fast_path::ShardOffloads;
use crate::datapath::kernel::Kernel;
use crate::datapath::role::Role;
use crate::datapath::sockets::Sockets;
use crate::datapath::token::Token;
use crate::observe::tap::Tap;
use crate::sys::arena::Arena;

/// What the poll told of a socket.
#[derive(Clone, Copy, Debug)]
pub struct Readiness {
    /// It may be read from.
    pub readable: bool,
    /// It may be written to.
    pub writable: bool,
    /// It has an error pending.
    pub error: bool,
}

/// A listener, its manager, its flows.
pub struct Shard<K: Kernel> {
    manager: UdpManager,
    /// What decides about the copies that some flows' datagrams are to have.
    mirror: Option<UdpManager>,
    sockets: Sockets<K>,
    /// The sockets that may have something to read, least recently served first. Each is on it
    /// at most once.
    ready: VecDeque<Ready>,
    is_listener_ready: bool,
    /// Whether another shard reads its listener, and passes on what it is to have.
    is_send_only: bool,
    /// The shards that serve some of its clients, by their numbers.
    routes: Option<Arc<Routes<u32>>>,
    /// Whether the listener's buffer was half full when it was read last.
    is_behind: bool,
    scratch: Scratch,
    /// From which slot on the upstream sockets are not watched yet, after another process or worker
    /// had them.
    unwatched_from: Option<usize>,
    /// What the kernel path has to know of it when another process has served it.
    offloads: ShardOffloads,
}

#[derive(Clone, Copy, Debug)]
enum Ready {
    Listener,
    Upstream(UpstreamId),
    /// A client's own socket, by its slot.
    Client(u32),
}

impl<K: Kernel> Shard<K> {
    /// A shard that serves `listener` as `manager` decides; `number` is its place in its worker.
    pub fn new(number: u32, listener: K::Socket, manager: UdpManager) -> Self {
        let room = manager.upstream_capacity();
        Self::with_sockets(Sockets::new(number, listener, room), manager, None)
    }

    /// A shard that goes on with these sockets.
    pub fn with_sockets(
        sockets: Sockets<K>,
        manager: UdpManager,
        mirror: Option<UdpManager>,
    ) -> Self {
        let room = manager.upstream_capacity() + 1;
        let mut sockets =
            Sockets { max_datagram_size: manager.config().max_datagram_size, ..sockets };
        sockets.questions = manager.config().cluster.questions();
        for (role, manager) in [(Role::Primary, Some(&manager)), (Role::Mirror, mirror.as_ref())] {
            if let Some(manager) = manager {
                sockets.egress_sockets[role as usize].source =
                    manager.config().cluster.source.clone();
            }
        }
        Self {
            manager,
            mirror,
            sockets,
            ready: VecDeque::with_capacity(room),
            is_listener_ready: false,
            is_send_only: false,
            routes: None,
            is_behind: false,
            scratch: Scratch::default(),
            unwatched_from: None,
            offloads: ShardOffloads::default(),
        }
    }

    /// Asks for so large a receive buffer for the upstream sockets that open from now on, in bytes:
    /// what comes for many clients at the listener may come back for one.
    pub const fn set_receive_buffer(&mut self, bytes: usize) {
        self.sockets.receive_buffer = bytes;
    }

    /// Lets nothing that is sent be cut into fragments, or lets all be, whichever socket it leaves by.
    pub fn set_dont_fragment(&mut self, never: bool, kernel: &mut K) {
        if std::mem::replace(&mut self.sockets.dont_fragment, never) != never {
            self.sockets.all().for_each(|socket| kernel.set_dont_fragment(socket, never));
        }
    }

    /// What the kernel path has to know of it when another process goes on with it.
    pub const fn offloads(&self) -> &ShardOffloads {
        &self.offloads
    }

    /// The same, to be changed.
    pub const fn offloads_mut(&mut self) -> &mut ShardOffloads {
        &mut self.offloads
    }

    /// Leaves it to another shard to read the listener.
    pub const fn set_send_only(&mut self, is_send_only: bool) {
        self.is_send_only = is_send_only;
    }

    /// Has other shards serve some of its clients from now on, or none. Says whether that changes
    /// anything.
    pub fn set_routes(&mut self, routes: Option<Arc<Routes<u32>>>) -> bool {
        let is_new = self.routes != routes;
        self.routes = routes;
        is_new
    }

    /// The manager, for its counters and flows.
    pub const fn manager(&self) -> &UdpManager {
        &self.manager
    }

    /// What decides about the copies that some flows' datagrams have, if they do.
    pub const fn mirror(&self) -> Option<&UdpManager> {
        self.mirror.as_ref()
    }

    /// Notes no longer what changes in its managers.
    pub fn forget_changes(&mut self) {
        self.manager.forget_changes();
        self.mirror.iter_mut().for_each(UdpManager::forget_changes);
    }

    /// The manager and that of the mirror, to make snapshots of them.
    pub const fn managers_mut(&mut self) -> (&mut UdpManager, Option<&mut UdpManager>) {
        (&mut self.manager, self.mirror.as_mut())
    }

    /// When one of the managers wants to be called.
    pub fn poll_timeout(&self) -> Option<Deadline> {
        let deadline = self.manager.poll_timeout();
        let of_mirror = self.mirror.as_ref().and_then(UdpManager::poll_timeout);
        deadline.into_iter().chain(of_mirror).min_by_key(|deadline| deadline.at)
    }

    /// How many datagrams wait for room in send buffers, on their way in `direction`.
    pub fn queued(&self, direction: Direction) -> usize {
        match direction {
            Direction::ToBackend => {
                let on_flows: usize =
                    self.sockets.upstreams.iter().map(|u| u.send_queue.len()).sum();
                on_flows + self.sockets.queued_one_way()
            }
            Direction::ToClient => self.sockets.listener_queue.len(),
        }
    }

    /// Whether a tick would find something to read.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty() || self.sockets.clients.has_work() || self.unwatched_from.is_some()
    }

    /// The sockets that clients have for themselves.
    pub const fn clients(&self) -> &Clients<K::Socket> {
        &self.sockets.clients
    }

    /// Its listener socket.
    pub const fn listener(&self) -> &K::Socket {
        &self.sockets.listener
    }

    /// All of its sockets.
    pub const fn sockets(&self) -> &Sockets<K> {
        &self.sockets
    }

    /// Tells the manager of something other than traffic.
    pub fn handle(&mut self, input: ManagerInput<'_>, kernel: &mut K, now: Instant) {
        let mut dispatch =
            Dispatch::begin(kernel, &mut self.sockets, std::mem::take(&mut self.scratch));
        dispatch.decide(&mut self.manager, input, now);
        if matches!(input, ManagerInput::Configured(_)) {
            // Nothing goes to a removed backend from now on, not even what waits.
            let (backends, config) = (self.manager.backends(), self.manager.config());
            let (_, sockets) = dispatch.parts();
            sockets.max_datagram_size = config.max_datagram_size;
            sockets.questions = config.cluster.questions();
            dispatch.abandon(|address| !backends.has_address(address));
            dispatch.fit_egress_sockets(Role::Primary, backends, &self.manager.config().cluster);
        }
        // A drain is no matter of the mirror: flows that go on are copied until they end.
        if let (Some(mirror), ManagerInput::Timeout) = (&mut self.mirror, input) {
            dispatch.for_mirror(|dispatch| dispatch.decide(mirror, input, now));
        }
        self.scratch = Self::finish(&mut self.manager, self.mirror.as_mut(), dispatch, now);
    }

    /// Opens the sockets that do not wait for a flow.
    pub fn open_egress_sockets(&mut self, kernel: &mut K, now: Instant) {
        let mut dispatch =
            Dispatch::begin(kernel, &mut self.sockets, std::mem::take(&mut self.scratch));
        let (backends, cluster) = (self.manager.backends(), &self.manager.config().cluster);
        dispatch.fit_egress_sockets(Role::Primary, backends, cluster);
        self.scratch = Self::finish(&mut self.manager, self.mirror.as_mut(), dispatch, now);
    }

    /// Works with this mirror from now on, or with none. One that there is goes over to the new
    /// configuration; where there is none yet, one is made from the seed.
    pub fn set_mirror(
        &mut self,
        mirror: Option<(&PreparedConfig, u64)>,
        kernel: &mut K,
        now: Instant,
    ) {
        let scratch = std::mem::take(&mut self.scratch);
        let mut dispatch = Dispatch::begin(kernel, &mut self.sockets, scratch);
        match mirror {
            None => dispatch.close_egress_sockets(Role::Mirror),
            Some((configuration, seed)) => {
                let input = ManagerInput::Configured(configuration);
                let new = || UdpManager::configured(configuration, seed, now);
                let mirror = self.mirror.get_or_insert_with(new);
                dispatch.for_mirror(|dispatch| dispatch.decide(mirror, input, now));
                let cluster = &mirror.config().cluster;
                dispatch.fit_egress_sockets(Role::Mirror, mirror.backends(), cluster);
            }
        }
        self.scratch = Self::finish(&mut self.manager, self.mirror.as_mut(), dispatch, now);
        if mirror.is_none() {
            self.mirror = None;
        }
    }

    /// Tells the mirror, if there is one, of something other than traffic.
    pub fn handle_for_mirror(&mut self, input: ManagerInput<'_>, kernel: &mut K, now: Instant) {
        let Some(mirror) = &mut self.mirror else { return };
        let scratch = std::mem::take(&mut self.scratch);
        let mut dispatch = Dispatch::begin(kernel, &mut self.sockets, scratch);
        dispatch.for_mirror(|dispatch| dispatch.decide(mirror, input, now));
        self.scratch = Self::finish(&mut self.manager, Some(mirror), dispatch, now);
    }

    /// Ends all flows.
    pub fn close_all(&mut self, kernel: &mut K, now: Instant) {
        self.handle(ManagerInput::Drain { deadline: now }, kernel, now);
        while !self.manager.is_drained() {
            self.handle(ManagerInput::Timeout, kernel, now);
        }
    }

    /// Has someone watch what the managers decide.
    pub fn watch(&mut self, tap: Tap) {
        self.scratch.taps().add(tap);
    }

    /// Nobody watches any more.
    pub fn end_watches(&mut self) {
        self.scratch.taps().clear();
    }

    /// Takes what is to be written down of flows that have ended since the last time.
    pub fn take_records(&mut self) -> impl Iterator<Item = FlowRecord> {
        self.scratch.records.drain(..)
    }

    /// Notes what the poll told. Sends what waited for a socket that can be written to again.
    pub fn on_event(&mut self, token: Token, readiness: Readiness, kernel: &mut K, now: Instant) {
        if readiness.writable {
            let scratch = std::mem::take(&mut self.scratch);
            let mut dispatch = Dispatch::begin(kernel, &mut self.sockets, scratch);
            dispatch.resume(token);
            self.scratch = Self::finish(&mut self.manager, self.mirror.as_mut(), dispatch, now);
        }
        if !readiness.readable && !readiness.error {
            return;
        }
        match token {
            // Egress sockets are send-only.
            Token::Wake | Token::Network | Token::EgressSocket { .. } => {}
            Token::Listener { .. } if self.is_send_only => {}
            Token::Listener { .. } => {
                if !std::mem::replace(&mut self.is_listener_ready, true) {
                    self.ready.push_back(Ready::Listener);
                }
            }
            Token::Upstream { upstream: id, .. } => {
                let Some(upstream) = self.sockets.upstreams.get_mut(id) else {
                    return;
                };
                upstream.has_error |= readiness.error;
                if !std::mem::replace(&mut upstream.is_ready, true) {
                    self.ready.push_back(Ready::Upstream(id));
                }
            }
            Token::Client { slot, .. } => {
                let Sockets { clients, listener, .. } = &mut self.sockets;
                if clients.became_ready(slot, readiness.error, || kernel.most_queued(listener)) {
                    self.ready.push_back(Ready::Client(slot));
                }
            }
        }
    }

    /// Reads from the sockets that are ready, one batch from each in turn, as much as the arena
    /// holds; lets the manager decide on each burst; sends all of it.
    pub fn tick(&mut self, kernel: &mut K, arena: &mut Arena, now: Instant) {
        let mut routed = Vec::new();
        self.tick_routed(kernel, arena, &mut routed, now);
        self.take_in(routed.into_iter().map(|(_, input)| input), kernel, now);
    }

    /// The same where other shards serve some of its clients: what those sent is for them, and left in
    /// `routed` with their numbers.
    pub fn tick_routed<'t>(
        &mut self,
        kernel: &mut K,
        arena: &'t mut Arena,
        routed: &mut Vec<(u32, ManagerInput<'t>)>,
        now: Instant,
    ) {
        let mut tick = arena.begin();
        let scratch = std::mem::take(&mut self.scratch);
        let mut dispatch = Dispatch::begin(kernel, &mut self.sockets, scratch);
        if self.is_listener_ready {
            let is_behind = std::mem::take(&mut self.is_behind);
            dispatch.decide(&mut self.manager, ManagerInput::Reading { is_behind }, now);
        }
        let mut reading = Reading {
            manager: &mut self.manager,
            tick: &mut tick,
            bytes: 0,
            routes: self.routes.as_deref(),
            routed,
            now,
        };
        let mut fetched = 0;
        reading.close_parting(&mut dispatch);
        while reading.has_room() {
            if fetched == 0 {
                reading.manager.prefetch_upstreams(next_upstreams(&self.ready));
                fetched = LISTENER_BATCH;
            }
            fetched -= 1;
            let has_left = reading.read_leaving(&mut dispatch);
            let (_, Sockets { clients, .. }) = dispatch.parts();
            if clients.takes_the_listener() && !std::mem::replace(&mut self.is_listener_ready, true)
            {
                self.ready.push_back(Ready::Listener);
            }
            if has_left {
                continue;
            }
            let Some(ready) = self.ready.pop_front() else {
                break;
            };
            let is_drained = match ready {
                Ready::Listener => {
                    let release = |slot| self.ready.push_back(Ready::Client(slot));
                    reading.read_listener(&mut dispatch, release)
                }
                Ready::Upstream(id) => reading.read_upstream(id, &mut dispatch),
                Ready::Client(slot) => reading.read_client(slot, &mut dispatch),
            };
            if !is_drained {
                self.ready.push_back(ready);
            } else if matches!(ready, Ready::Listener) {
                self.is_listener_ready = false;
            }
        }
        if self.is_listener_ready {
            let (kernel, sockets) = dispatch.parts();
            self.is_behind = kernel.is_half_full(&sockets.listener);
        }
        if let Some(mirror) = &mut self.mirror {
            dispatch.pass_on_mirrored(|input, out| out.decide(mirror, input, now));
        }
        self.scratch = Self::finish(&mut self.manager, self.mirror.as_mut(), dispatch, now);
    }

    /// Takes in what clients sent that another shard has read.
    pub fn take_in<'t>(
        &mut self,
        inputs: impl IntoIterator<Item = ManagerInput<'t>>,
        kernel: &mut K,
        now: Instant,
    ) {
        let mut inputs = inputs.into_iter().peekable();
        if inputs.peek().is_none() {
            return;
        }
        let scratch = std::mem::take(&mut self.scratch);
        let mut dispatch = Dispatch::begin(kernel, &mut self.sockets, scratch);
        inputs.for_each(|input| dispatch.decide(&mut self.manager, input, now));
        if let Some(mirror) = &mut self.mirror {
            dispatch.pass_on_mirrored(|input, out| out.decide(mirror, input, now));
        }
        self.scratch = Self::finish(&mut self.manager, self.mirror.as_mut(), dispatch, now);
    }

    /// Ends a tick: sends, and tells the managers what went wrong.
    fn finish(
        manager: &mut UdpManager,
        mut mirror: Option<&mut UdpManager>,
        dispatch: Dispatch<'_, '_, K>,
        now: Instant,
    ) -> Scratch {
        dispatch.finish(|role, input, dispatch| match (role, &mut mirror) {
            (Role::Primary, _) => dispatch.decide(manager, input, now),
            (Role::Mirror, Some(mirror)) => {
                dispatch.for_mirror(|dispatch| dispatch.decide(mirror, input, now));
            }
            (Role::Mirror, None) => {}
        })
    }
}

/// The slots of the upstream sockets that are read next.
fn next_upstreams(ready: &VecDeque<Ready>) -> impl Iterator<Item = usize> {
    ready.iter().take(LISTENER_BATCH).filter_map(|ready| match ready {
        Ready::Upstream(id) => Some(id.index()),
        Ready::Listener | Ready::Client(_) => None,
    })
}
