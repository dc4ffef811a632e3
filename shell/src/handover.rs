//! Handing everything over to a new process of another version, and taking it over.
//!
//! The old process starts the new one and has it validate that it could take over. Then it quiesces
//! its flows, for some milliseconds in which what arrives waits in the sockets' buffers, and hands
//! over what it knows, as a [`snapshot`], and all sockets (`SCM_RIGHTS`). No flow
//! ends, and no datagram is lost or forwarded twice.
//!
//! All of this is rehearsed up to the moment at which the old process would quiesce its flows, with a process
//! that is killed then: a program that hangs or falls over when it reads the state costs nothing.
//!
//! # The protocol
//!
//! ```text
//!       old process                              new process
//!   serves | Starting   ---- starts it ---->
//!          |            <---- hello ------------  Greeting     has read its configuration
//!          | Offering   ---- offer, snapshot -->  Validating    reads it, makes all ready
//!          |            <---- ready ------------
//!  silence | Quiescing ---- state, snapshot -->  Reading
//!          |            <---- read -------------
//!          | Passing    ---- descriptors ------>  Staged       everything in its place
//!          |            <---- staged -----------
//!   nobody | Committing ---- commit ----------->  Serving  | serves
//!          |            <---- serving ----------           |
//!            Gone, ends                                    |
//! ```
//!
//! At every moment at most one process is in charge:
//!
//! - The old one is until it has said *commit*. Whatever goes wrong before, and after that until it
//!   has heard *serving*: it kills the new one, waits until that is dead, and goes on with what it
//!   never closed.
//! - The new one is from when it has heard *commit*; or once the old one has died, which it
//!   knows when the channel closes, since that outlives every thread of the old process. Then it
//!   goes on with what has come until then: flows whose sockets have not come get new ones.
//!
//! Each step has its time, after which the other side counts as lost. The [state machines](protocol)
//! of both sides are checked for every order of events.
//!
//! # The files
//!
//! | module | what is in it |
//! |---|---|
//! | [`upgrade`] | what the old process does: `flowgate upgrade` from the request to the reply |
//! | [`take_over`] | what the new process does: validate, stage, serve |
//! | [`protocol`] | the state machines of both sides |
//! | [`successor`] | the old process's end of the channel: the new process, and the steps with it |
//! | [`predecessor`] | the new process's end of it |
//! | [`channel`] | messages, bytes and descriptors over a socket pair |
//! | [`snapshot`] | what a process is, as plain data |
//! | [`prepared`] | what the new process makes of that beforehand |
//! | [`keep`] | the same by way of the service manager, for a restart |
//! | [`fdstore`] | what the service manager keeps: `FDSTORE=1` |
//!
//! What only its type may touch lies beside that type, in files named `hand_over.rs`: how a server
//! releases its shards and is restored, how a worker lends its shards out, how a shard's sockets go
//! over.

pub mod channel;
pub mod fdstore;
pub mod keep;
pub mod predecessor;
pub mod prepared;
pub mod protocol;
pub mod snapshot;
pub mod successor;
pub mod take_over;
pub mod upgrade;

pub(crate) use successor::{Failure, Successor};
pub(crate) use upgrade::Upgrade;
