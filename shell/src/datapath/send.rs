//! Between the core's orders and the kernel's calls: what is to be sent, gathered into as few
//! calls as it takes, and what happens when the kernel does not take it all.

pub mod gso;
pub mod outbox;
pub mod queue;
pub mod transmit;
