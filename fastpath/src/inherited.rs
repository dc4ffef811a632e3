//! What another process has in the kernel, as far as it has to be ended and read.

use std::os::fd::BorrowedFd;

use crate::layout::{EntryAccount, Gate};
use crate::memory::Memory;
use crate::program::{MAX_FLOWS, MAX_GATES};

/// Accounts and gates of another process. Its layout must be that of this one: a snapshot that says
/// which of them are in use has a format, which changes with it.
#[derive(Debug)]
pub struct InheritedMaps {
    accounts: Memory<EntryAccount>,
    gates: Memory<Gate>,
}

impl InheritedMaps {
    /// Those of the maps of [`FastPath::descriptors`](crate::FastPath::descriptors).
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`: they are no such maps.
    pub fn new([accounts, gates]: [BorrowedFd<'_>; 2]) -> std::io::Result<Self> {
        Ok(Self {
            accounts: Memory::map(accounts, MAX_FLOWS as usize * 2)?,
            gates: Memory::map(gates, MAX_GATES as usize)?,
        })
    }

    /// The two accounts of a flow, if there are any of that number.
    pub fn accounts(&self, first: u32) -> Option<[&EntryAccount; 2]> {
        let at = |number| self.accounts.get(number);
        Some([at(first as usize)?, at(first as usize + 1)?])
    }

    /// Closes a gate: what depends on it goes to the sockets, before the next packet.
    pub fn close(&self, gate: u32) {
        self.gates.get(gate as usize).into_iter().for_each(Gate::close);
    }
}
