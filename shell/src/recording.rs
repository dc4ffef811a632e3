//! Recordings: what managers were told, kept in a file, and told again.
//!
//! A manager decides by nothing but its state and what it is told. So a recording that begins with the
//! state and goes on with every input says all that it decided: [`player`] has the same decided again,
//! or what another configuration would have made of the same traffic.
//!
//! | module | duty |
//! |---|---|
//! | [`file`](mod@file) | blocks with checksums: what a recording is as bytes |
//! | [`codec`] | inputs as bytes |
//! | [`digest`] | sums over bytes and outputs |
//! | [`capture`] | pcap and pcapng as inputs |
//! | [`compare`] | what another configuration changes |
//! | [`player`] | plays a recording through the core |

pub mod capture;
pub mod codec;
pub mod compare;
pub mod digest;
pub mod file;
pub mod player;
