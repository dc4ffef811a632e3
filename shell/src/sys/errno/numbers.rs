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
        EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, ECONNREFUSED, EDESTADDRREQ,
        EHOSTDOWN, EHOSTUNREACH, EINPROGRESS, EINTR, EINVAL, EIO, EMFILE, EMSGSIZE, ENETDOWN,
        ENETRESET, ENETUNREACH, ENFILE, ENOBUFS, ENOMEM, ENOPROTOOPT, ENOSPC, ENOSYS, ENXIO, EPERM,
        EPROTO,
    };

    /// A number as it is looked for here.
    pub(in super::super) const fn canonical(number: i32) -> i32 {
        number
    }

    #[cfg(target_os = "linux")]
    pub(in super::super) use libc::{ENONET, ETOOMANYREFS};
    #[cfg(not(target_os = "linux"))]
    pub(in super::super) const ENONET: i32 = -1;
}

/// Those of Winsock.
#[cfg(windows)]
mod windows {
    use windows_sys::Win32::Foundation::{
        ERROR_ACCESS_DENIED, ERROR_IO_DEVICE, ERROR_NOT_ENOUGH_MEMORY,
    };
    pub(in super::super) use windows_sys::Win32::Networking::WinSock::{
        WSAEACCES as EACCES, WSAEADDRINUSE as EADDRINUSE, WSAEADDRNOTAVAIL as EADDRNOTAVAIL,
        WSAEAFNOSUPPORT as EAFNOSUPPORT, WSAECONNREFUSED as ECONNREFUSED,
        WSAEDESTADDRREQ as EDESTADDRREQ, WSAEHOSTDOWN as EHOSTDOWN,
        WSAEHOSTUNREACH as EHOSTUNREACH, WSAEINTR as EINTR, WSAEINVAL as EINVAL,
        WSAEMFILE as EMFILE, WSAEMSGSIZE as EMSGSIZE, WSAENETDOWN as ENETDOWN,
        WSAENETRESET as ENETRESET, WSAENETUNREACH as ENETUNREACH, WSAENOBUFS as ENOBUFS,
        WSAENOPROTOOPT as ENOPROTOOPT, WSAEWOULDBLOCK as EAGAIN, WSAEWOULDBLOCK as EINPROGRESS,
    };

    use windows_sys::Win32::Networking::WinSock::WSAECONNRESET;

    /// A number as it is looked for here. What ICMP says of a port that nobody has is a connection that
    /// was reset.
    pub(in super::super) const fn canonical(number: i32) -> i32 {
        if number == WSAECONNRESET { ECONNREFUSED } else { number }
    }

    pub(in super::super) const EIO: i32 = ERROR_IO_DEVICE.cast_signed();
    pub(in super::super) const ENOMEM: i32 = ERROR_NOT_ENOUGH_MEMORY.cast_signed();
    pub(in super::super) const EPERM: i32 = ERROR_ACCESS_DENIED.cast_signed();
    pub(in super::super) const ENFILE: i32 = -1;
    pub(in super::super) const ENONET: i32 = -2;
    pub(in super::super) const ENOSPC: i32 = -3;
    pub(in super::super) const ENOSYS: i32 = -4;
    pub(in super::super) const EPROTO: i32 = -5;
}
