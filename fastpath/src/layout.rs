//! The structs that the kernel program and userspace share: `bpf/flowgate.bpf.c` has them in C, and
//! a test compares the two by the object's BTF.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Addresses and ports of an IPv4 packet, in the byte order of the network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RawTuple4 {
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Source port.
    pub source_port: [u8; 2],
    /// Destination port.
    pub destination_port: [u8; 2],
}

/// Addresses and ports of an IPv6 packet, in the byte order of the network.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RawTuple6 {
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Source port.
    pub source_port: [u8; 2],
    /// Destination port.
    pub destination_port: [u8; 2],
}

/// What becomes of the packets of one tuple. Made by [`Entry::new`].
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The new source address; IPv4 in the first four octets.
    pub source: [u8; 16],
    /// The new destination address.
    pub destination: [u8; 16],
    /// The new source port.
    pub source_port: [u8; 2],
    /// The new destination port.
    pub destination_port: [u8; 2],
    /// What the new addresses add to a ones' complement sum.
    pub address_change: u32,
    /// What the new ports add to it.
    pub port_change: u32,
    /// Where it is counted.
    pub account: u32,
    /// What it depends on.
    pub gate: u32,
    /// The gate's epoch under which it was made.
    pub epoch: u32,
    /// The interface to send from.
    pub ifindex: u32,
    /// The neighbour to send to.
    pub next_hop: [u8; 16],
    /// The neighbour's family, `AF_INET` or `AF_INET6`.
    pub next_hop_family: u16,
    /// The longest IP packet to forward.
    pub max_len: u16,
    /// The worker whose flow it is.
    pub worker: u16,
    /// Not zero while the worker may have earlier datagrams of the flow still to send.
    pub pending: u16,
}

/// What one entry has forwarded: memory that the kernel writes.
#[repr(C)]
#[derive(Debug, Default)]
pub struct EntryAccount {
    /// Datagrams, each segment of a joined packet by itself.
    pub datagrams: AtomicU64,
    /// Their payload.
    pub bytes: AtomicU64,
    /// When the last was forwarded, on `CLOCK_MONOTONIC`, up to a tick of the kernel's coarse clock
    /// early; before there was any, when the entry was made.
    pub last_ns: AtomicU64,
    /// While the entry is pending, when a datagram last went to the sockets.
    pub passed_ns: AtomicU64,
}

/// How far the change-over of an entry has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Its datagrams still go to the sockets. The last one did at this time.
    Pending(u64),
    /// It forwards.
    Open,
    /// It forwards, and began to before its flow had paused: a datagram may have been overtaken.
    Forced,
}

impl EntryAccount {
    /// Makes the account ready for a new entry, which must not be in the map yet.
    pub fn begin(&self, now_ns: u64) {
        self.datagrams.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.last_ns.store(now_ns, Ordering::Relaxed);
        self.passed_ns.store(now_ns, Ordering::Release);
    }

    /// Makes the account ready for an entry that takes the place of one of the same flow: it counts on.
    pub fn begin_again(&self, now_ns: u64) {
        self.last_ns.store(now_ns, Ordering::Relaxed);
        self.passed_ns.store(now_ns, Ordering::Release);
    }

    /// How far the change-over has got.
    pub fn progress(&self) -> Progress {
        match self.passed_ns.load(Ordering::Relaxed) {
            0 => Progress::Open,
            u64::MAX => Progress::Forced,
            at => Progress::Pending(at),
        }
    }
}

/// What a set of entries depends on.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Gate {
    epoch: AtomicU32,
    reserved: u32,
}

impl Gate {
    /// The epoch that new entries are made under.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Closes all entries made so far, before the next packet.
    pub fn close(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

/// How far a worker has got.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Turn {
    /// Whatever had arrived at the worker's sockets before then has been sent on.
    pub done_ns: AtomicU64,
    /// When the worker last ran. Entries of one that has not for ten seconds are not in force.
    pub alive_ns: AtomicU64,
}

// SAFETY: octets and numbers, without padding: the sizes below are the sums of the fields'.
unsafe impl aya::Pod for RawTuple4 {}
// SAFETY: as above.
unsafe impl aya::Pod for RawTuple6 {}
// SAFETY: as above.
unsafe impl aya::Pod for Entry {}

const _: () = assert!(size_of::<RawTuple4>() == 2 * 4 + 2 * 2);
const _: () = assert!(size_of::<RawTuple6>() == 2 * 16 + 2 * 2);
const _: () = assert!(size_of::<Entry>() == 2 * 16 + 2 * 2 + 6 * 4 + 16 + 4 * 2);
