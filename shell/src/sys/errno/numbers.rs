//! The numbers, under the names that they have on Linux. Those that a system does not have are numbers
//! that it does not use.

#[cfg(unix)]
pub(super) use unix::*;
#[cfg(windows)]
pub(super) use windows::*;

#[cfg(unix)]
mod unix {
    #[cfg(test)]
    pub(in super::super) use libc::ETIMEDOUT;
    pub(in super::super) use libc::{
        EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, ECONNREFUSED, ECONNRESET,
        EDESTADDRREQ, EHOSTDOWN, EHOSTUNREACH, EINPROGRESS, EINTR, EINVAL, EIO, EMFILE, EMSGSIZE,
        ENETDOWN, ENETRESET, ENETUNREACH, ENFILE, ENOBUFS, ENOMEM, ENOPROTOOPT, ENOSPC, ENOSYS,
        EPERM, EPROTO,
    };

    #[cfg(target_os = "linux")]
    pub(in super::super) use libc::ENONET;
    #[cfg(not(target_os = "linux"))]
    pub(in super::super) const ENONET: i32 = -1;
}

/// Those of Winsock. What ICMP says of a port that nobody has is a connection that was reset there.
#[cfg(windows)]
mod windows {
    use windows_sys::Win32::Foundation::{
        ERROR_ACCESS_DENIED, ERROR_IO_DEVICE, ERROR_NOT_ENOUGH_MEMORY,
    };
    pub(in super::super) use windows_sys::Win32::Networking::WinSock::{
        WSAEACCES as EACCES, WSAEADDRINUSE as EADDRINUSE, WSAEADDRNOTAVAIL as EADDRNOTAVAIL,
        WSAEAFNOSUPPORT as EAFNOSUPPORT, WSAECONNRESET as ECONNREFUSED,
        WSAECONNRESET as ECONNRESET, WSAEDESTADDRREQ as EDESTADDRREQ, WSAEHOSTDOWN as EHOSTDOWN,
        WSAEHOSTUNREACH as EHOSTUNREACH, WSAEINTR as EINTR, WSAEINVAL as EINVAL,
        WSAEMFILE as EMFILE, WSAEMSGSIZE as EMSGSIZE, WSAENETDOWN as ENETDOWN,
        WSAENETRESET as ENETRESET, WSAENETUNREACH as ENETUNREACH, WSAENOBUFS as ENOBUFS,
        WSAENOPROTOOPT as ENOPROTOOPT, WSAEWOULDBLOCK as EAGAIN, WSAEWOULDBLOCK as EINPROGRESS,
    };

    pub(in super::super) const EIO: i32 = ERROR_IO_DEVICE.cast_signed();
    pub(in super::super) const ENOMEM: i32 = ERROR_NOT_ENOUGH_MEMORY.cast_signed();
    pub(in super::super) const EPERM: i32 = ERROR_ACCESS_DENIED.cast_signed();
    pub(in super::super) const ENFILE: i32 = -1;
    pub(in super::super) const ENONET: i32 = -2;
    pub(in super::super) const ENOSPC: i32 = -3;
    pub(in super::super) const ENOSYS: i32 = -4;
    pub(in super::super) const EPROTO: i32 = -5;
}
