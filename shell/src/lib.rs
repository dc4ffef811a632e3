//! Flowgate: the shell around [`flowgate_core`], and the `flowgate` command.
//!
//! The core decides; this crate moves the bytes. A datagram's way through it, in the order of the
//! modules:
//!
//! | module | duty |
//! |---|---|
//! | [`listener`] | binds the sockets that clients send to, one for each worker |
//! | [`worker`] | one thread: waits for events, gives every shard its turn, fires timeouts |
//! | [`shard`] | one listener socket and its flows: reads what is ready, asks the core |
//! | [`dispatch`] | carries out what the core emits: opens, notes sends, closes |
//! | [`sockets`] | all sockets of a shard, also as they are handed to another process |
//! | [`upstream`] | the sockets to backends, one for each flow |
//! | [`client`] | clients' own sockets, where a listener has them |
//! | [`outlet`] | the sockets to backends that no flow has: for what nobody answers, and for copies |
//! | [`io`] | turns what was noted into messages, and copes with kernels that do not take them |
//! | [`kernel`] | the system calls, behind a trait, so that simulations can stand in |
//! | [`sys`] | everything that needs `unsafe` |
//!
//! Beside the data path, on threads of their own that no worker waits for:
//!
//! | module | duty |
//! |---|---|
//! | [`supervisor`] | the control plane: signals, requests, reloads, one after another |
//! | [`server`] | starts, changes, asks and stops the workers |
//! | [`standing`] | what probes and operators have said of a backend |
//! | [`upgrade`] | gives everything over to a new process, or takes it over from an old one |
//! | [`snapshot`] | what a process is, as plain data |
//! | [`accept`] | whether the kernel can give clients sockets of their own |
//! | [`source`] | whether this host can have the sources that clusters name |
//! | [`probe`] | asks backends how they are |
//! | [`resolve`] | keeps the addresses of backends with names fresh |
//! | [`control`] | the control socket, and the client for it |
//! | [`http`] | metrics and the status page |
//! | [`flow_log`] | a line for each flow that has ended |
//! | [`notify`] | what the service manager wants to know, and hands over |
//!
//! [`report`] holds the figures of workers, [`cli`] is the command line, [`clock`] the only place
//! that reads a clock, [`log`] what operators read.
//!
//! `LIFECYCLE.md` tells the life of a flow step by step.

pub mod accept;
pub mod cli;
pub mod client;
pub mod clock;
pub mod control;
pub mod dispatch;
pub mod flow_log;
pub mod http;
pub mod io;
pub mod kernel;
pub mod listener;
pub mod log;
pub mod notify;
pub mod outlet;
pub mod probe;
pub mod report;
pub mod resolve;
pub mod server;
pub mod shard;
pub mod snapshot;
pub mod sockets;
pub mod source;
pub mod standing;
pub mod supervisor;
pub mod sys;
pub mod token;
pub mod upgrade;
pub mod upstream;
pub mod worker;
