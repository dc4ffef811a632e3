//! Sockets that only Linux has: nothing that is configured asks for them elsewhere.

use std::io;
use std::net::SocketAddr;

use crate::sys::fd::OwnedFd;

/// Cannot be had.
///
/// # Errors
///
/// Always.
pub fn raw(_v6: bool) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Cannot be had.
///
/// # Errors
///
/// Always.
pub fn over_listener(_listener: SocketAddr, _client: SocketAddr) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}
