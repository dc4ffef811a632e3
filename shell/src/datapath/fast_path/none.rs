//! Where the kernel cannot forward flows past the sockets.

mod figures;

use std::net::IpAddr;
use std::sync::Arc;

use crate::sys::clock::Clock;

pub use figures::{Activity, FastPathFigures};

/// There is no kernel path on this system.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("this system has no kernel path")]
pub struct LoadError;

/// The program in the kernel: there is none.
#[derive(Debug)]
pub enum SharedFastPath {}

impl SharedFastPath {
    /// Loads nothing.
    ///
    /// # Errors
    ///
    /// Always.
    pub fn load() -> Result<Arc<Self>, LoadError> {
        Err(LoadError)
    }
}

/// The flows of one worker that the kernel forwards: there are none.
#[derive(Debug)]
pub enum Offloads {}

impl Offloads {
    /// For a program that there is not.
    ///
    /// # Errors
    ///
    /// None.
    pub fn new(shared: Arc<SharedFastPath>, _clock: Clock) -> Result<Self, LoadError> {
        match *shared {}
    }

    /// Closes nothing.
    pub fn close_all(&self) {
        match *self {}
    }

    /// Forgets nothing.
    pub fn forget(&mut self, _shard: u32) {
        match *self {}
    }

    /// Leaves nothing.
    pub fn leave_address(&mut self, _gone: IpAddr) {
        match *self {}
    }

    /// Looks up nothing.
    pub fn routes_changed(&mut self) {
        match *self {}
    }

    /// Says nothing.
    pub fn figures(&self, _shard: u32) -> FastPathFigures {
        match *self {}
    }
}

/// Flows that the kernel has forwarded for another process: there are none.
#[derive(Debug)]
pub enum InheritedFlows {}

/// What would be handed over of a shard: nothing.
#[derive(Clone, Debug, Default)]
pub struct ShardOffloads {
    /// How often a datagram may have been overtaken: never.
    pub overtaken: u64,
}
