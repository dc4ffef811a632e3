//! What a new process makes of a snapshot beforehand, since making hash tables of many flows takes
//! longer than nobody may serve.

use flowgate_core::PreparedConfig;
use flowgate_core::snapshot::RestoreError;

use super::snapshot::{ListenerSnapshot, RestoredShard, ServerSnapshot};

/// The listeners of a server as far as they can be made of a snapshot without sockets: beforehand, to
/// save time when it counts.
#[derive(Default)]
pub struct PreparedListeners(pub(crate) Vec<PreparedListener>);

#[derive(Default)]
/// One of them.
pub(crate) struct PreparedListener {
    /// The configuration of its managers, and of its mirror's.
    pub(crate) configs: [Option<PreparedConfig>; 2],
    pub(crate) shards: Vec<RestoredShard>,
}

impl PreparedListeners {
    /// Makes the shards of a snapshot, which has them no longer then.
    ///
    /// # Errors
    ///
    /// When the snapshot contradicts itself.
    pub fn of(snapshot: &mut ServerSnapshot) -> Result<Self, RestoreError> {
        Self::default().updated(snapshot)
    }

    /// The same of a later snapshot, which may tell only what has changed since this one.
    ///
    /// # Errors
    ///
    /// When the snapshot contradicts itself, or tells of changes of something else.
    pub fn updated(self, snapshot: &mut ServerSnapshot) -> Result<Self, RestoreError> {
        let mut before = self.0.into_iter();
        let all = snapshot.listeners.iter_mut();
        all.map(|listener| before.next().unwrap_or_default().updated(listener)).collect()
    }
}

impl FromIterator<PreparedListener> for PreparedListeners {
    fn from_iter<T: IntoIterator<Item = PreparedListener>>(all: T) -> Self {
        Self(all.into_iter().collect())
    }
}

impl PreparedListener {
    fn updated(self, snapshot: &mut ListenerSnapshot) -> Result<Self, RestoreError> {
        let configs = match (self.configs, snapshot.shards.first()) {
            ([None, _], Some(first)) => {
                let of_manager = PreparedConfig::new(first.manager().config().clone());
                let of_mirror = first.mirror().map(|m| PreparedConfig::new(m.config().clone()));
                [Some(of_manager), of_mirror]
            }
            (known, _) => known,
        };
        let mut before = self.shards.into_iter();
        let prepared = || configs.each_ref().map(Option::as_ref);
        let shards = std::mem::take(&mut snapshot.shards).into_iter();
        let shards = shards.map(|shard| shard.restore(before.next(), prepared()));
        let shards = shards.collect::<Result<_, _>>()?;
        Ok(Self { configs, shards })
    }
}
