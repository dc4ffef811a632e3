//! The flows of one worker that the kernel forwards.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flowgate_core::{BackendId, FlowId, Instant};
use flowgate_fastpath::{Entry, EntryAccount, EntryOptions, LoadError, Progress, Table};

use super::accounts::{Told, is_settled, pair};
use super::entries::{Addresses, Path, Rewriting};
use super::inherited::OffloadSnapshot;
use super::ways::Ways;
use super::{Activity, FastPathFigures, SharedFastPath};
use crate::sys::clock::Clock;
use crate::sys::route::Link;

/// How often the core is told what the kernel has forwarded, where nobody asks before.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How often routes are looked up again, if nothing was heard of them: paths learn of smaller packets.
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);

/// How soon after a change of routes and links they are looked up, all that come meanwhile together.
const LOOK_UP_AFTER: Duration = Duration::from_millis(50);

/// How many flows are looked at between two turns; and how many where their routes are looked up, of
/// which each may take the kernel some microseconds.
const SLOTS_AT_ONCE: usize = 1_024;
const ROUTES_AT_ONCE: usize = 64;

/// How long accounts rest after their entries are gone: a packet may still be on its way.
pub(super) const REST: Duration = Duration::from_secs(1);

/// How often it is looked whether flows have paused for long enough to go past the sockets.
const PENDING_TIMEOUT: Duration = Duration::from_millis(1);

/// A flow, of a shard.
pub(super) type Key = (u32, FlowId);

/// The flows of one worker that the kernel forwards, and those of which it may still count something.
#[derive(Debug)]
pub struct Offloads {
    shared: Arc<SharedFastPath>,
    worker: u16,
    table: Table,
    ways: Ways,
    clock: Clock,
    /// By half the number of their first account.
    flows: Vec<Option<Offloaded>>,
    index: HashMap<Key, u32>,
    /// One for each backend of each shard.
    gates: HashMap<(u32, BackendId), u32>,
    figures: HashMap<u32, FastPathFigures>,
    /// Flows that were recalled, in that order.
    resting: VecDeque<Resting>,
    /// First accounts of flows that may not have come into force, and when to look at them.
    pending: Vec<u32>,
    next_settling: Instant,
    /// When the poll was last begun. Whatever had come before, it has told of.
    poll_began: Instant,
    /// The next slot of the look at all flows that is under way.
    cursor: Option<usize>,
    looks_up_routes: bool,
    /// Whether the program may be attached to an interface that no flow uses.
    is_attached: bool,
    /// Whether another process may go on with its flows: nobody here is to be told of them.
    is_lent: bool,
    next_look: Instant,
    next_look_up: Instant,
}

#[derive(Debug)]
struct Offloaded {
    key: Key,
    backend: BackendId,
    rewritings: [Rewriting; 2],
    paths: [Path; 2],
    max_datagram_size: u16,
    /// The gate's epoch under which its entries were made; `None` if they are not in the maps.
    epoch: Option<u32>,
    /// Whether it has come into force for good, or not.
    is_settled: bool,
    told: Told,
}

#[derive(Debug)]
struct Resting {
    /// `None` if its shard is no more.
    key: Option<Key>,
    backend: BackendId,
    accounts: u32,
    told: Told,
    until: Instant,
}

impl Offloads {
    /// Nothing yet, for a worker.
    ///
    /// # Errors
    ///
    /// When descriptors cannot be had, or there are too many workers.
    pub fn new(shared: Arc<SharedFastPath>, clock: Clock) -> Result<Self, LoadError> {
        let other = |error: io::Error| LoadError::Other(format!("no word of routes: {error}"));
        let ways = Ways::open().map_err(other)?;
        let joined = shared.join()?;
        let (worker, table) =
            joined.ok_or_else(|| LoadError::Other("there are too many workers".to_owned()))?;
        let now = clock.now();
        Ok(Self {
            shared,
            worker,
            table,
            ways,
            clock,
            flows: Vec::new(),
            index: HashMap::new(),
            gates: HashMap::new(),
            figures: HashMap::new(),
            resting: VecDeque::new(),
            pending: Vec::new(),
            next_settling: now,
            poll_began: now,
            cursor: None,
            looks_up_routes: false,
            is_attached: false,
            is_lent: false,
            next_look: now + TELL_EVERY,
            next_look_up: now + LOOK_UP_EVERY,
        })
    }

    /// Lets the kernel forward a flow's datagrams from when the flow pauses, if it can.
    pub fn offload(
        &mut self,
        key: Key,
        backend: BackendId,
        addresses: &Addresses,
        max_datagram_size: u16,
    ) {
        let now = self.clock.now();
        let Some(rewritings) = addresses.rewritings() else { return };
        if let Some(&slot) = self.index.get(&key) {
            let flow = self.flows.get_mut(slot as usize).and_then(Option::as_mut);
            let flow = flow.filter(|f| (f.backend, f.rewritings) == (backend, rewritings));
            if let Some(flow) = flow {
                // A reload may have changed it.
                flow.max_datagram_size = max_datagram_size;
                self.reopen(slot, now);
                return;
            }
            // It sends from another address than before.
            self.take_back(key);
        }
        let Some(gate) = self.gate(key.0, backend) else { return };
        let Some(accounts) = self.table.take_accounts() else { return };
        let found = self.find_paths(&rewritings, max_datagram_size);
        let Some(found) = found.filter(|found| self.attach(found, now)) else {
            self.table.release_accounts(accounts);
            return;
        };
        let epoch = Some(self.table.gate(gate).epoch());
        let (paths, told) = (found.map(|(path, _)| path), Told::default());
        let flow = Offloaded {
            key,
            backend,
            rewritings,
            paths,
            max_datagram_size,
            epoch,
            is_settled: false,
            told,
        };
        let now_ns = self.monotonic_ns(now);
        pair(&self.table, accounts).into_iter().for_each(|account| account.begin(now_ns));
        if !insert(&mut self.table, &flow, gate, accounts, self.worker) {
            paths.iter().for_each(|path| self.shared.release(path.ifindex));
            self.table.release_accounts(accounts);
            return;
        }
        let slot = accounts / 2;
        if self.flows.len() <= slot as usize {
            self.flows.resize_with(slot as usize + 1, || None);
        }
        self.flows[slot as usize] = Some(flow);
        self.index.insert(key, slot);
        self.pending.push(accounts);
        self.figures.entry(key.0).or_default().flows += 1;
    }

    /// Has a flow's datagrams come by the sockets again, and says what the kernel has forwarded.
    /// `None` if it did not forward the flow.
    pub fn recall(&mut self, key: Key) -> Option<Activity> {
        self.take_back(key)?;
        let resting = self.resting.back_mut()?;
        let Resting { accounts, backend, .. } = *resting;
        Some(activity(&mut resting.told, pair(&self.table, accounts), backend, self.clock))
    }

    /// Removes a flow's entries. What they have counted is told when their accounts have rested.
    fn take_back(&mut self, key: Key) -> Option<()> {
        let slot = self.index.remove(&key)?;
        let mut flow = self.flows.get_mut(slot as usize)?.take()?;
        for (rewriting, path) in flow.rewritings.iter().zip(&flow.paths) {
            self.table.remove(&rewriting.from);
            self.shared.release(path.ifindex);
        }
        let accounts = slot * 2;
        let figures = self.figures.entry(key.0).or_default();
        figures.flows -= 1;
        settle(&self.table, &mut flow, accounts, figures);
        let Offloaded { backend, told, .. } = flow;
        let until = self.clock.now() + REST;
        self.resting.push_back(Resting { key: Some(key), backend, accounts, told, until });
        Some(())
    }

    /// An address of this host is gone: flows that send from it are to find another.
    pub fn leave_address(&mut self, gone: IpAddr) {
        let sends_from = |flow: &&Offloaded| {
            flow.rewritings.iter().any(|rewriting| rewriting.to.source().ip() == gone)
        };
        let all = self.flows.iter().flatten().filter(sends_from);
        let keys: Vec<Key> = all.map(|flow| flow.key).collect();
        for key in keys {
            self.take_back(key);
        }
    }

    /// Has the datagrams of all flows of a backend come by the sockets again, from the next on.
    pub fn recall_backend(&self, shard: u32, backend: BackendId) {
        if let Some(&gate) = self.gates.get(&(shard, backend)) {
            self.table.gate(gate).close();
        }
    }

    /// Has all datagrams come by the sockets again, from the next on.
    pub fn close_all(&self) {
        self.gates.values().for_each(|&gate| self.table.gate(gate).close());
    }

    /// What was still counted of the flows that have been recalled. Their accounts are not given back
    /// before they have rested: this may be called sooner.
    pub fn read_resting(&mut self) -> Vec<(Key, Activity)> {
        let Self { resting, table, clock, .. } = self;
        resting.iter_mut().filter_map(|resting| resting.read(table, *clock)).collect()
    }

    /// What the kernel has forwarded of a flow since that was told last. `None` if it does not forward
    /// the flow.
    pub fn activity(&mut self, key: Key) -> Option<Activity> {
        let slot = *self.index.get(&key)?;
        let flow = self.flows.get_mut(slot as usize)?.as_mut()?;
        Some(activity(&mut flow.told, pair(&self.table, slot * 2), flow.backend, self.clock))
    }

    /// Whether the kernel forwards a flow.
    pub fn has(&self, key: Key) -> bool {
        let slot = self.index.get(&key).and_then(|&slot| self.flows.get(slot as usize)?.as_ref());
        slot.is_some_and(|flow| self.is_open(flow))
    }

    /// The figures of a shard.
    pub fn figures(&self, shard: u32) -> FastPathFigures {
        self.figures.get(&shard).copied().unwrap_or_default()
    }

    /// The flows of a shard, or of all.
    pub fn keys(&self, shard: Option<u32>) -> Vec<Key> {
        let is_of = |key: &&Key| shard.is_none_or(|shard| key.0 == shard);
        self.index.keys().filter(is_of).copied().collect()
    }

    /// The flows that may not have come into force yet: while nobody serves, their datagrams would
    /// overtake those that wait in the sockets.
    pub fn unsettled(&self) -> Vec<Key> {
        let unsettled = self.flows.iter().flatten().filter(|flow| !flow.is_settled);
        unsettled.map(|flow| flow.key).collect()
    }

    /// Goes on with no more than what is in force, for another process that may take over. Nobody here
    /// is told of it, until this is called off.
    pub const fn set_lent(&mut self, is_lent: bool) {
        self.is_lent = is_lent;
    }

    /// How often one of a shard's datagrams may have been overtaken. It is another's to tell from now on.
    pub fn take_overtaken(&mut self, shard: u32) -> u64 {
        self.figures.get_mut(&shard).map_or(0, |figures| std::mem::take(&mut figures.overtaken))
    }

    /// What another process has to know of a shard's flows.
    pub fn snapshot(&self, shard: u32) -> Vec<OffloadSnapshot> {
        let is_its = |key: Key| key.0 == shard;
        let in_force = (0..).zip(&self.flows).filter_map(|(slot, flow)| {
            let flow = flow.as_ref().filter(|flow| is_its(flow.key))?;
            let Offloaded { key, backend, told, .. } = *flow;
            let gate = self.gates.get(&(shard, backend)).copied();
            Some(OffloadSnapshot { flow: key.1, backend, accounts: slot * 2, gate, told })
        });
        let resting = self.resting.iter().filter_map(|resting| {
            let Resting { key, backend, accounts, told, .. } = *resting;
            let (_, flow) = key.filter(|key| is_its(*key))?;
            Some(OffloadSnapshot { flow, backend, accounts, gate: None, told })
        });
        in_force.chain(resting).collect()
    }

    /// A shard is no more: its flows were recalled. What is counted after this is not told.
    pub fn forget(&mut self, shard: u32) {
        let table = &self.table;
        self.gates.retain(|&(of, _), gate| {
            if of == shard {
                table.release_gate(*gate);
            }
            of != shard
        });
        self.figures.remove(&shard);
        // Its number may be another's soon.
        let its =
            self.resting.iter_mut().filter(|resting| resting.key.is_some_and(|key| key.0 == shard));
        its.for_each(|resting| resting.key = None);
    }

    /// A route or a link has changed.
    pub fn routes_changed(&mut self) {
        self.ways.forget();
        let now = self.clock.now();
        self.next_look_up = self.next_look_up.min(now + LOOK_UP_AFTER);
        self.next_look = self.next_look.min(now + LOOK_UP_AFTER);
    }

    /// How long the poll may wait at most.
    pub fn poll_timeout(&self, now: Instant) -> Option<Duration> {
        if self.is_lent {
            // The program wants to see this worker alive.
            return Some(TELL_EVERY);
        }
        if self.cursor.is_some() {
            return Some(Duration::ZERO);
        }
        if !self.pending.is_empty() {
            return Some(PENDING_TIMEOUT);
        }
        let is_idle = self.index.is_empty() && self.resting.is_empty() && !self.is_attached;
        (!is_idle).then(|| self.next_look.saturating_since(now))
    }

    /// The poll begins: it tells of whatever has come until now.
    pub const fn begin_poll(&mut self, now: Instant) {
        self.poll_began = now;
    }

    /// The worker has done what the poll told. Where `is_all_sent`, nothing that came before the poll
    /// waits to be read or sent.
    pub fn end_turn(&mut self, is_all_sent: bool, now: Instant) {
        let turn = self.table.turn(self.worker);
        turn.alive_ns.store(self.monotonic_ns(now), Ordering::Relaxed);
        if !is_all_sent || self.is_lent {
            return;
        }
        let done_ns = self.monotonic_ns(self.poll_began);
        turn.done_ns.store(done_ns, Ordering::Release);
        if !self.pending.is_empty() && now >= self.next_settling {
            self.next_settling = now + PENDING_TIMEOUT;
            self.settle(done_ns);
        }
    }

    /// Looks which flows go past the sockets for good, now that whatever had arrived before `done_ns`
    /// has been sent on.
    fn settle(&mut self, done_ns: u64) {
        let Self { table, flows, figures, pending, .. } = self;
        pending.retain(|&accounts| {
            let flow = flows.get_mut(accounts as usize / 2).and_then(Option::as_mut);
            let Some(flow) = flow else { return false };
            let mut both = pair(table, accounts).into_iter();
            let is_pending = !both.all(|account| is_settled(account, done_ns));
            if !is_pending {
                settle(table, flow, accounts, figures.entry(flow.key.0).or_default());
            }
            is_pending
        });
    }

    /// What there is to tell now: of some flows, once a second of each; and what was still counted of
    /// flows that have been recalled.
    pub fn due(&mut self, now: Instant) -> Vec<(Key, Activity)> {
        if self.is_lent {
            return Vec::new();
        }
        let mut all = self.rested(now);
        let begins = now >= self.next_look;
        if self.cursor.is_none() && begins {
            self.cursor = Some(0);
            self.next_look = now + TELL_EVERY;
            self.looks_up_routes = now >= self.next_look_up;
            if self.looks_up_routes {
                self.next_look_up = now + LOOK_UP_EVERY;
                self.ways.forget();
            }
            self.is_attached = self.shared.detach_unused(now);
        }
        let Some(first) = self.cursor else { return all };
        let most = if self.looks_up_routes { ROUTES_AT_ONCE } else { SLOTS_AT_ONCE };
        let end = (first + most).min(self.flows.len());
        for slot in first..end {
            let Some(flow) = &mut self.flows[slot] else { continue };
            let (accounts, backend) = (slot as u32 * 2, flow.backend);
            let activity =
                activity(&mut flow.told, pair(&self.table, accounts), backend, self.clock);
            if !activity.is_empty() {
                all.push((flow.key, activity));
            }
            if self.looks_up_routes {
                self.follow_routes(slot as u32, now);
            }
        }
        self.cursor = (end < self.flows.len()).then_some(end);
        all
    }

    /// Sends a flow's packets by the ways that there are now, if these are others; where there is none,
    /// its datagrams come by the sockets.
    fn follow_routes(&mut self, slot: u32, now: Instant) {
        let Some(Some(flow)) = self.flows.get(slot as usize) else { return };
        let (was_open, former) = (self.is_open(flow), flow.paths);
        let has_paths = self.renew_paths(slot, now);
        let Some(Some(flow)) = self.flows.get_mut(slot as usize) else { return };
        if !has_paths {
            flow.rewritings.iter().for_each(|rewriting| self.table.remove(&rewriting.from));
            // Until it is offered again.
            flow.epoch = None;
        } else if was_open && flow.paths != former {
            self.open(slot);
        }
    }

    /// Looks up a flow's paths again. Says whether there are any.
    fn renew_paths(&mut self, slot: u32, now: Instant) -> bool {
        let Some(Some(flow)) = self.flows.get(slot as usize) else { return false };
        let (former, rewritings, longest) = (flow.paths, flow.rewritings, flow.max_datagram_size);
        let Some(found) = self.find_paths(&rewritings, longest) else { return false };
        let paths = [found[0].0, found[1].0];
        if paths != former {
            if !self.attach(&found, now) {
                return false;
            }
            former.iter().for_each(|path| self.shared.release(path.ifindex));
            if let Some(Some(flow)) = self.flows.get_mut(slot as usize) {
                flow.paths = paths;
            }
        }
        true
    }

    /// A flow that is offered again comes back, where it was not in force.
    fn reopen(&mut self, slot: u32, now: Instant) {
        let flow = self.flows.get(slot as usize).and_then(Option::as_ref);
        let is_closed = flow.is_some_and(|flow| !self.is_open(flow));
        if is_closed && self.renew_paths(slot, now) {
            self.open(slot);
        }
    }

    /// Puts a flow's entries into force again, from when it pauses.
    fn open(&mut self, slot: u32) {
        let now_ns = self.monotonic_ns(self.clock.now());
        let Self { table, flows, gates, figures, .. } = self;
        let Some(Some(flow)) = flows.get_mut(slot as usize) else { return };
        let Some(&gate) = gates.get(&(flow.key.0, flow.backend)) else { return };
        let accounts = slot * 2;
        settle(table, flow, accounts, figures.entry(flow.key.0).or_default());
        flow.is_settled = false;
        pair(table, accounts).into_iter().for_each(|account| account.begin_again(now_ns));
        flow.epoch = Some(table.gate(gate).epoch());
        if insert(table, flow, gate, accounts, self.worker) {
            self.pending.push(accounts);
        } else {
            flow.epoch = None;
        }
    }

    fn is_open(&self, flow: &Offloaded) -> bool {
        let gate = self.gates.get(&(flow.key.0, flow.backend));
        gate.is_some_and(|&gate| flow.epoch == Some(self.table.gate(gate).epoch()))
    }

    fn gate(&mut self, shard: u32, backend: BackendId) -> Option<u32> {
        if let Some(&gate) = self.gates.get(&(shard, backend)) {
            return Some(gate);
        }
        let gate = self.table.take_gate()?;
        self.gates.insert((shard, backend), gate);
        Some(gate)
    }

    fn find_paths(
        &mut self,
        [to_backend, to_client]: &[Rewriting; 2],
        max_datagram_size: u16,
    ) -> Option<[(Path, Link); 2]> {
        let ways = &mut self.ways;
        Some([ways.of(to_backend, max_datagram_size)?, ways.of(to_client, max_datagram_size)?])
    }

    /// Packets of one direction arrive where those of the other leave.
    fn attach(&mut self, paths: &[(Path, Link); 2], now: Instant) -> bool {
        let [(first, link), (second, other)] = paths;
        self.is_attached = true;
        if !self.shared.attach(first.ifindex, link, now) {
            return false;
        }
        let both = self.shared.attach(second.ifindex, other, now);
        if !both {
            self.shared.release(first.ifindex);
        }
        both
    }

    /// What packets that were on their way when their flow was recalled have added.
    fn rested(&mut self, now: Instant) -> Vec<(Key, Activity)> {
        let mut late = Vec::new();
        while self.resting.front().is_some_and(|resting| resting.until <= now) {
            let Some(mut resting) = self.resting.pop_front() else { break };
            late.extend(resting.read(&self.table, self.clock));
            self.table.release_accounts(resting.accounts);
        }
        late
    }

    fn monotonic_ns(&self, at: Instant) -> u64 {
        let since = self.clock.origin() + at.saturating_since(Instant::ORIGIN);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Drop for Offloads {
    fn drop(&mut self) {
        if self.is_lent {
            return;
        }
        for key in self.keys(None) {
            self.recall(key);
        }
        for resting in self.resting.drain(..) {
            self.table.release_accounts(resting.accounts);
        }
        self.gates.values().for_each(|&gate| self.table.release_gate(gate));
        self.shared.leave(self.worker);
    }
}

impl Resting {
    /// What has been counted since that was told last, if anybody is to be told.
    fn read(&mut self, table: &Table, clock: Clock) -> Option<(Key, Activity)> {
        let activity = activity(&mut self.told, pair(table, self.accounts), self.backend, clock);
        self.key.filter(|_| !activity.is_empty()).map(|key| (key, activity))
    }
}

/// Takes note of how a flow has come into force, once.
fn settle(table: &Table, flow: &mut Offloaded, accounts: u32, figures: &mut FastPathFigures) {
    if !std::mem::replace(&mut flow.is_settled, true) {
        let both = pair(table, accounts).into_iter();
        let forced = both.filter(|account| account.progress() == Progress::Forced);
        figures.overtaken += forced.count() as u64;
    }
}

/// What two accounts have counted since that was told last.
pub(super) fn activity(
    told: &mut Told,
    accounts: [&EntryAccount; 2],
    backend: BackendId,
    clock: Clock,
) -> Activity {
    let news = told.update(accounts);
    let last = Some(news.last(clock.origin()));
    Activity { backend, to_backend: news.to_backend, to_client: news.to_client, last }
}

/// Puts both entries of a flow into the maps, or none.
fn insert(table: &mut Table, flow: &Offloaded, gate: u32, accounts: u32, worker: u16) -> bool {
    let Some(epoch) = flow.epoch else { return false };
    for (number, (rewriting, path)) in (0..).zip(flow.rewritings.iter().zip(&flow.paths)) {
        let options = EntryOptions {
            account: accounts + number,
            gate,
            epoch,
            worker,
            ifindex: path.ifindex,
            next_hop: path.neighbour,
            max_len: path.max_len,
            is_pending: true,
        };
        let entry = Entry::new(&rewriting.from, &rewriting.to, &options);
        if entry.is_none_or(|entry| table.insert(&rewriting.from, &entry).is_err()) {
            flow.rewritings.iter().for_each(|rewriting| table.remove(&rewriting.from));
            return false;
        }
    }
    true
}
