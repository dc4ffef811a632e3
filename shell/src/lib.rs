//! Flowgate: the shell around [`flowgate_core`], and the `flowgate` command.
//!
//! The core decides; this crate moves the bytes.
//!
//! | module | duty |
//! |---|---|
//! | [`datapath`] | from a datagram's arrival to its departure |
//! | [`sys`] | everything that needs `unsafe`, and the only place that reads a clock |
//! | [`control`] | signals, reloads, probes, names of backends, logs, the service manager |
//! | [`admin`] | the control socket, metrics and the status page |
//! | [`handover`] | giving everything to a new process, and taking it over from an old one |
//! | [`observe`] | watching the managers at work: `flowgate trace` and `flowgate record` |
//! | [`recording`] | what managers were told, in a file, and told again |
//! | [`cli`] | the command line |
//!
//! `LIFECYCLE.md` tells the life of a flow step by step.

// What serves a handover alone is called by nobody on other systems.
#![cfg_attr(not(target_os = "linux"), allow(dead_code, unreachable_pub))]

pub mod admin;
pub mod cli;
pub mod control;
pub mod datapath;
#[cfg_attr(not(target_os = "linux"), path = "handover/none.rs")]
pub mod handover;
pub mod observe;
pub mod recording;
pub mod sys;
