//! The state of a manager as plain data, to be handed to another process and gone on with there.
//!
//! [`UdpManager::snapshot`] says everything that a manager knows, and [`UdpManager::restore`] makes a
//! manager of it that does in all things what the first one would have done: the same outputs, the
//! same counters, the same deadlines, for whatever comes. [`encode`] wraps such a snapshot, or any
//! document that holds snapshots, and [`decode`] unwraps it.
//!
//! ```
//! use flowgate_core::snapshot::{ManagerSnapshot, SnapshotError, decode, encode};
//! # use flowgate_core::{Instant, UdpManager, config::ManagerConfig};
//! # let backends = ["10.0.0.1:53".parse::<std::net::SocketAddr>()?];
//! # let config = ManagerConfig::new("192.0.2.1:53".parse()?, backends);
//! # let mut manager = UdpManager::new(config, 42, Instant::ORIGIN);
//! let mut bytes = encode(&manager.snapshot());
//! let snapshot: ManagerSnapshot = decode(&bytes)?;
//! let mut restored = UdpManager::restore(snapshot, None)?;
//! assert_eq!(restored.snapshot(), manager.snapshot());
//!
//! bytes[100] ^= 1;
//! assert_eq!(decode::<ManagerSnapshot>(&bytes), Err(SnapshotError::ChecksumMismatch));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Where there are very many flows, [`UdpManager::copy_and_note_changes`] makes a copy to take a
//! snapshot of; from then on [`UdpManager::changes`] tells what has changed, and
//! [`UdpManager::update`] does the same to a manager that was restored from that snapshot.
//!
//! # What is in it, and what is not
//!
//! Only what cannot be worked out: how a backend stands, but not whether that makes it serve; whose
//! flows there are, but not how many each backend or source has. What is worked out cannot
//! contradict what is told. What can is checked, and a snapshot that breaks an
//! [invariant](UdpManager::assert_invariants) is refused. Instants are as the manager was told them:
//! the clock must go on where it was. Buckets of rates that have run empty since
//! are left out.
//!
//! It holds the secrets of the manager's hash tables, and the addresses of all its clients.
//! Anyone who has it can attack the one and trace the others.
//!
//! # How the format may change
//!
//! Everything is encoded with postcard, which writes neither names nor types: fields come in their
//! order, a variant is its number. So a field that is added, removed or moved, in a document or in
//! the [configuration](crate::config), is another format, and so is a variant anywhere but at the
//! end. Then:
//!
//! 1. [`VERSION`] grows by one;
//! 2. the documents as they were are kept, in a module named for the former format, with a
//!    conversion into those of today, for as long as [`OLDEST_VERSION`] says; [`decode`] tells by the
//!    format which of them it reads;
//! 3. a snapshot of the new format joins those of the former ones in `core/src/snapshot/fixtures`.
//!
//! A test reads them, and fails where the first was forgotten. What is counted by reason is told by
//! the names that reports have for reasons, so that a reason more is no other format.

pub mod address;
#[cfg(feature = "snapshot")]
mod envelope;
#[cfg(feature = "snapshot")]
pub(crate) mod error;
#[cfg(feature = "snapshot")]
pub(crate) mod parts;

#[cfg(feature = "snapshot")]
pub use envelope::{OLDEST_VERSION, SnapshotError, VERSION, decode, encode};
#[cfg(feature = "snapshot")]
pub use error::RestoreError;
#[cfg(feature = "snapshot")]
pub use parts::{CountersSnapshot, ManagerSnapshot};

#[cfg(all(doc, feature = "snapshot"))]
use crate::UdpManager;

#[cfg(all(test, feature = "snapshot"))]
mod tests;
