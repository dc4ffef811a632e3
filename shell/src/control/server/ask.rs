//! How things stand, asked of all workers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;

use flowgate_core::Instant;
use flowgate_core::affinity::PlacedBy;
use flowgate_core::counters::Counters;

use super::{BoundListener, Server, command_shards, worker_of};
use crate::admin::request::FlowFilter;
use crate::admin::status::{FlowStatus, FlowsDocument};
use crate::datapath::report::{BackendReport, FlowFigures, ListenerReport, ShardReport};
use crate::datapath::worker::{Command, Flows, OfShards};
use crate::observe::record::{RecordOptions, RecordSender};
use crate::observe::trace::{Filter, TraceSender};
use crate::sys::fd::OwnedFd;

/// How many slots of the flow table a worker looks at in one go: some tens of microseconds.
const SLOTS_AT_ONCE: usize = 2_048;

impl Server {
    /// How things stand on each listener, in the order of the configuration. Workers that have
    /// ended are left out.
    pub fn report(&self) -> Vec<ListenerReport> {
        let figures = self.figures();
        let described = self.listeners.iter().map(|listener| ListenerReport {
            name: listener.settings.name.clone(),
            address: listener.described(),
            cluster: listener.settings.cluster.name.clone(),
            mirror: listener.mirror.as_ref().map(|mirror| mirror.cluster.name.clone()),
            flows_max: listener.flows_max,
            fast_path: self.fast_path_state(listener),
            figures: listener.with_its_addresses(figures.of(&listener.shards)),
        });
        described.collect()
    }

    /// Adds to the figures of a backend what listeners counted that a reload has removed.
    pub fn add_past(&self, cluster: &str, report: &mut BackendReport) {
        self.past_backends.add_to(cluster, report);
    }

    /// What listeners counted that a reload has removed.
    pub const fn past(&self) -> &Counters {
        &self.past
    }

    /// The flows that fit a filter.
    pub fn flows(&self, filter: &FlowFilter) -> FlowsDocument {
        let mut document = FlowsDocument::default();
        let is_meant = |listener: &&BoundListener| {
            filter.listener.as_ref().is_none_or(|name| *name == listener.settings.name)
        };
        let limit = filter.limit.min(FlowFilter::MAX);
        for listener in self.listeners.iter().filter(is_meant) {
            for (index, &shard) in listener.shards.iter().enumerate() {
                let all = self.flows_of(shard, worker_of(index, self.workers.len()));
                for flow in all.filter(|flow| fits(flow, filter)) {
                    if document.flows.len() == limit {
                        document.truncated = true;
                        return document;
                    }
                    document.flows.push(describe(&flow, listener, index));
                }
            }
        }
        document
    }

    /// The backend that an id in a client's datagram to a listener names, and how it is known, if there is
    /// one that can take it.
    pub fn named_by(&self, listener: &str, datagram: &[u8]) -> Option<(PlacedBy, SocketAddr)> {
        let listener = self.listeners.iter().find(|l| l.settings.name == listener)?;
        let (sender, named) = mpsc::channel();
        let datagram: Arc<[u8]> = datagram.into();
        command_shards(&self.workers, &listener.shards, |_, shard| {
            let (datagram, reply) = (Arc::clone(&datagram), sender.clone());
            Command::NamedBy { shard, datagram, reply }
        });
        drop(sender);
        named.recv().ok()
    }

    /// Has a trace watch all listeners whose cluster, or whose mirror, has this name, or all.
    pub fn trace(&self, cluster: Option<&str>, filter: &Arc<Filter>, sender: &TraceSender) {
        for listener in &self.listeners {
            let mirror = listener.mirror.as_ref().map(|mirror| &*mirror.cluster.name);
            let names = [Some(&*listener.settings.cluster.name), mirror];
            if cluster.is_some() && !names.contains(&cluster) {
                continue;
            }
            command_shards(&self.workers, &listener.shards, |_, shard| {
                let (filter, sender) = (Arc::clone(filter), sender.clone());
                Command::Trace { shard, filter, sender }
            });
        }
        self.acknowledged();
    }

    /// Has all listeners recorded.
    ///
    /// # Errors
    ///
    /// When one of them cannot be recorded so.
    pub fn record(&self, options: RecordOptions, sender: &RecordSender) -> Result<(), String> {
        let relays = |l: &&BoundListener| !l.settings.accept_proxy_protocol.is_empty();
        if let Some(listener) = self.listeners.iter().find(relays)
            && options.anonymise.is_some()
        {
            return Err(format!(
                "listener {:?} learns from proxies' headers who its clients are, and these cannot be \
                 anonymised; record without --anonymise",
                listener.settings.name
            ));
        }
        let options = Arc::new(options);
        for listener in &self.listeners {
            let cluster: Arc<str> = listener.settings.cluster.name.as_str().into();
            command_shards(&self.workers, &listener.shards, |_, shard| Command::Record {
                shard,
                options: Arc::clone(&options),
                sender: sender.clone(),
                cluster: Arc::clone(&cluster),
            });
        }
        self.acknowledged();
        Ok(())
    }

    /// The flows of a shard, asked for bit by bit.
    fn flows_of(&self, shard: u32, worker: usize) -> impl Iterator<Item = FlowFigures> {
        let mut next = 0;
        let batches = std::iter::from_fn(move || {
            let (sender, reply) = mpsc::channel();
            let slots = next..next + SLOTS_AT_ONCE;
            next = slots.end;
            self.workers[worker].command(Command::Flows { shard, slots, reply: sender });
            let Flows { flows, slots } = reply.recv().ok()?;
            (next < slots + SLOTS_AT_ONCE).then_some(flows)
        });
        batches.flatten()
    }

    /// The figures of all shards.
    pub(super) fn figures(&self) -> Figures {
        Figures(self.ask(Command::Report))
    }

    /// Copies of the sockets of all listeners.
    pub fn listeners(&self) -> Vec<OwnedFd> {
        let mut all = self.ask(Command::Listeners);
        let with_sockets = self.listeners.iter().filter(|l| l.settings.routed_from.is_none());
        with_sockets.flat_map(|listener| listener.take_its(&mut all)).collect()
    }

    /// What all workers say of their shards, by the shards' numbers. Workers that have ended are left
    /// out.
    pub(super) fn ask<T>(&self, command: impl Fn(OfShards<T>) -> Command) -> HashMap<u32, T> {
        let (sender, answers) = mpsc::channel();
        self.command_all(|| command(sender.clone()));
        drop(sender);
        answers.iter().flatten().collect()
    }
}

impl BoundListener {
    /// What is there for its shards, in their order.
    pub(super) fn take_its<T>(&self, of_shards: &mut HashMap<u32, T>) -> Vec<T> {
        self.shards.iter().filter_map(|shard| of_shards.remove(shard)).collect()
    }
}

/// The figures of shards, by their numbers.
#[derive(Default)]
pub(super) struct Figures(HashMap<u32, ShardReport>);

impl Figures {
    /// Those of some shards together, as far as there are any.
    pub(super) fn of(&self, shards: &[u32]) -> ShardReport {
        let mut sum = ShardReport::default();
        shards.iter().filter_map(|shard| self.0.get(shard)).for_each(|report| sum.add(report));
        sum
    }
}

fn fits(flow: &FlowFigures, filter: &FlowFilter) -> bool {
    filter.client.is_none_or(|network| network.contains(&flow.client.ip()))
        && filter.backend.is_none_or(|backend| backend == flow.backend)
}

impl BoundListener {
    /// Figures with the addresses of backends that the configuration gives them.
    fn with_its_addresses(&self, mut figures: ShardReport) -> ShardReport {
        for (backend, known) in figures.backends.iter_mut().zip(&self.backend_list) {
            backend.address = known.address;
        }
        figures
    }
}

fn describe(flow: &FlowFigures, listener: &BoundListener, index: usize) -> FlowStatus {
    let port = listener.ports.get(index).copied().unwrap_or(listener.address.port());
    let millis =
        |from: Instant, to: Instant| (to - from).as_millis().try_into().unwrap_or(u64::MAX);
    let local = flow.local.map(|local| (local.ip, port).into());
    let id = !flow.placed.id().is_empty();
    FlowStatus {
        listener: listener.settings.name.clone(),
        client: flow.client,
        local,
        backend: flow.backend,
        age_ms: millis(flow.opened, flow.now),
        idle_deadline_ms: millis(flow.now, flow.deadline),
        to_backend: flow.to_backend.into(),
        to_client: flow.to_client.into(),
        answered: flow.is_answered,
        fast_path: flow.is_in_fast_path,
        placed_by: flow.placed.by().as_str().to_owned(),
        placed_by_id: id.then(|| flowgate_config::hex::encode(flow.placed.id())),
    }
}
