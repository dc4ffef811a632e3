//! Socket options of the data path, where there is no more than every system has. What is only asked
//! for on behalf of Linux's own kernel is not there to be had.

use std::io;

use socket2::SockRef;

use super::fd::BorrowedFd;

/// How many times as much as it was asked for the system tells of a buffer.
pub const REPORTED_BUFFER_FACTOR: usize = 1;

/// Has the system keep as little as it can of what arrives.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn discard_received(socket: BorrowedFd<'_>) -> io::Result<()> {
    // None at all is not allowed everywhere.
    SockRef::from(&socket).set_recv_buffer_size(1)
}

/// Asks for what the [portable path](super::portable) relies on.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn prepare_portable(socket: BorrowedFd<'_>, v6: bool, is_wildcard: bool) -> io::Result<()> {
    system::prepare(socket, v6, is_wildcard)
}

/// Whether what a socket sends may not be cut into fragments. Nobody asks for it here.
pub fn dont_fragment(_socket: BorrowedFd<'_>) -> bool {
    false
}

/// Leaves it to the system whether what a socket sends may be cut into fragments.
///
/// # Errors
///
/// Where it is asked for anything else.
pub fn set_dont_fragment(_socket: BorrowedFd<'_>, _v6: bool, never: bool) -> io::Result<()> {
    if never { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
}

/// Asks for a receive buffer.
pub fn ask_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) {
    let _ = SockRef::from(&socket).set_recv_buffer_size(bytes);
}

/// Asks for a send buffer.
pub fn ask_send_buffer(socket: BorrowedFd<'_>, bytes: usize) {
    let _ = SockRef::from(&socket).set_send_buffer_size(bytes);
}

/// Is of IPv6 only, or of IPv4 too (`IPV6_V6ONLY`).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_only_v6(socket: BorrowedFd<'_>, only: bool) -> io::Result<()> {
    SockRef::from(&socket).set_only_v6(only)
}

/// Shares the address with other sockets of this user: none of those that this system has spreads
/// clients over them.
///
/// # Errors
///
/// Where it is asked to.
pub fn set_reuse_port(_socket: BorrowedFd<'_>, share: bool) -> io::Result<()> {
    if share {
        return Err(io::Error::other("on this system no two listeners can have one address"));
    }
    Ok(())
}

/// Lets other sockets that are so bound have the address too (`SO_REUSEADDR`).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_reuse_address(socket: BorrowedFd<'_>, share: bool) -> io::Result<()> {
    SockRef::from(&socket).set_reuse_address(share)
}

/// Cannot be done.
///
/// # Errors
///
/// Always.
pub fn set_transparent(_socket: BorrowedFd<'_>, _v6: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Cannot be done.
///
/// # Errors
///
/// Always.
pub fn found_group(_socket: BorrowedFd<'_>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// No socket is.
///
/// # Errors
///
/// None.
pub const fn is_in_group(_socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(false)
}

/// Nobody has asked for any.
pub const fn clear_timestamps(_socket: BorrowedFd<'_>) {}

/// Is asked for when a socket is [prepared](prepare_portable), as far as that can be.
///
/// # Errors
///
/// None.
pub const fn set_receive_local_address(_socket: BorrowedFd<'_>, _v6: bool) -> io::Result<()> {
    Ok(())
}

/// The same.
///
/// # Errors
///
/// None.
pub const fn set_receive_tos(_socket: BorrowedFd<'_>, _v6: bool) -> io::Result<()> {
    Ok(())
}

/// The same.
///
/// # Errors
///
/// None.
pub const fn set_receive_ttl(_socket: BorrowedFd<'_>, _v6: bool) -> io::Result<()> {
    Ok(())
}

/// The same.
///
/// # Errors
///
/// None.
pub const fn set_gro(_socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(())
}

#[cfg(windows)]
mod system {
    use std::io;
    use std::mem::size_of_val;
    use std::os::windows::io::AsRawSocket;

    use windows_sys::Win32::Networking::WinSock::{
        IP_PKTINFO, IP_RECVECN, IPPROTO_IP, IPPROTO_IPV6, IPV6_PKTINFO, IPV6_RECVECN, setsockopt,
    };

    use crate::sys::fd::BorrowedFd;

    pub(super) fn prepare(socket: BorrowedFd<'_>, v6: bool, is_wildcard: bool) -> io::Result<()> {
        let (level, local, ecn) = if v6 {
            (IPPROTO_IPV6, IPV6_PKTINFO, IPV6_RECVECN)
        } else {
            (IPPROTO_IP, IP_PKTINFO, IP_RECVECN)
        };
        if is_wildcard {
            ask_for(socket, level, local)?;
        }
        // Windows has it since version 10.
        let _ = ask_for(socket, level, ecn);
        if v6 {
            // One that is of IPv6 alone refuses what is of IPv4.
            let _ = ask_for(socket, IPPROTO_IP, IP_RECVECN);
            if is_wildcard {
                let _ = ask_for(socket, IPPROTO_IP, IP_PKTINFO);
            }
        }
        Ok(())
    }

    fn ask_for(socket: BorrowedFd<'_>, level: i32, option: i32) -> io::Result<()> {
        let (socket, yes) = (socket.as_raw_socket() as usize, 1_u32);
        let len = size_of_val(&yes) as i32;
        // SAFETY: the value is readable for the length that is given.
        match unsafe { setsockopt(socket, level, option, (&raw const yes).cast(), len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(unix)]
mod system {
    use std::io;
    use std::os::fd::AsRawFd;

    use quinn_udp::{UdpSockRef, UdpSocketState};

    use crate::sys::fd::BorrowedFd;

    /// Whether datagrams of IPv6 may not be cut into fragments, on macOS and the BSDs.
    const IPV6_DONTFRAG: libc::c_int = 62;

    pub(super) fn prepare(socket: BorrowedFd<'_>, v6: bool, _is_wildcard: bool) -> io::Result<()> {
        UdpSocketState::new(UdpSockRef::from(&socket))?;
        // What is too long for a packet is cut up, as it would be without a balancer.
        let (level, option) = if v6 {
            (libc::IPPROTO_IPV6, IPV6_DONTFRAG)
        } else {
            (libc::IPPROTO_IP, libc::IP_DONTFRAG)
        };
        let (no, len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        let no: *const libc::c_int = &raw const no;
        // SAFETY: the value is readable for the length that is given.
        match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, no.cast(), len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
