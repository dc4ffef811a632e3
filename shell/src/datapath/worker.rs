//! A worker: one thread, its poll loop, and a shard of every listener.

#[cfg_attr(not(target_os = "linux"), path = "worker/fast_path/none.rs")]
mod fast_path;
#[cfg_attr(not(target_os = "linux"), path = "worker/hand_over/none.rs")]
mod hand_over;
pub mod kernel;
mod shared_flows;

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use flowgate_core::affinity::PlacedBy;
use flowgate_core::route::Routes;
use flowgate_core::{BackendEvent, BackendId, Instant, ManagerInput, PreparedConfig, UdpManager};
use mio::{Events, Poll};
use tracing::debug;

use crate::control::flow_log::FlowLogger;
use crate::datapath::fast_path::{InheritedFlows, Offloads};
use crate::datapath::kernel::Socket;
use crate::datapath::listener::SocketOptions;
use crate::datapath::report::{FlowFigures, ShardReport};
use crate::datapath::role::Role;
use crate::datapath::shard::{Readiness, Shard};
use crate::datapath::token::Token;
use crate::datapath::worker::kernel::WorkerKernel;
use crate::observe::record::{RecordOptions, RecordSender, RecordTap};
use crate::observe::tap::Tap;
use crate::observe::trace::{Filter, TraceSender, TraceTap};
use crate::sys::arena::Arena;
use crate::sys::clock::Clock;
use crate::sys::fd::{AsFd, OwnedFd};
use crate::sys::netlink::NetworkWatch;
use crate::sys::sockopt;

pub use hand_over::*;
use shared_flows::{SharedFlows, SharingShard};

/// How many bursts one tick can hold.
const ARENA_SLOTS: usize = 256;

/// How many events one poll can return.
const EVENTS: usize = 1_024;

/// How long timeouts wait for sockets to be read empty: under load they never are.
const MAX_TIMEOUT_DELAY: Duration = Duration::from_secs(2);

/// Where a worker says something of each of its shards, with their numbers.
pub type OfShards<T> = Sender<Vec<(u32, T)>>;

/// What other threads ask of a worker. It does so in the order in which it is asked.
pub enum Command {
    /// Serve a listener too, as the shard of this number.
    AddShard {
        /// The shard.
        shard: u32,
        /// The first shard of its listener.
        first: u32,
        /// The name of the listener.
        name: Arc<str>,
        /// Its socket.
        socket: Socket,
        /// What decides for it.
        manager: Box<UdpManager>,
    },
    /// Do what a handover to another process needs.
    HandOver(HandOver),
    /// End all flows of a shard and close its listener.
    RemoveShard {
        /// The shard.
        shard: u32,
        /// Where to report how things stood in the end.
        reply: Sender<ShardReport>,
    },
    /// Work by another configuration.
    Configure {
        /// The shard.
        shard: u32,
        /// The name of the listener.
        name: Arc<str>,
        /// What to ask of the kernel for its socket.
        options: SocketOptions,
        /// What its manager is told to do.
        configuration: Box<PreparedConfig>,
    },
    /// Have other shards serve some clients of a shard, or none.
    SetRoutes {
        /// The shard.
        shard: u32,
        /// Which clients, and the numbers of the shards.
        routes: Option<Arc<Routes<u32>>>,
    },
    /// Work with another mirror, or with none.
    SetMirror {
        /// The shard.
        shard: u32,
        /// What the mirror's manager is told to do, and a seed for it where it is new.
        mirror: Option<(Box<PreparedConfig>, u64)>,
    },
    /// There is news of a backend.
    BackendChanged {
        /// The shard.
        shard: u32,
        /// Whether it is one of the cluster's, or of its mirror's.
        role: Role,
        /// The backend.
        backend: BackendId,
        /// The news.
        event: BackendEvent,
    },
    /// Take no new flows; end when the last one has, or at `deadline`.
    Drain {
        /// When the flows that are left are closed.
        deadline: Instant,
    },
    /// End now.
    Stop,
    /// Say how things stand: a report for each shard, with its number.
    Report(OfShards<ShardReport>),
    /// Describe the flows in some slots of a shard. They are to be few: nothing is forwarded
    /// meanwhile.
    Flows {
        /// The shard.
        shard: u32,
        /// The slots.
        slots: Range<usize>,
        /// Where to.
        reply: Sender<Flows>,
    },
    /// Say which backend an id in a client's datagram names, if there is one that can take it.
    NamedBy {
        /// The shard.
        shard: u32,
        /// The datagram.
        datagram: Arc<[u8]>,
        /// Where to.
        reply: Sender<(PlacedBy, SocketAddr)>,
    },
    /// Have a trace watch a shard, as long as its reader reads.
    Trace {
        /// The shard.
        shard: u32,
        /// What the trace is about.
        filter: Arc<Filter>,
        /// Where to tell.
        sender: TraceSender,
    },
    /// Have a shard recorded, as long as the client that asked for it reads.
    Record {
        /// The shard.
        shard: u32,
        /// What is recorded.
        options: Arc<RecordOptions>,
        /// Where to tell.
        sender: RecordSender,
        /// The name of the listener's cluster.
        cluster: Arc<str>,
    },
    /// Give copies of the sockets of all listeners, by the numbers of the shards.
    Listeners(OfShards<OwnedFd>),
    /// Let the kernel forward flows past the sockets, where the managers allow it.
    UseFastPath(Box<Offloads>),
    /// Say that all that was asked before is done.
    Acknowledge(Sender<()>),
    /// Fall over a bug.
    #[cfg(test)]
    Panic,
}

/// Some flows of a shard.
pub struct Flows {
    /// The flows.
    pub flows: Vec<FlowFigures>,
    /// How many slots the shard has in all.
    pub slots: usize,
}

/// All that one thread runs.
pub struct Worker<K: WorkerKernel> {
    poll: Poll,
    events: Events,
    kernel: K,
    clock: Clock,
    arena: Arena,
    /// By their numbers.
    shards: Vec<Option<NamedShard<K>>>,
    shared_flows: SharedFlows,
    commands: Receiver<Command>,
    flow_log: FlowLogger,
    /// Tells of addresses, links and routes. `None` where the system does not.
    network: Option<NetworkWatch>,
    /// Since when timeouts are due that wait for sockets to be read empty.
    held_since: Option<Instant>,
    /// Told when a backend has gone over to another state.
    on_state_change: Option<StateListener>,
    /// What the kernel had forwarded for another process, as long as something may still be counted.
    inherited: Vec<InheritedFlows>,
    is_stopped: bool,
}

/// What is called when a backend has gone over to another state. It must not block.
pub type StateListener = Arc<dyn Fn() + Send + Sync>;

struct NamedShard<K: WorkerKernel> {
    name: Arc<str>,
    shard: Shard<K>,
    /// How often backends had gone over to another state when that was told last.
    state_changes: u64,
    sharing: SharingShard,
}

impl<K: WorkerKernel> Worker<K> {
    /// A worker without shards. The waker of `poll` must be registered under [`Token::Wake`].
    ///
    /// # Errors
    ///
    /// When the poll cannot be duplicated: out of descriptors.
    pub fn new(
        poll: Poll,
        clock: Clock,
        commands: Receiver<Command>,
        flow_log: FlowLogger,
    ) -> io::Result<Self> {
        let registry = poll.registry();
        let watch_network = || NetworkWatch::open(registry, Token::Network.into());
        let network = K::FOLLOWS_THE_NETWORK.then(watch_network).transpose();
        Ok(Self {
            network: network
                .inspect_err(|error| debug!("no news of this host's network: {error}"))
                .unwrap_or(None),
            kernel: K::on(poll.registry().try_clone()?),
            poll,
            events: Events::with_capacity(EVENTS),
            clock,
            arena: Arena::new(ARENA_SLOTS),
            shards: Vec::new(),
            shared_flows: SharedFlows::default(),
            commands,
            flow_log,
            held_since: None,
            on_state_change: None,
            inherited: Vec::new(),
            is_stopped: false,
        })
    }

    /// The same, which tells someone, if there is anyone, when a backend goes over to another state.
    #[must_use]
    pub fn telling_state_changes_to(self, listener: Option<StateListener>) -> Self {
        Self { on_state_change: listener, ..self }
    }

    /// Runs until it is stopped, or drained.
    ///
    /// Sockets are read empty before timeouts fire, so that a flow whose datagrams wait is not closed
    /// for being idle, however long this process has not been scheduled.
    ///
    /// # Errors
    ///
    /// Those of `epoll_wait(2)`, which a running kernel does not give, and of registering a
    /// listener with `epoll_ctl(2)`: out of memory.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.is_stopped && !self.is_drained() {
            self.wait()?;
            let now = self.clock.now();
            self.take_events(now)?;
            // There may be more events than fit, and the poll has yet to tell of what is watched again.
            let mut is_left = self.events.iter().count() == EVENTS;
            for number in 0..self.shards.len() {
                let Some(named) = &mut self.shards[number] else { continue };
                is_left |= self.kernel.watch_more(&mut named.shard)?;
                if !named.shard.has_work() {
                    continue;
                }
                self.shared_flows.tell(named, &mut self.kernel, now);
                let mut routed = Vec::new();
                named.shard.tick_routed(&mut self.kernel, &mut self.arena, &mut routed, now);
                is_left |= named.shard.has_work();
                self.shared_flows.count(named);
                let shards = (&mut *self.shards, &mut self.shared_flows);
                pass_on(shards, number, routed, &mut self.kernel, now);
                self.shared_flows.make_room(&mut self.shards, number, &mut self.kernel, now);
            }
            if self.is_timeout_due(now) {
                let is_first = self.held_since.is_none();
                let held_since = *self.held_since.get_or_insert(now);
                let is_late = now.saturating_since(held_since) > MAX_TIMEOUT_DELAY;
                let is_unread = is_left || (is_first && self.look_again(now)?);
                if is_late || !is_unread {
                    self.fire_timeouts(now);
                }
            } else {
                self.held_since = None;
            }
            self.serve_fast_path(is_left, now);
            self.log_flows();
            self.tell_state_changes();
        }
        self.close_recorded();
        Ok(())
    }

    /// Ends the flows that are to be written down when they end, since they end with this worker.
    fn close_recorded(&mut self) {
        let now = self.clock.now();
        for NamedShard { shard, .. } in self.shards.iter_mut().flatten() {
            if shard.manager().config().record_flows {
                shard.close_all(&mut self.kernel, now);
            }
        }
        self.log_flows();
    }

    /// Waits for events until the first deadline, or not at all while there is work left.
    fn wait(&mut self) -> io::Result<()> {
        let shards = || self.shards.iter().flatten().map(|named| &named.shard);
        let timeout = if shards().any(Shard::has_work) {
            Some(Duration::ZERO)
        } else {
            let deadline = shards().filter_map(Shard::poll_timeout).map(|d| d.at).min();
            deadline.map(|at| at.saturating_since(self.clock.now()))
        };
        let timeout = self.begin_poll(timeout);
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    fn take_events(&mut self, now: Instant) -> io::Result<()> {
        let (mut is_woken, mut is_network_news) = (false, false);
        for event in &self.events {
            let token = Token::from(event.token());
            let shard = match token {
                Token::Listener { shard }
                | Token::Upstream { shard, .. }
                | Token::EgressSocket { shard, .. }
                | Token::Client { shard, .. } => shard,
                Token::Wake => {
                    is_woken = true;
                    continue;
                }
                Token::Network => {
                    is_network_news = true;
                    continue;
                }
            };
            let readiness = Readiness {
                readable: event.is_readable(),
                writable: event.is_writable(),
                error: event.is_error(),
            };
            if let Some(Some(named)) = self.shards.get_mut(shard as usize) {
                named.shard.on_event(token, readiness, &mut self.kernel, now);
                self.shared_flows.count(named);
            }
        }
        if is_network_news {
            self.follow_network(now);
        }
        // Only now, so that no event of a shard that was removed meets its successor.
        if is_woken { self.take_commands(now) } else { Ok(()) }
    }

    /// Has sockets leave addresses that are gone; and where there may be a way now that there was
    /// not, nothing is held against backends any more that the network has said of them.
    fn follow_network(&mut self, now: Instant) {
        let Some(changes) = self.network.as_ref().map(NetworkWatch::changes) else { return };
        for NamedShard { shard, .. } in self.shards.iter_mut().flatten() {
            for &gone in &changes.gone {
                self.kernel.leave_address(shard, gone);
            }
            if changes.has_another_way {
                shard.handle(ManagerInput::NetworkChanged, &mut self.kernel, now);
            }
        }
        if let Some(fast_path) = self.kernel.fast_path_mut() {
            changes.gone.iter().for_each(|&gone| fast_path.leave_address(gone));
            if changes.have_routes_changed {
                fast_path.routes_changed();
            }
        }
    }

    fn take_commands(&mut self, now: Instant) -> io::Result<()> {
        while let Ok(command) = self.commands.try_recv() {
            self.handle_command(command, now)?;
        }
        Ok(())
    }

    fn handle_command(&mut self, command: Command, now: Instant) -> io::Result<()> {
        // Anyone who asks for an answer may have gone; then nobody needs it.
        match command {
            Command::AddShard { shard, first, name, socket, manager } => {
                let sharing = SharingShard::of_listener(first);
                self.add_shard(shard, (name, sharing), socket, *manager, now)?;
            }
            Command::SetRoutes { shard, routes } => {
                if let Some(Some(NamedShard { shard, .. })) = self.shards.get_mut(shard as usize)
                    && shard.set_routes(routes)
                {
                    // Clients may be another shard's from now on.
                    self.kernel.fast_path().into_iter().for_each(Offloads::close_all);
                }
            }
            Command::HandOver(command) => self.hand_over(command, now)?,
            Command::RemoveShard { shard, reply } => {
                if let Some(last) = self.remove_shard(shard, now) {
                    let _ = reply.send(last);
                }
            }
            Command::Configure { shard, name, options, configuration } => {
                if let Some(Some(named)) = self.shards.get_mut(shard as usize) {
                    named.name = name;
                    options.set(named.shard.listener().as_fd());
                    match_listener(&mut named.shard, &mut self.kernel);
                }
                self.tell(shard, ManagerInput::Configured(&configuration), now);
            }
            Command::SetMirror { shard, mirror } => {
                if let Some(Some(NamedShard { shard, .. })) = self.shards.get_mut(shard as usize) {
                    let mirror =
                        mirror.as_ref().map(|(configuration, seed)| (&**configuration, *seed));
                    shard.set_mirror(mirror, &mut self.kernel, now);
                }
            }
            Command::BackendChanged { shard, role: Role::Primary, backend, event } => {
                self.tell(shard, ManagerInput::BackendChanged { backend, event }, now);
            }
            Command::BackendChanged { shard, role: Role::Mirror, backend, event } => {
                if let Some(Some(NamedShard { shard, .. })) = self.shards.get_mut(shard as usize) {
                    let input = ManagerInput::BackendChanged { backend, event };
                    shard.handle_for_mirror(input, &mut self.kernel, now);
                }
            }
            Command::Drain { deadline } => {
                for NamedShard { shard, .. } in self.shards.iter_mut().flatten() {
                    shard.handle(ManagerInput::Drain { deadline }, &mut self.kernel, now);
                }
            }
            Command::Stop => self.is_stopped = true,
            Command::Report(reply) => {
                self.tell_all_activity(None, now);
                let _ = reply.send(self.reports());
            }
            Command::Flows { shard: number, slots, reply } => {
                self.tell_activity_in(number, slots.clone(), now);
                if let Some(Some(NamedShard { shard, .. })) = self.shards.get(number as usize) {
                    let flows = FlowFigures::of(shard.manager(), slots, now).map(|(id, flow)| {
                        FlowFigures { is_in_fast_path: self.is_in_fast_path(number, id), ..flow }
                    });
                    let flows = flows.collect();
                    let _ = reply.send(Flows { flows, slots: shard.manager().slots() });
                }
            }
            Command::NamedBy { shard, datagram, reply } => {
                if let Some(Some(NamedShard { shard, .. })) = self.shards.get(shard as usize)
                    && let Some((by, named)) = shard.manager().named_by(&datagram, now)
                    && let Some(backend) = shard.manager().backends().get(named)
                {
                    let _ = reply.send((by, backend.address()));
                }
            }
            Command::Trace { shard, filter, sender } => {
                let origin = self.clock.unix_time().saturating_sub(self.clock.uptime());
                if let Some(Some(NamedShard { name, shard, .. })) =
                    self.shards.get_mut(shard as usize)
                {
                    shard.watch(Tap::Trace(TraceTap::new(
                        filter,
                        sender,
                        Arc::clone(name),
                        origin,
                    )));
                }
            }
            Command::Record { shard: number, options, sender, cluster } => {
                if let Some(Some(NamedShard { name, shard, .. })) =
                    self.shards.get_mut(number as usize)
                {
                    let name = Arc::clone(name);
                    shard
                        .watch(Tap::Record(RecordTap::new(options, sender, number, name, cluster)));
                }
            }
            Command::Listeners(reply) => {
                let copy = |shard: &Shard<K>| shard.listener().as_fd().try_clone_to_owned().ok();
                let _ = reply.send(self.of_shards(copy));
            }
            Command::UseFastPath(offloads) => self.use_fast_path(offloads),
            Command::Acknowledge(reply) => {
                let _ = reply.send(());
            }
            #[cfg(test)]
            Command::Panic => panic!("a bug that a test has planted"),
        }
        Ok(())
    }

    /// The figures of all shards, with their numbers.
    fn reports(&self) -> Vec<(u32, ShardReport)> {
        let numbered = (0..).zip(&self.shards);
        let report = |(number, named): (u32, &Option<NamedShard<K>>)| {
            Some((number, self.report_of(number, &named.as_ref()?.shard)))
        };
        numbered.filter_map(report).collect()
    }

    fn report_of(&self, number: u32, shard: &Shard<K>) -> ShardReport {
        let drops = u64::from(self.kernel.receive_drops(shard.listener())) + shard.clients().drops;
        let mut report = ShardReport::of(shard, drops);
        if let Some(path) = self.kernel.fast_path() {
            report.fast_path.add(path.figures(number));
        }
        report
    }

    /// Something of every shard that has it, with the shards' numbers.
    fn of_shards<T>(&self, of: impl Fn(&Shard<K>) -> Option<T>) -> Vec<(u32, T)> {
        let numbered = (0..).zip(&self.shards);
        numbered.filter_map(|(number, named)| Some((number, of(&named.as_ref()?.shard)?))).collect()
    }

    fn add_shard(
        &mut self,
        number: u32,
        (name, sharing): (Arc<str>, SharingShard),
        listener: Socket,
        manager: UdpManager,
        now: Instant,
    ) -> io::Result<()> {
        let is_send_only = listener.is_send_only();
        let listener = self.kernel.listen(listener, Token::Listener { shard: number })?;
        let mut shard = Shard::new(number, listener, manager);
        shard.set_send_only(is_send_only);
        match_listener(&mut shard, &mut self.kernel);
        shard.open_egress_sockets(&mut self.kernel, now);
        self.insert(number, NamedShard { name, shard, state_changes: 0, sharing });
        Ok(())
    }

    fn insert(&mut self, number: u32, mut shard: NamedShard<K>) {
        self.shared_flows.count(&mut shard);
        let index = number as usize;
        if self.shards.len() <= index {
            self.shards.resize_with(index + 1, || None);
        }
        self.shards[index] = Some(shard);
    }

    fn remove_shard(&mut self, number: u32, now: Instant) -> Option<ShardReport> {
        let mut named = self.shards.get_mut(number as usize)?.take()?;
        self.shared_flows.forget(&mut named);
        let NamedShard { name, mut shard, .. } = named;
        shard.close_all(&mut self.kernel, now);
        shard.take_records().for_each(|ended| self.flow_log.log(&name, &ended));
        let report = self.report_of(number, &shard);
        if let Some(fast_path) = self.kernel.fast_path_mut() {
            fast_path.forget(number);
        }
        Some(report)
    }

    fn tell(&mut self, shard: u32, input: ManagerInput<'_>, now: Instant) {
        if let Some(Some(named)) = self.shards.get_mut(shard as usize) {
            named.shard.handle(input, &mut self.kernel, now);
            self.shared_flows.count(named);
        }
    }

    fn is_timeout_due(&self, now: Instant) -> bool {
        let mut shards = self.shards.iter().flatten();
        shards.any(|named| named.shard.poll_timeout().is_some_and(|deadline| deadline.at <= now))
    }

    /// Whether something has come until `now` that the last poll has not told of, as is so where this
    /// process stood still in it or after it. It is ready to be read then.
    fn look_again(&mut self, now: Instant) -> io::Result<bool> {
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            outcome => outcome?,
        }
        let has_come = !self.events.is_empty();
        self.take_events(now)?;
        Ok(has_come)
    }

    fn fire_timeouts(&mut self, now: Instant) {
        for named in self.shards.iter_mut().flatten() {
            if named.shard.poll_timeout().is_some_and(|deadline| deadline.at <= now) {
                self.shared_flows.tell(named, &mut self.kernel, now);
                named.shard.handle(ManagerInput::Timeout, &mut self.kernel, now);
                self.shared_flows.count(named);
            }
        }
    }

    /// Says if a backend has gone over to another state since that was said last.
    fn tell_state_changes(&mut self) {
        let mut is_new = false;
        for NamedShard { shard, state_changes, .. } in self.shards.iter_mut().flatten() {
            let now = shard.manager().backends().state_changes();
            is_new |= std::mem::replace(state_changes, now) != now;
        }
        if let Some(listener) = self.on_state_change.as_ref().filter(|_| is_new) {
            listener();
        }
    }

    fn log_flows(&mut self) {
        for NamedShard { name, shard, .. } in self.shards.iter_mut().flatten() {
            shard.take_records().for_each(|ended| self.flow_log.log(name, &ended));
        }
    }

    fn is_drained(&self) -> bool {
        let mut shards = self.shards.iter().flatten().peekable();
        shards.peek().is_some() && shards.all(|named| named.shard.manager().is_drained())
    }
}

/// Has a shard's other sockets be like its listener's: upstream sockets open with such receive buffers,
/// and none sends fragments if that does not.
fn match_listener<K: WorkerKernel>(shard: &mut Shard<K>, kernel: &mut K) {
    let listener = shard.listener().as_fd();
    let of_listener = socket2::SockRef::from(&listener).recv_buffer_size();
    let never = sockopt::dont_fragment(listener);
    shard
        .set_receive_buffer(of_listener.map_or(0, |bytes| bytes / sockopt::REPORTED_BUFFER_FACTOR));
    shard.set_dont_fragment(never, kernel);
}

/// Gives other shards what a shard has read for them, in order. What is for one that is gone is for
/// the one that has read it.
fn pass_on<'t, K: WorkerKernel>(
    (shards, shared_flows): (&mut [Option<NamedShard<K>>], &mut SharedFlows),
    reader: usize,
    mut routed: Vec<(u32, ManagerInput<'t>)>,
    kernel: &mut K,
    now: Instant,
) {
    while let Some(&(next, _)) = routed.first() {
        let (its, others): (Vec<_>, Vec<_>) = routed.into_iter().partition(|(to, _)| *to == next);
        let is_there = matches!(shards.get(next as usize), Some(Some(_)));
        let to = if is_there { next as usize } else { reader };
        if let Some(Some(named)) = shards.get_mut(to) {
            shared_flows.tell(named, kernel, now);
            named.shard.take_in(its.into_iter().map(|(_, input)| input), kernel, now);
            shared_flows.count(named);
            shared_flows.make_room(shards, to, kernel, now);
        }
        routed = others;
    }
}
