//! Network interfaces: sockets that hear one of them alone.

use std::io;

use nix::net::if_::if_nametoindex;
use socket2::Socket;

use super::fd::OwnedFd;

/// The number that the kernel has for an interface.
///
/// # Errors
///
/// When there is none of this name.
pub fn number_of(interface: &str) -> io::Result<u32> {
    if_nametoindex(interface).map_err(|_| {
        io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {interface:?}"))
    })
}

/// Has a socket hear and send by one interface alone (`SO_BINDTODEVICE`).
///
/// # Errors
///
/// When there is none of this name, and those of `setsockopt(2)`.
pub fn bind(socket: &Socket, interface: &str) -> io::Result<()> {
    number_of(interface)?;
    socket.bind_device(Some(interface.as_bytes()))
}

/// The name of the interface that a socket is bound to, if it is to one that there is.
pub fn of(socket: &OwnedFd) -> Option<String> {
    let name = socket2::SockRef::from(socket).device().ok()??;
    String::from_utf8(name).ok()
}
