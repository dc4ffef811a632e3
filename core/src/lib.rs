//! The decisions of a UDP load balancer as a pure state machine.
//!
//! A [`UdpManager`] decides about all datagrams of one listener socket: which flow a datagram
//! belongs to, which backend serves it, whether a new flow is admitted, when a flow ends, what is
//! counted. It has no sockets, no clock, no threads and no randomness of its own: a shell tells it
//! what happened, in [`ManagerInput`]s, and carries out what it emits, in [`Output`]s. The same
//! inputs give the same outputs, byte for byte.
//!
//! ```
//! use flowgate_core::config::ManagerConfig;
//! use flowgate_core::{Burst, Instant, ManagerInput, Output, UdpManager};
//! # use std::net::SocketAddr;
//!
//! // 1. Make a manager. The seed is all the randomness it will ever have.
//! let backends = ["10.0.0.1:53".parse::<SocketAddr>()?];
//! let mut config = ManagerConfig::new("192.0.2.1:53".parse()?, backends);
//! config.cluster.responses = 1;
//! let mut manager = UdpManager::new(config, 42, Instant::ORIGIN);
//!
//! // 2. Tell it what happened, and when. It emits what is to be done.
//! let mut outputs = Vec::new();
//! let question = ManagerInput::ClientBurst {
//!     source: "198.51.100.7:4711".parse()?,
//!     local: None,
//!     tos: 0,
//!     ttl: 64,
//!     burst: Burst::single(b"question").unwrap(),
//! };
//! manager.handle_input(question, Instant::from_millis(1), &mut outputs);
//!
//! // 3. Carry that out, in order: the flow's socket opens, then the flow, which sends and closes.
//! let [
//!     Output::OpenUpstream { upstream, connect: Some(address), .. },
//!     Output::OpenFlow { .. },
//!     Output::Send { burst, .. },
//! ] = outputs[..]
//! else { panic!("expected a new flow") };
//! assert_eq!(address, "10.0.0.1:53".parse()?);
//! assert_eq!(burst.bytes(), b"question");
//!
//! // 4. Ask when it wants to be called at the latest, and wait for that or for a datagram.
//! assert!(manager.poll_timeout().unwrap().at <= Instant::from_millis(60_001));
//!
//! // 5. Go to 2. The bytes are lent back, never copied; the outputs of one input may be kept
//! //    as long as its payload lives.
//! outputs.clear();
//! let burst = Burst::single(b"answer").unwrap();
//! let answer = ManagerInput::UpstreamBurst { upstream, sender: address, tos: 0, burst };
//! manager.handle_input(answer, Instant::from_millis(2), &mut outputs);
//! assert!(matches!(
//!     outputs[..],
//!     [Output::SendToClient { .. }, Output::CloseFlow { .. }, Output::CloseUpstream { .. }]
//! ));
//! # Ok::<(), core::net::AddrParseError>(())
//! ```
//!
//! # The contract
//!
//! 1. For one flow the outputs come in the order open, sends, close. The socket that it uses is
//!    opened before and closed after all of them, and the shell carries out the sends before it
//!    closes that.
//! 2. [`Outputs::emit`] never calls back into the manager. What fails comes back as an input.
//! 3. Every datagram is counted exactly once, in both directions, after every input:
//!    `received = forwarded + dropped + queued`.
//! 4. Time and randomness are arguments. The same inputs give the same outputs.
//! 5. Nothing that comes from the network can panic the manager. Bad input is a counted
//!    [`Output::Drop`], an event for a flow that has closed does nothing but count, and a broken
//!    invariant is an assertion.
//! 6. The work of one timeout is bounded. After it the next deadline is strictly later; a timeout
//!    that comes too early or twice is harmless.
//! 7. A datagram that is not admitted costs no flow, no socket and no allocation.
//! 8. Every table has a limit and is allocated at start: handling an input allocates nothing, unless
//!    it changes the configuration or a socket opens that flows share.
//!
//! # A datagram and a deadline at the same instant
//!
//! A flow ends when a [`Timeout`](ManagerInput::Timeout) finds its deadline passed, not before. A
//! datagram handled first, even one handled later than the deadline, keeps the flow alive. A shell
//! that reads its sockets before it fires timeouts therefore never closes a flow whose datagrams
//! are waiting, however long it was held up.
//!
//! # Flows that the kernel forwards by itself
//!
//! With [`offload`](config::ManagerConfig::offload) a manager offers flows whose datagrams are all
//! treated alike to the shell, which may let the kernel forward them past the sockets.
//!
//! 1. [`Output::Offload`] is a hint: with any part of it carried out, each datagram gets to the same
//!    place, and the counters end the same.
//! 2. After [`Output::Recall`] of a flow, or [`Output::RecallBackend`] of its backend, none of its
//!    datagrams goes past the sockets until it is offered again. Before a flow ends, or leaves its
//!    backend, it is recalled; when a backend is lost, its flows are.
//! 3. A flow that was offered does not end as idle before [`Output::AskActivity`] has been answered
//!    by [`FlowActivity`](ManagerInput::FlowActivity).
//! 4. What the kernel forwards is told once, in any number of parts, and may be told after the flow
//!    has ended: it is received and forwarded then. The record of a flow lacks what has not been told
//!    when it ends.

#![no_std]
#![forbid(unsafe_code)]
// Some functions are for snapshots alone.
#![cfg_attr(not(feature = "snapshot"), allow(dead_code))]

extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod affinity;
pub mod backend;
pub mod balance;
pub mod burst;
mod collections;
pub mod config;
pub mod counters;
mod egress;
mod flow;
pub mod hash;
mod id;
mod input;
mod limits;
mod local_addr;
mod manager;
mod output;
pub mod probe;
pub mod proxy_protocol;
pub mod random;
mod reason;
mod retry_buffer;
pub mod route;
#[cfg(feature = "serde")]
pub mod snapshot;
mod time;
pub mod transaction;
mod upstream;

pub use backend::event::BackendEvent;
pub use burst::Burst;
pub use config::prepared::PreparedConfig;
pub use egress::{LocalSource, is_nobodys};
pub use flow::UdpFlow;
pub use id::{BackendId, FlowId, SendId, UpstreamId};
pub use input::{ManagerInput, NetworkError};
pub use local_addr::LocalAddr;
pub use manager::{Deadline, DeadlineReason, UdpManager};
pub use output::{FlowRecord, Output, Outputs, Repeat};
pub use reason::{CloseReason, Direction, DropReason};
pub use retry_buffer::KeptDatagram;
pub use time::Instant;
pub use transaction::{TransactionId, Transactions};
