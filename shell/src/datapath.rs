//! The data path: from a datagram's arrival to its departure, on the threads of the workers.
//!
//! | module | duty |
//! |---|---|
//! | [`listener`] | binds the sockets that clients send to, one for each worker |
//! | [`worker`] | one thread: waits for events, gives every shard its turn, fires timeouts |
//! | [`shard`] | one listener socket and its flows: what is ready, and whose turn it is |
//! | [`recv`] | reads sockets and hands each burst to the core |
//! | [`dispatch`] | carries out what the core emits: opens, notes sends, closes |
//! | [`send`] | turns what was noted into messages, and copes with kernels that do not take them |
//! | [`kernel`] | the system calls, behind a trait, so that simulations can stand in |
//! | [`sockets`] | all sockets of a shard, also as they are handed to another process |
//! | [`upstream`] | the sockets to backends, one for each flow |
//! | [`client`] | clients' own sockets, where a listener has them |
//! | [`fast_path`] | flows that the kernel forwards past the sockets |
//! | [`egress`] | the sockets to backends that no flow has: for one-way datagrams and copies |
//! | [`role`] | whether a socket serves the cluster or its mirror |
//! | [`token`] | which socket an event of the poll is about |
//! | [`report`] | the figures of workers |

pub mod client;
pub mod dispatch;
pub mod egress;
#[cfg_attr(not(target_os = "linux"), path = "datapath/fast_path/none.rs")]
pub mod fast_path;
pub mod kernel;
pub mod listener;
pub(crate) mod recv;
pub mod report;
pub mod role;
pub mod send;
pub mod shard;
pub mod sockets;
pub mod token;
pub mod upstream;
pub mod worker;
