//! A server as plain data, released by one process and taken up by another.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use flowgate_config::{Config, Listener};
use flowgate_core::PreparedConfig;
use flowgate_core::counters::Counters;
use flowgate_core::snapshot::ImageError;

use super::mirrors::Mirror;
use super::service_states::ServiceStates;
use super::{BoundListener, Server, StartError, worker_of};
use crate::datapath::kernel::Linux;
use crate::datapath::listener::{self, Buffers};
use crate::datapath::shard::Shard;
use crate::datapath::worker::{Adopted, Command};
use crate::handover::snapshot::{ListenerImage, ServerImage, ShardImage};

/// What nobody serves at the moment: the shards of a server, with their sockets.
pub struct Released {
    /// By the listener's place and their place among its shards.
    shards: Vec<Vec<Shard<Linux>>>,
}

impl Released {
    /// All sockets, in the order in which [`Server::restore`] expects them: the listeners first,
    /// since with them alone one can serve already.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let all = || self.shards.iter().flatten();
        let listeners = all().map(|shard| shard.listener().as_fd());
        listeners.chain(all().flat_map(|shard| shard.sockets().descriptors()))
    }
}

/// Why a server cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image contradicts itself.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It is not one of this configuration.
    #[error("it has {image} listeners, and its configuration {config}")]
    OtherListeners {
        /// How many it has.
        image: usize,
        /// How many there should be.
        config: usize,
    },
    /// A listener had to be bound anew, and could not be.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// What was made beforehand of an earlier image of the same server, to save time when it counts:
/// for each listener the configurations of its manager and of its mirror's.
#[derive(Default)]
pub struct Prepared(Vec<[Option<PreparedConfig>; 2]>);

impl Prepared {
    /// Makes it, and finds out on the way whether a server can be made of the image.
    ///
    /// # Errors
    ///
    /// When the image contradicts itself.
    pub fn of(image: &ServerImage) -> Result<Self, ImageError> {
        let prepare = |listener: &ListenerImage| match listener.shards.first() {
            Some(first) => {
                let of_manager = PreparedConfig::new(first.manager().config().clone());
                let of_mirror = first.mirror().map(|m| PreparedConfig::new(m.config().clone()));
                [Some(of_manager), of_mirror]
            }
            None => [None, None],
        };
        let prepared = Self(image.listeners.iter().map(prepare).collect());
        for (place, listener) in image.listeners.iter().enumerate() {
            let prepared = prepared.of_listener(place);
            listener.shards.iter().try_for_each(|shard| shard.check(prepared))?;
        }
        Ok(prepared)
    }

    fn of_listener(&self, place: usize) -> [Option<&PreparedConfig>; 2] {
        match self.0.get(place) {
            Some([manager, mirror]) => [manager.as_ref(), mirror.as_ref()],
            None => [None, None],
        }
    }
}

impl Server {
    /// What it is at the moment. It goes on serving.
    pub fn image(&self) -> ServerImage {
        let mut images = self.ask(Command::Image);
        self.image_with(|listener| listener.take_its(&mut images))
    }

    /// Copies of the sockets of all listeners.
    pub fn listeners(&self) -> Vec<OwnedFd> {
        let mut all = self.ask(Command::Listeners);
        self.listeners.iter().flat_map(|listener| listener.take_its(&mut all)).collect()
    }

    /// Lets go of all shards, and says what it was: nobody serves them, and what comes for them waits
    /// in their sockets' buffers, until they are served again. Nothing else may be done with this
    /// server meanwhile.
    pub fn release(&self) -> (ServerImage, Released) {
        let mut all = self.ask(Command::Release);
        let of_listener = |listener: &BoundListener| listener.take_its(&mut all);
        let shards: Vec<_> = self.listeners.iter().map(of_listener).collect();
        let mut images = shards.iter().map(|shards| shards.iter().map(ShardImage::of).collect());
        let image = self.image_with(|_| images.next().unwrap_or_default());
        (image, Released { shards })
    }

    /// Serves again what it released.
    pub fn take_back(&self, released: Released) {
        let all = released.shards.into_iter().map(|shards| {
            shards.into_iter().map(|shard| Adopted { shard, missing: Vec::new() }).collect()
        });
        self.serve(all.collect());
    }

    fn image_with(&self, mut shards: impl FnMut(&BoundListener) -> Vec<ShardImage>) -> ServerImage {
        let image = |listener: &BoundListener| ListenerImage {
            address: listener.address,
            told: listener.told.clone(),
            mirror_told: listener.mirror.as_ref().map(Mirror::told),
            shards: shards(listener),
        };
        ServerImage {
            hosts: self.hosts.clone(),
            service_states: self.service_states.image(),
            past: self.past.image(),
            listeners: self.listeners.iter().map(image).collect(),
        }
    }

    /// Becomes what an image of another server says, which worked by `config`, with its sockets in
    /// the order of [`Released::descriptors`]. Where one is missing, another is opened in its stead.
    /// Nothing is served yet: what is to be given to [`serve`](Self::serve) is returned. This server
    /// must not have any listeners.
    ///
    /// # Errors
    ///
    /// When the image contradicts itself or the configuration, or a listener that is missing cannot
    /// be bound.
    pub fn restore(
        &mut self,
        image: ServerImage,
        config: &Config,
        prepared: &Prepared,
        descriptors: impl IntoIterator<Item = Option<OwnedFd>>,
    ) -> Result<Vec<Vec<Adopted>>, RestoreError> {
        let counts = (image.listeners.len(), config.listeners.len());
        if counts.0 != counts.1 {
            return Err(RestoreError::OtherListeners { image: counts.0, config: counts.1 });
        }
        for (host, addresses) in image.hosts {
            // What was resolved here is newer, and there may be names that the image does not know.
            self.hosts.entry(host).or_insert(addresses);
        }
        self.service_states = ServiceStates::restore(image.service_states);
        // All flows of those listeners have ended.
        self.past = Counters::restored(&image.past, 0)?;
        self.clusters.clone_from(&config.clusters);

        let mut descriptors = descriptors.into_iter();
        let mut groups = Vec::new();
        for (listener, settings) in image.listeners.iter().zip(&config.listeners) {
            let bound = descriptors.by_ref().take(listener.shards.len()).flatten().collect();
            let settings = Listener { address: listener.address, ..settings.clone() };
            let all = image.listeners.iter().zip(&config.listeners);
            let others = all.map(|(other, settings)| (other.address, settings.v6_only));
            let others = others.filter(|(other, _)| *other != listener.address);
            let group = listener::complete(&settings, listener.shards.len(), others, bound);
            groups.push(group.map_err(StartError::from)?.sockets);
        }
        let mut number = 0..;
        let mut all = Vec::new();
        for (place, listener) in image.listeners.into_iter().enumerate() {
            let settings = &config.listeners[place];
            let prepared = prepared.of_listener(place);
            let mut restored = self.describe(settings, &listener, prepared)?;
            let mut shards = Vec::new();
            let sockets = std::mem::take(&mut groups[place]);
            for ((image, socket), number) in
                listener.shards.into_iter().zip(sockets).zip(&mut number)
            {
                let (shard, missing) = image.restore(number, socket, prepared, &mut descriptors)?;
                let like = restored.configurations.first().or(prepared[0]);
                let config = shard.manager().config().clone();
                restored.configurations.push(match like {
                    Some(like) => like.updated(config),
                    None => PreparedConfig::new(config),
                });
                restored.shards.push(number);
                shards.push(Adopted { shard, missing });
            }
            self.listeners.push(restored);
            all.push(shards);
        }
        Ok(all)
    }

    /// A listener as an image describes it, without its shards.
    fn describe(
        &self,
        settings: &Listener,
        image: &ListenerImage,
        prepared: [Option<&PreparedConfig>; 2],
    ) -> Result<BoundListener, RestoreError> {
        let of_mirrors = image.shards.first().and_then(ShardImage::mirror);
        let mirror =
            image.mirror_told.as_ref().zip(of_mirrors).and_then(|((name, told), image)| {
                let cluster = self.clusters.iter().find(|cluster| cluster.name == *name)?;
                let config = image.config().clone();
                let configuration = match prepared[1] {
                    Some(like) => like.updated(config),
                    None => PreparedConfig::new(config),
                };
                Some(Mirror::restore(cluster.clone(), configuration, told.clone()))
            });
        Ok(BoundListener {
            shards: Vec::new(),
            settings: settings.clone(),
            address: image.address,
            flows_max: 0,
            sockets: Vec::new(),
            name: settings.name.as_str().into(),
            buffers: Buffers::of(settings),
            configurations: Vec::new(),
            told: image.told.clone(),
            mirror,
        })
    }

    /// Serves shards, by the place of their listener and their place among its shards.
    pub fn serve(&self, shards: Vec<Vec<Adopted>>) {
        for (listener, shards) in self.listeners.iter().zip(shards) {
            for (place, (&shard, adopted)) in listener.shards.iter().zip(shards).enumerate() {
                let (name, adopted) = (listener.name.clone(), Box::new(adopted));
                let worker = worker_of(place, self.workers.len());
                self.workers[worker].command(Command::Adopt { shard, name, adopted });
            }
        }
        self.acknowledged();
    }
}

impl BoundListener {
    /// What is there for its shards, in their order.
    fn take_its<T>(&self, of_shards: &mut HashMap<u32, T>) -> Vec<T> {
        self.shards.iter().filter_map(|shard| of_shards.remove(shard)).collect()
    }
}
