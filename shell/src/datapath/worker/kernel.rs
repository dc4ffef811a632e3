//! What a worker asks of its kernel, beside what its shards do.

#[cfg(target_os = "linux")]
mod linux;

use std::io;
use std::net::IpAddr;

use mio::Registry;

use super::HandsOver;
use crate::datapath::fast_path::Offloads;
use crate::datapath::kernel::{Kernel, Socket};
use crate::datapath::shard::Shard;
use crate::datapath::token::Token;
use crate::sys::fd::AsFd;

/// A kernel that a worker can run on. What not every system has is left out where nothing is said
/// of it: nobody may rely on that then, which is found out at start.
pub trait WorkerKernel: Kernel<Socket: AsFd + Send> + HandsOver + Send + 'static {
    /// Whether its sockets can leave an address that is gone, and news of that is to be had.
    const FOLLOWS_THE_NETWORK: bool = false;

    /// Whether it can receive datagrams at all.
    ///
    /// # Errors
    ///
    /// Why not.
    fn check() -> io::Result<()> {
        Ok(())
    }

    /// One whose sockets are told of by the poll of `registry`.
    fn on(registry: Registry) -> Self;

    /// Takes in a listener's socket, of which is told under `token`.
    ///
    /// # Errors
    ///
    /// Those of watching it, and of `setsockopt(2)`.
    fn listen(&mut self, listener: Socket, token: Token) -> io::Result<Self::Socket>;

    /// Has upstream sockets that have sent from an address which is gone send from another.
    fn leave_address(&self, _shard: &mut Shard<Self>, _gone: IpAddr) {}

    /// Lets the kernel forward flows past the sockets.
    fn use_fast_path(&mut self, _offloads: Box<Offloads>) {}

    /// The flows that the kernel forwards past the sockets, where it may.
    fn fast_path(&self) -> Option<&Offloads> {
        None
    }

    /// The same, to change them.
    fn fast_path_mut(&mut self) -> Option<&mut Offloads> {
        None
    }
}
