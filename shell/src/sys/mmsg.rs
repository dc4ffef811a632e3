//! Many datagrams with one system call: `recvmmsg(2)` and `sendmmsg(2)`.

mod raw;
mod receive;
mod send;

pub use receive::{QueuedError, Receiver, check_receive, take_errors};
pub use send::{Batch, Message, Sender};
