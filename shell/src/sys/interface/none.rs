//! Where no socket hears one network interface alone.

use std::io;

use socket2::Socket;

use super::fd::OwnedFd;

/// Interfaces have no numbers here.
///
/// # Errors
///
/// Always.
pub fn number_of(_interface: &str) -> io::Result<u32> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Cannot be done.
///
/// # Errors
///
/// Always.
pub fn bind(_socket: &Socket, _interface: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// No socket is.
pub const fn of(_socket: &OwnedFd) -> Option<String> {
    None
}
