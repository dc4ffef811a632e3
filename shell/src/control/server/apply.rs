//! Going over to a configuration: the first one at start, another one at a reload.
//!
//! Everything that can fail comes first, and changes nothing. Then the workers are told, all of
//! them the same in the same order, and have done it when this returns. What is the same before and
//! after is left alone.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};

use flowgate_config::{Cluster, Config, FlowLog, Listener};
use flowgate_core::config::{
    Accept, BackendConfig, MAX_FLOWS, ManagerConfig, Source, UpstreamMode,
};
use flowgate_core::route::Routes;
use flowgate_core::{PreparedConfig, UdpManager};
use tracing::{info, warn};

use super::ask::Figures;
use super::{BoundListener, Server, StartError, backend_index, command_shards};
use crate::control::io::{self, Io};
use crate::control::service_state::ServiceState;
use crate::control::{accept, reach, source};
use crate::datapath::kernel::{Native, Portable, Socket};
use crate::datapath::listener::{self, SocketOptions};
use crate::datapath::worker::Command;
use crate::datapath::worker::kernel::WorkerKernel;
use crate::sys::fd::AsFd;
use crate::sys::{process, sockopt};

/// Descriptors that are not upstream sockets: the standard streams, logs, a poll and a waker for
/// each worker, probes, operators' connections, and some to spare.
const RESERVED_DESCRIPTORS: u64 = 256;

/// How many flows that share sockets there are at most where `max_flows` is 0.
const SHARED_FLOWS: u64 = 262_144;

/// Whether flows share sockets to backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sharing {
    /// A few, and are told apart by what they ask.
    Questions,
    /// Each with flows to other backends.
    Flows,
    /// Each has its own.
    Nothing,
}

/// The listeners that a configuration has and a server had not, bound.
pub struct BoundListeners {
    fresh: Vec<BoundListener>,
    /// What the operator is to be warned of.
    warnings: Vec<String>,
}

impl BoundListeners {
    /// What the operator is to be warned of, which is not logged then.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

impl Server {
    /// Goes over to a configuration. How many workers there are does not change.
    ///
    /// # Errors
    ///
    /// When a new listener cannot be bound, or a cluster's source cannot be had. Then everything
    /// stays as it is.
    pub fn apply(&mut self, config: &Config) -> Result<(), StartError> {
        let bound = self.bind(config)?;
        self.go_over(config, bound);
        Ok(())
    }

    /// Does what [`go_over`](Self::go_over) cannot do without.
    ///
    /// # Errors
    ///
    /// When a new listener cannot be bound, or a cluster's source cannot be had.
    pub fn bind(&mut self, config: &Config) -> Result<BoundListeners, StartError> {
        io::check(config, self.io)?;
        match self.io {
            Io::Linux => Native::check(),
            Io::Portable => Portable::check(),
        }
        .map_err(StartError::Receive)?;
        let warnings = source::check(config)?;
        reach::check_beside(config, &self.clusters)?;
        accept::check(config)?;
        self.load_fast_path(config)?;
        let fresh = self.bind_new(config)?;
        Ok(BoundListeners { fresh, warnings })
    }

    /// Goes over to a configuration whose new listeners are bound. Nothing of it can fail.
    pub fn go_over(&mut self, config: &Config, bound: BoundListeners) {
        let BoundListeners { mut fresh, warnings } = bound;
        warnings.iter().for_each(|warning| warn!("{warning}"));
        let mut former = std::mem::take(&mut self.listeners);
        for settings in &config.listeners {
            let kept =
                former.iter().position(|listener| settings.has_sockets_of(&listener.settings));
            let new = || fresh.iter().position(|listener| listener.settings == *settings);
            let listener = match kept {
                Some(index) => former.remove(index),
                None => match new() {
                    Some(index) => fresh.remove(index),
                    None => continue,
                },
            };
            if kept.is_none() || listener.settings.fast_path != settings.fast_path {
                self.say_obstacle(settings);
            }
            let has_needed_one =
                kept.is_some() && listener.settings.needs_one_worker(&self.clusters);
            if settings.needs_one_worker(&config.clusters) && !has_needed_one {
                self.say_who_learns(&listener);
            }
            self.listeners.push(BoundListener { settings: settings.clone(), ..listener });
        }
        former.into_iter().for_each(|listener| self.remove(&listener));
        for (address, _) in &self.inherited {
            warn!(%address, "a socket from the service manager is not used: no listener has its address");
        }
        self.number_the_new();
        self.clusters.clone_from(&config.clusters);
        self.record_flows = config.log.flows != FlowLog::Off;
        self.reconfigure();
        self.set_routes();
    }

    /// Says that one worker serves a listener's clients, whose backends announce ids; or that several do,
    /// by sockets that there were before, so that some clients that move are not known again.
    fn say_who_learns(&self, listener: &BoundListener) {
        let is_part = listener.settings.routed_from.is_some();
        if is_part || self.workers.len() < 2 {
            return;
        }
        let sockets = listener.sockets.len().max(listener.shards.len());
        let listener_name = listener.settings.name.as_str();
        if sockets > listener.settings.ports().len() {
            warn!(
                listener = listener_name,
                sockets,
                "several workers serve it by sockets that it had: an id that a backend announces is \
                 known to one of them, so that a client that moves to another is placed by its \
                 address. Restart, or have ids name their servers (quic_lb)"
            );
        } else {
            info!(
                listener = listener_name,
                "one worker serves it, which knows all ids that its backends announce"
            );
        }
    }

    /// Has the listeners pass on what is for the clusters of their routes.
    pub(super) fn set_routes(&self) {
        for listener in self.listeners.iter().filter(|l| l.settings.routed_from.is_none()) {
            let routes = &listener.settings.routes;
            let shards_of = |cluster: &str| {
                let is_its = |other: &&BoundListener| {
                    other.settings.cluster.name == cluster
                        && other.settings.routed_from.as_ref() == Some(&listener.settings.name)
                };
                self.listeners.iter().find(is_its).map_or(&listener.shards, |other| &other.shards)
            };
            command_shards(&self.workers, &listener.shards, |index, shard| {
                let target = |cluster: &String| shards_of(cluster).get(index).copied();
                let all = routes.iter().filter_map(|(from, to)| Some((from.clone(), target(to)?)));
                let routes = Routes::new(all.collect());
                let routes = (!routes.is_empty()).then(|| Arc::new(routes));
                Command::SetRoutes { shard, routes }
            });
        }
    }

    /// Copies of the sockets of the listener that a route is of.
    fn copies(
        &self,
        config: &Config,
        fresh: &[BoundListener],
        parent: &str,
    ) -> Result<(SocketAddr, Vec<u16>, Vec<Socket>), StartError> {
        let missing = || StartError::Route(parent.to_owned());
        let v6 = |l: &BoundListener| l.address.is_ipv6();
        if let Some(parent) = fresh.iter().find(|l| l.settings.name == parent) {
            let copy = |(socket, _): &(Socket, u64)| socket.as_fd().try_clone_to_owned();
            let copies = parent.sockets.iter().map(copy).collect::<Result<Vec<_>, _>>()?;
            let copies = copies.into_iter().map(|fd| Socket::send_only(fd, v6(parent)));
            return Ok((parent.address, parent.ports.clone(), copies.collect()));
        }
        let settings = config.listener(parent).ok_or_else(missing)?;
        let parent = self
            .listeners
            .iter()
            .find(|l| settings.has_sockets_of(&l.settings))
            .ok_or_else(missing)?;
        let copies = parent.take_its(&mut self.ask(Command::Listeners));
        if copies.len() != parent.shards.len() {
            return Err(missing());
        }
        let copies = copies.into_iter().map(|fd| Socket::send_only(fd, v6(parent)));
        Ok((parent.address, parent.ports.clone(), copies.collect()))
    }

    /// Binds what the configuration has and we have not.
    fn bind_new(&mut self, config: &Config) -> Result<Vec<BoundListener>, StartError> {
        let mut kept: Vec<&BoundListener> = self.listeners.iter().collect();
        let mut fresh: Vec<BoundListener> = Vec::new();
        for settings in &config.listeners {
            if let Some(index) =
                kept.iter().position(|listener| settings.has_sockets_of(&listener.settings))
            {
                kept.remove(index);
                continue;
            }
            if let Some(parent) = &settings.routed_from {
                let (address, ports, copies) = self.copies(config, &fresh, parent)?;
                let mut sockets = Vec::new();
                for copy in copies {
                    sockets.push((copy, process::random_seed()?));
                }
                fresh.push(BoundListener::new(settings, address, ports, sockets));
                continue;
            }
            let with_family = |l: &BoundListener| l.addresses().collect::<Vec<_>>();
            // The kernel lets two addresses lie beside each other only where both allow it.
            let is_beside = |l: &BoundListener| l.overlaps(settings);
            if self.listeners.iter().any(is_beside) {
                for socket in self.listeners() {
                    sockopt::set_reuse_port(socket.as_fd(), true)?;
                }
            }
            for (socket, _) in fresh.iter().filter(|l| is_beside(l)).flat_map(|l| &l.sockets) {
                sockopt::set_reuse_port(socket.as_fd(), true)?;
            }
            let ours = self.listeners.iter().chain(&fresh).filter(|l| is_beside(l));
            let ours: Vec<_> = ours.flat_map(with_family).collect();
            // What is sent to a group goes to each of its sockets, and would come once for each worker.
            let is_group = settings.address.ip().is_multicast();
            let is_alone = is_group || settings.needs_one_worker(&config.clusters);
            let count = if is_alone { 1 } else { self.workers.len() };
            let (mut sockets, mut ports, mut address) = (Vec::new(), Vec::new(), None);
            for port in settings.ports() {
                let at = settings.at_port(port);
                let ours = ours.iter().copied();
                let group = listener::bind(&at, count, ours, &mut self.inherited)?;
                match address {
                    None => listener::set_options(settings, &group),
                    Some(_) => listener::set_options_quietly(settings, &group),
                }
                address.get_or_insert(group.address);
                for socket in group.sockets {
                    sockets.push((socket, process::random_seed()?));
                    ports.extend(settings.last_port.map(|_| port));
                }
            }
            let address = address.unwrap_or(settings.address);
            fresh.push(BoundListener::new(settings, address, ports, sockets));
        }
        Ok(fresh)
    }

    /// Gives the shards that no worker knows yet the lowest numbers that are free.
    fn number_the_new(&mut self) {
        let taken: HashSet<u32> = self.listeners.iter().flat_map(|l| &l.shards).copied().collect();
        let mut free = (0..).filter(|number| !taken.contains(number));
        for listener in self.listeners.iter_mut().filter(|l| l.shards.is_empty()) {
            listener.shards = free.by_ref().take(listener.sockets.len()).collect();
        }
    }

    /// Ends a listener and all its flows, and keeps what it counted.
    fn remove(&mut self, listener: &BoundListener) {
        let (sender, reports) = mpsc::channel();
        command_shards(&self.workers, &listener.shards, |_, shard| Command::RemoveShard {
            shard,
            reply: sender.clone(),
        });
        drop(sender);
        let cluster = listener.settings.cluster.name.as_str();
        let mirror = listener.mirror.as_ref().map(|mirror| mirror.cluster.name.as_str());
        for mut report in reports {
            report.counters.give_up_queued();
            self.past.merge(&report.counters);
            self.past_backends.take(cluster, mirror, &report);
        }
        info!(listener = listener.settings.name.as_str(), address = %listener.described(), "closed");
    }

    /// Brings all managers up to date with what is configured, resolved and said of backends.
    pub(super) fn reconfigure(&mut self) {
        let figures = self.figures_of_removed();
        for number in 0..self.listeners.len() {
            let configs = self.manager_configs(number, &figures);
            let affordable = self.affordable(number, &self.listeners[number].backend_list);
            self.listeners[number].warn_of_limit(affordable);
            self.configure(number, configs);
            self.set_mirror(number);
        }
        self.forget_strangers();
        self.publish_events();
        self.acknowledged();
    }

    /// Forgets what was said of backends that are no more, and what was counted of them.
    fn forget_strangers(&mut self) {
        if self.service_states.is_empty() && self.past_backends.is_empty() {
            return;
        }
        let addresses = |cluster: &Arc<Cluster>| {
            let backends = cluster.backends(|host| self.addresses_of(host));
            let addresses: HashSet<SocketAddr> = backends.iter().map(|b| b.address).collect();
            (cluster.name.clone(), addresses)
        };
        let known: HashMap<String, HashSet<SocketAddr>> =
            self.clusters.iter().map(addresses).collect();
        let exists = |cluster: &str, address: SocketAddr| {
            known.get(cluster).is_some_and(|addresses| addresses.contains(&address))
        };
        self.service_states.retain(exists);
        self.past_backends.retain(exists);
    }

    /// What the manager of each shard of a listener is to be told to do.
    fn manager_configs(&mut self, number: usize, figures: &Figures) -> Vec<ManagerConfig> {
        let backend_list = self.backend_list(number, figures);
        let affordable = self.affordable(number, &backend_list);
        let own_addresses = self.own_addresses();
        let offload = self.may_offload(&self.listeners[number].settings);
        let listeners = self.listeners.len() as u64;
        let workers = self.workers.len() as u64;
        let listener = &mut self.listeners[number];
        let shards = listener.shards.len() as u64;
        let parts =
            if listener.settings.last_port.is_some() { shards.min(workers) } else { shards };
        listener.flows_max = match listener.settings.cluster.policy.mode {
            mode if mode.has_flows() => {
                // With no port left no flow makes room for another, as in a full table one does.
                let derived = match listener.sharing() {
                    Sharing::Questions => SHARED_FLOWS,
                    Sharing::Flows => SHARED_FLOWS.min(source::ports(&listener.settings.cluster)),
                    Sharing::Nothing => source::ports(&listener.settings.cluster),
                };
                let derived = derived.min(affordable);
                // More would take the descriptors by which operators come in.
                listener.asked_flows().map_or(derived, |asked| asked.min(affordable.max(1)))
            }
            _ => 0,
        };
        // What no listener's flows ask for is for sockets in quarantine, of all of them.
        let max_slots = match listener.sharing() {
            Sharing::Questions => u64::MAX,
            Sharing::Flows | Sharing::Nothing => {
                let unasked = affordable.saturating_sub(listener.flows_max) / listeners;
                // Fewer ports than flows are the operator's choice, and are told as `no_ports`.
                let ports = source::ports(&listener.settings.cluster).max(listener.flows_max);
                let local = source::local_ports(&listener.settings.cluster);
                let flows_each = match listener.sharing() {
                    Sharing::Nothing => 1,
                    _ => backend_list.len().max(1) as u64,
                };
                let local = local.saturating_mul(flows_each);
                (listener.flows_max + unasked).min(ports).min(local)
            }
        };
        let config_of = |shard: u64| {
            let share =
                |total: u64, parts: u64| total / parts + u64::from(shard % parts < total % parts);
            // What the shards of a worker share each of them may have.
            let share_of = |total| u32::try_from(share(total, parts)).unwrap_or(u32::MAX).max(1);
            let (max_flows, max_slots) = (share_of(listener.flows_max), share_of(max_slots));
            let port = listener.ports.get(shard as usize).copied();
            let mut backends = backend_list.clone();
            if let Some(port) = port {
                for backend in &mut backends {
                    backend.address = listener.settings.backend_at(port, backend.address);
                }
            }
            for backend in backends.iter_mut().filter(|backend| backend.max_flows > 0) {
                // At least one, since 0 means no limit.
                backend.max_flows = share(u64::from(backend.max_flows), shards).max(1) as u32;
            }
            let mut address = listener.address;
            address.set_port(port.unwrap_or(address.port()));
            let config = listener.settings.manager_config(
                address,
                max_flows,
                own_addresses.clone(),
                self.record_flows,
                backends,
            );
            ManagerConfig { max_slots, offload, ..config }
        };
        let configs = (0..shards).map(config_of).collect();
        listener.former_backends = std::mem::replace(&mut listener.backend_list, backend_list);
        configs
    }

    /// The backends that a listener is to have, each at its index.
    fn backend_list(&self, number: usize, figures: &Figures) -> Vec<BackendConfig> {
        let listener = &self.listeners[number];
        let mut wanted = self.backends_of(&listener.settings.cluster);
        // Of the addresses that are written none is ours: that has been looked at. What a name
        // stands for is not known before.
        wanted.retain(|backend| {
            let settings = &listener.settings;
            let is_itself = reach::is_itself(settings, listener.address, backend.address);
            if is_itself {
                warn!(
                    listener = ?listener.settings.name,
                    backend = %backend.address,
                    "left out: a backend's name resolves to the listener itself"
                );
            }
            !is_itself
        });
        let figures = figures.of(&listener.shards);
        backend_index::assign(listener.backends(), &wanted, |index| {
            let backend = figures.backends.get(index);
            backend.is_some_and(|b| b.flows_active == 0)
        })
    }

    /// The figures of all shards, if backends have been removed to which something may refer yet.
    fn figures_of_removed(&self) -> Figures {
        let mut all = self.listeners.iter().flat_map(BoundListener::backends);
        if all.any(|backend| backend.removed) { self.figures() } else { Figures::default() }
    }

    /// Tells the workers what to do for a listener, unless they do it already.
    fn configure(&mut self, number: usize, configs: Vec<ManagerConfig>) {
        let now = self.clock.now();
        let listener = &mut self.listeners[number];
        let name: Arc<str> = listener.settings.name.as_str().into();
        let options = SocketOptions::of(&listener.settings);
        let mut configurations: Vec<PreparedConfig> = Vec::with_capacity(configs.len());
        for config in configs {
            let like = configurations.first().or(listener.configurations.first());
            configurations.push(match like {
                Some(like) => like.updated(config),
                None => PreparedConfig::new(config),
            });
        }
        let Some(first) = configurations.first() else { return };

        if !listener.configurations.is_empty() {
            let former = std::mem::take(&mut listener.former_backends);
            forget_news_of_strangers(&mut listener.published, &former, &listener.backend_list);
        } else {
            info!(
                listener = listener.settings.name.as_str(),
                address = %listener.described(),
                cluster = listener.settings.cluster.name.as_str(),
                max_flows = listener.flows_max,
                "listening"
            );
        }
        listener.published.resize(first.config().cluster.backends.len(), ServiceState::default());
        let is_same = |pair: (&PreparedConfig, &PreparedConfig)| pair.0.config() == pair.1.config();
        let is_up_to_date = listener.configurations.len() == configurations.len()
            && listener.configurations.iter().zip(&configurations).all(is_same)
            && (&listener.name, listener.options) == (&name, options);
        let mut sockets = std::mem::take(&mut listener.sockets).into_iter();
        if !is_up_to_date || sockets.len() > 0 {
            let first = listener.first_shard();
            command_shards(&self.workers, &listener.shards, |index, shard| {
                let (name, configuration) = (Arc::clone(&name), &configurations[index]);
                match sockets.next() {
                    Some((socket, seed)) => {
                        let manager = UdpManager::configured(configuration, seed, now);
                        let manager = Box::new(manager.as_number(index));
                        Command::AddShard { shard, first, name, socket, manager }
                    }
                    None => {
                        let configuration = Box::new(configuration.clone());
                        Command::Configure { shard, name, options, configuration }
                    }
                }
            });
        }
        listener.configurations = configurations;
        (listener.name, listener.options) = (name, options);
    }

    /// How many flows a listener can have, as far as open files go. A socket that flows share has one
    /// for each backend of its family; questions share a few.
    fn affordable(&self, number: usize, backends: &[BackendConfig]) -> u64 {
        let listener = &self.listeners[number];
        let descriptors = self.affordable_descriptors(number);
        let flows = match listener.sharing() {
            Sharing::Questions => u64::MAX,
            Sharing::Flows => {
                let of_v6 = backends.iter().filter(|backend| backend.address.is_ipv6()).count();
                let has_both = (1..backends.len()).contains(&of_v6);
                let each = (backends.len() / if has_both { 2 } else { 1 }).max(1);
                descriptors.saturating_mul(each as u64)
            }
            Sharing::Nothing => descriptors / listener.descriptors_per_flow(),
        };
        flows.min(MAX_FLOWS.into())
    }

    /// How many descriptors a listener's sockets can have: an equal share of them, and what the other
    /// listeners do not ask for.
    fn affordable_descriptors(&self, number: usize) -> u64 {
        let in_ranges = self.listeners.iter().map(|listener| listener.ports.len() as u64);
        let reserved = RESERVED_DESCRIPTORS + in_ranges.sum::<u64>();
        let reserved = reserved.min(self.descriptors / 2);
        let budget = self.descriptors - reserved;
        let share = budget / self.listeners.len().max(1) as u64;
        let others = self.listeners.iter().enumerate().filter(|(other, _)| *other != number);
        let asked = others.map(|(_, other)| match other.asked_flows() {
            Some(asked) => asked.saturating_mul(other.descriptors_per_flow()).min(share),
            None => share,
        });
        budget - asked.sum::<u64>()
    }
}

impl BoundListener {
    /// One that no worker knows yet.
    fn new(
        settings: &Listener,
        address: SocketAddr,
        ports: Vec<u16>,
        sockets: Vec<(Socket, u64)>,
    ) -> Self {
        Self {
            shards: Vec::new(),
            settings: settings.clone(),
            address,
            flows_max: 0,
            ports,
            backend_list: Vec::new(),
            former_backends: Vec::new(),
            sockets,
            name: settings.name.as_str().into(),
            options: SocketOptions::of(settings),
            configurations: Vec::new(),
            published: Vec::new(),
            mirror: None,
        }
    }

    /// The number of its first shard, which no other listener has.
    pub(super) fn first_shard(&self) -> u32 {
        self.shards.first().copied().unwrap_or_default()
    }

    /// The backends that its managers know, each at its index.
    fn backends(&self) -> &[BackendConfig] {
        &self.backend_list
    }

    /// Its address with all its ports.
    pub(super) fn described(&self) -> String {
        match self.settings.last_port {
            Some(_) => self.settings.written_address(),
            None => self.address.to_string(),
        }
    }

    /// All addresses that it is bound to, each with whether it is of IPv6 only.
    fn addresses(&self) -> impl Iterator<Item = (SocketAddr, bool)> {
        let ports = match self.settings.last_port {
            Some(_) => self.settings.ports(),
            None => self.address.port()..=self.address.port(),
        };
        ports.map(move |port| (with_port(self.address, port), self.settings.v6_only))
    }

    /// Whether the kernel would refuse a listener beside it.
    fn overlaps(&self, settings: &Listener) -> bool {
        let this = |port| (with_port(settings.address, port), settings.v6_only);
        let mut shared = self.addresses().filter(|(a, _)| settings.ports().contains(&a.port()));
        shared.next().is_some_and(|ours| listener::overlaps(ours, this(ours.0.port())))
    }

    /// Whether its flows share the sockets to backends.
    fn sharing(&self) -> Sharing {
        let policy = &self.settings.cluster.policy;
        match (self.settings.accept, policy.upstream) {
            (Accept::Shared, UpstreamMode::Shared) if policy.source != Source::Client => {
                if policy.transactions.is_some() { Sharing::Questions } else { Sharing::Flows }
            }
            _ => Sharing::Nothing,
        }
    }

    /// How many sockets a flow has.
    const fn descriptors_per_flow(&self) -> u64 {
        match self.settings.accept {
            Accept::Shared => 1,
            // One on either side.
            Accept::Connected | Accept::Confirmed => 2,
        }
    }

    fn asked_flows(&self) -> Option<u64> {
        self.settings.max_flows.map(|flows| u64::from(flows.get()))
    }

    fn warn_of_limit(&self, affordable: u64) {
        let is_new = self.configurations.is_empty();
        if let Some(asked) = self.asked_flows().filter(|&asked| is_new && asked > affordable) {
            warn!(
                listener = self.settings.name.as_str(),
                "max_flows is {asked}, but the limit on open files (RLIMIT_NOFILE) leaves \
                 room for {affordable}, which is what it gets; raise the limit, for systemd with \
                 LimitNOFILE="
            );
        }
    }
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// Where another backend takes an index, or one that was removed comes back, the managers know
/// nothing of it.
pub(super) fn forget_news_of_strangers(
    published: &mut [ServiceState],
    former: &[BackendConfig],
    new: &[BackendConfig],
) {
    for ((published, former), new) in published.iter_mut().zip(former).zip(new) {
        if former.address != new.address || former.removed && !new.removed {
            *published = ServiceState::default();
        }
    }
}
