//! The kernel path: a program at tc ingress that forwards the datagrams of established flows, and
//! what userspace needs to load it, to tell it of flows and to read what it has done.
//!
//! The maps in the kernel are a **cache of decisions**: any part may be missing, refused or taken
//! back at any moment, and nothing but speed changes. The program never drops, and changes nothing
//! in a packet that it does not forward.
//!
//! - An [`Entry`] says what becomes of the packets of one [`Tuple`]: two entries make a flow.
//! - An [`EntryAccount`] counts what one entry has forwarded. It is memory that the kernel writes.
//! - A [`Gate`] holds for all entries made under its epoch: one store closes them all.
//! - A [`Turn`] tells the program how far a worker has got, so that no datagram overtakes another.
//!
//! The program is `bpf/flowgate.bpf.c`; its object is part of this crate, so that building needs
//! no C compiler. [`rewrite()`] says in Rust what it does to a packet.

mod inherited;
mod layout;
mod memory;
mod program;
mod rewrite;
mod tuple;

pub use inherited::InheritedMaps;
pub use layout::{Entry, EntryAccount, Gate, Progress, RawTuple4, RawTuple6, Turn};
pub use program::{FastPath, Hook, LoadError, MAX_FLOWS, MAX_GATES, MAX_WORKERS, Table};
pub use rewrite::rewrite;
pub use tuple::{EntryOptions, Tuple};

/// The kernel program as an ELF object for BPF, of the byte order of `x86_64` and `aarch64`.
#[cfg(target_endian = "little")]
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/flowgate.bpf.o");
#[cfg(not(target_endian = "little"))]
compile_error!("the kernel program's object is little-endian");
