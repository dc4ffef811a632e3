//! The kernel path: established flows that the kernel forwards past the sockets, where it can.
//!
//! The core says which flows may be ([`Output::Offload`](flowgate_core::Output::Offload)). Here they
//! are turned into entries of the program that `flowgate-fastpath` loads, which is attached to the
//! interfaces that such flows use, and to no others. What the kernel has forwarded is told to the
//! core before anybody asks for figures, once a second besides, and when a flow ends.
//!
//! Everything may be refused: a flow then goes on by the sockets.

mod accounts;
mod entries;
mod figures;
mod inherited;
mod offloads;
mod ways;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flowgate_core::Instant;
use flowgate_fastpath::{FastPath, LoadError, MAX_WORKERS, Table};
use tracing::{debug, info};

use crate::sys::route::Link;

pub use entries::Addresses;
pub use figures::{Activity, FastPathFigures};
pub use inherited::{InheritedFlows, OffloadSnapshot, ShardOffloads};
pub use offloads::Offloads;

/// How long the program stays attached to an interface that no flow uses any more.
const UNUSED_FOR: Duration = Duration::from_secs(5);

/// How long an interface is left alone that the program cannot be attached to.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The program in the kernel, which all workers share.
#[derive(Debug)]
pub struct SharedFastPath(Mutex<Program>);

#[derive(Debug)]
struct Program {
    path: FastPath,
    /// By the numbers of the interfaces.
    attached: HashMap<u32, Attachment>,
    /// The interfaces that it cannot be attached to, and when to try again.
    refused: HashMap<u32, Instant>,
    free_workers: Vec<u16>,
}

#[derive(Debug)]
struct Attachment {
    interface: String,
    /// How many entries send by it.
    entries: usize,
    unused_since: Option<Instant>,
}

impl SharedFastPath {
    /// Loads the program. Nothing is attached yet.
    ///
    /// # Errors
    ///
    /// When the kernel is too old, or does not permit it.
    pub fn load() -> Result<Arc<Self>, LoadError> {
        Ok(Arc::new(Self(Mutex::new(Program {
            path: FastPath::load()?,
            attached: HashMap::new(),
            refused: HashMap::new(),
            free_workers: (0..MAX_WORKERS).rev().collect(),
        }))))
    }

    fn program(&self) -> MutexGuard<'_, Program> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a process needs to go on with the flows that the kernel forwards.
    ///
    /// # Errors
    ///
    /// When descriptors cannot be had.
    pub fn descriptors(&self) -> Result<[OwnedFd; 2], LoadError> {
        self.program().path.descriptors()
    }

    /// Gives a worker its number and access to the maps; `None` if there are too many.
    fn join(&self) -> Result<Option<(u16, Table)>, LoadError> {
        let mut program = self.program();
        let table = program.path.table()?;
        Ok(program.free_workers.pop().map(|worker| (worker, table)))
    }

    fn leave(&self, worker: u16) {
        self.program().free_workers.push(worker);
    }

    /// Sees to it that the program is attached to an interface for one more entry. Says whether it is.
    fn attach(&self, ifindex: u32, link: &Link, now: Instant) -> bool {
        let program = &mut *self.program();
        if let Some(attachment) = program.attached.get_mut(&ifindex) {
            attachment.entries += 1;
            attachment.unused_since = None;
            return true;
        }
        if program.refused.get(&ifindex).is_some_and(|&until| now < until) {
            return false;
        }
        // One of the same name that is gone.
        program.attached.retain(|_, attachment| attachment.interface != link.name);
        program.path.detach(&link.name);
        match program.path.attach(&link.name) {
            Ok(hook) => {
                info!(
                    interface = link.name,
                    ?hook,
                    "the kernel forwards established flows by itself"
                );
                let interface = link.name.clone();
                let attachment = Attachment { interface, entries: 1, unused_since: None };
                program.attached.insert(ifindex, attachment);
                program.refused.remove(&ifindex);
                true
            }
            Err(error) => {
                info!(
                    interface = link.name,
                    "the kernel path cannot be attached, flows by this interface go by the sockets, \
                     tried again in {} s: {error}",
                    RETRY_AFTER.as_secs()
                );
                program.refused.insert(ifindex, now + RETRY_AFTER);
                false
            }
        }
    }

    /// An entry that sent by an interface is gone.
    fn release(&self, ifindex: u32) {
        if let Some(attachment) = self.program().attached.get_mut(&ifindex) {
            attachment.entries = attachment.entries.saturating_sub(1);
        }
    }

    /// Takes the program off interfaces that nobody has used for a while. Says whether it is left
    /// on some.
    fn detach_unused(&self, now: Instant) -> bool {
        let Program { path, attached, refused, .. } = &mut *self.program();
        refused.retain(|_, until| now < *until);
        attached.retain(|_, attachment| {
            if attachment.entries > 0 {
                return true;
            }
            let since = *attachment.unused_since.get_or_insert(now);
            let stays = now < since + UNUSED_FOR;
            if !stays {
                debug!(interface = attachment.interface, "the kernel path is detached");
                path.detach(&attachment.interface);
            }
            stays
        });
        !attached.is_empty()
    }
}
