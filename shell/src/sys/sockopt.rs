//! Socket options of the data path, by `nix` and `socket2`.
//!
//! Neither of the two has `SO_MEMINFO` and `SO_DETACH_REUSEPORT_BPF`, which are declared here by nix's
//! macro, nor `SO_PEERGROUPS`, whose value has no fixed length.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{SetSockOpt, TimestampingFlag, getsockopt, setsockopt, sockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use socket2::SockRef;

sockopt_impl!(
    /// The figures of a socket's memory, by their places in `linux/sock_diag.h`.
    MemInfo,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_MEMINFO,
    [u32; 9]
);
sockopt_impl!(
    /// Takes away the program that chooses among the sockets of a group.
    DetachReusePortBpf,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_DETACH_REUSEPORT_BPF,
    libc::c_int
);

/// How many times as much as it was asked for the kernel tells of a buffer, to pay for its own
/// bookkeeping (`socket(7)`).
pub const REPORTED_BUFFER_FACTOR: usize = 2;

/// Has the kernel keep as little as it can of what arrives (`SO_RCVBUF`).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn discard_received(socket: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&socket).set_recv_buffer_size(0)
}

/// Asks for received datagrams of one sender to be joined into bursts (`UDP_GRO`, `udp(7)`).
///
/// # Errors
///
/// Those of `setsockopt(2)`; kernels before 5.0 do not know it.
pub fn set_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, sockopt::UdpGroSegment, &true)
}

/// Asks for the TOS or traffic-class byte of received datagrams (`IP_RECVTOS`,
/// `IPV6_RECVTCLASS`). An IPv6 socket is asked for both, since it may receive IPv4.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_receive_tos(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set(socket, sockopt::Ipv6RecvTClass, &true)?;
    }
    set(socket, sockopt::IpRecvTos, &true)
}

/// Asks for the time to live or hop limit of received datagrams (`IP_RECVTTL`,
/// `IPV6_RECVHOPLIMIT`). An IPv6 socket is asked for both, since it may receive IPv4.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_receive_ttl(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set(socket, sockopt::Ipv6RecvHopLimit, &true)?;
    }
    set(socket, sockopt::Ipv4RecvTtl, &true)
}

/// Whether what the socket sends may not be cut into fragments. Then it leaves with DF (RFC 791), and
/// what is longer than the interface takes is refused (`EMSGSIZE`), whatever ICMP has said of the path
/// (`IP_PMTUDISC_PROBE`). An IPv6 socket is asked for both, since it may send IPv4.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_dont_fragment(socket: BorrowedFd<'_>, v6: bool, never: bool) -> io::Result<()> {
    use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
    use rustix::net::sockopt::{set_ip_mtu_discover, set_ipv6_mtu_discover};
    let (of_v4, of_v6) = match never {
        true => (Ipv4PathMtuDiscovery::PROBE, Ipv6PathMtuDiscovery::PROBE),
        false => (Ipv4PathMtuDiscovery::WANT, Ipv6PathMtuDiscovery::WANT),
    };
    if v6 {
        set_ipv6_mtu_discover(socket, of_v6)?;
        set(socket, sockopt::Ipv6DontFrag, &never)?;
    }
    Ok(set_ip_mtu_discover(socket, of_v4)?)
}

/// Whether a socket sends with DF and nothing else, as [`set_dont_fragment`] has it.
pub fn dont_fragment(socket: BorrowedFd<'_>) -> bool {
    use rustix::net::sockopt::{Ipv4PathMtuDiscovery, ip_mtu_discover};
    ip_mtu_discover(socket).is_ok_and(|how| how == Ipv4PathMtuDiscovery::PROBE)
}

/// Sends with this time to live or hop limit (`IP_TTL`, `IPV6_UNICAST_HOPS`).
///
/// # Errors
///
/// Those of `setsockopt(2)`: 0 is not allowed.
pub fn set_ttl(socket: BorrowedFd<'_>, v6: bool, ttl: u8) -> io::Result<()> {
    let ttl = libc::c_int::from(ttl);
    if v6 { set(socket, sockopt::Ipv6Ttl, &ttl) } else { set(socket, sockopt::Ipv4Ttl, &ttl) }
}

/// Asks for the local address that datagrams were sent to (`IP_PKTINFO`, `IPV6_RECVPKTINFO`).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_receive_local_address(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    // Of a broadcast only this one tells the address to answer from.
    set(socket, sockopt::Ipv4PacketInfo, &true)
}

/// Asks to be told, with each datagram, how many the kernel has dropped before (`SO_RXQ_OVFL`).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_receive_drops(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, sockopt::RxqOvfl, &1)
}

/// Asks for what the [portable path](super::portable) relies on, and for no more: in the little
/// room beside a datagram, what matters more would be lost. A listener has been opened for whichever path
/// there is.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn prepare_portable(socket: BorrowedFd<'_>, v6: bool, is_wildcard: bool) -> io::Result<()> {
    set_receive_tos(socket, v6)?;
    // Kernels before 5.0 have no GRO.
    let _ = set_gro(socket);
    if is_wildcard {
        if v6 {
            set(socket, sockopt::Ipv6RecvHopLimit, &false)?;
            set(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        set(socket, sockopt::Ipv4PacketInfo, &!v6)?;
        set(socket, sockopt::Ipv4RecvTtl, &false)?;
    }
    Ok(())
}

/// Asks no longer for timestamps, which the process that opened the socket may have wanted: nobody here
/// reads them.
pub fn clear_timestamps(socket: BorrowedFd<'_>) {
    let _ = set(socket, sockopt::ReceiveTimestamp, &false);
    let _ = set(socket, sockopt::ReceiveTimestampns, &false);
    let _ = set(socket, sockopt::Timestamping, &TimestampingFlag::empty());
}

/// Asks to be told of all that ICMP says of what the socket has sent, not only of what ends a
/// connection (`IP_RECVERR`, `IPV6_RECVERR`). It is told once by the next call, and waits in the
/// [error queue](super::mmsg::take_errors) besides.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_receive_errors(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    if v6 {
        set(socket, sockopt::Ipv6RecvErr, &true)
    } else {
        set(socket, sockopt::Ipv4RecvErr, &true)
    }
}

/// Sets the receive buffer past `net.core.rmem_max` where the process may (`SO_RCVBUFFORCE`).
///
/// # Errors
///
/// Those of `setsockopt(2)`: `EPERM` without `CAP_NET_ADMIN`.
pub fn force_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    set(socket, sockopt::RcvBufForce, &bytes.min(MAX_BUFFER))
}

/// Asks for a receive buffer, as much of it as the process may have.
pub fn ask_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) {
    if force_receive_buffer(socket, bytes).is_err() {
        let _ = SockRef::from(&socket).set_recv_buffer_size(bytes);
    }
}

/// Asks for a send buffer, as much of it as the process may have.
pub fn ask_send_buffer(socket: BorrowedFd<'_>, bytes: usize) {
    if force_send_buffer(socket, bytes).is_err() {
        let _ = SockRef::from(&socket).set_send_buffer_size(bytes);
    }
}

/// Sets the send buffer past `net.core.wmem_max` where the process may (`SO_SNDBUFFORCE`).
///
/// # Errors
///
/// Those of `setsockopt(2)`: `EPERM` without `CAP_NET_ADMIN`.
pub fn force_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    set(socket, sockopt::SndBufForce, &bytes.min(MAX_BUFFER))
}

/// The number that tells a socket apart from all others since the start of the machine
/// (`SO_COOKIE`), whichever process has it.
///
/// # Errors
///
/// Those of `getsockopt(2)`: not a socket.
pub fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    SockRef::from(&socket).cookie()
}

/// How many datagrams the kernel has dropped since the receive buffer was full (`SO_MEMINFO`,
/// `SK_MEMINFO_DROPS`): the count that `SO_RXQ_OVFL` brings with a datagram, without one.
///
/// # Errors
///
/// Those of `getsockopt(2)`; kernels before 4.12 do not know it.
pub fn receive_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const DROPS: usize = 8;
    Ok(getsockopt(&socket, MemInfo)?[DROPS])
}

/// How many datagrams or bursts wait to be received at most: as many as the memory that they take
/// up would hold of the smallest (`SK_MEMINFO_RMEM_ALLOC`).
///
/// # Errors
///
/// Those of [`receive_drops`].
pub fn most_queued(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const RECEIVE_BYTES: usize = 0;
    /// Less than the kernel's bookkeeping for a datagram takes by itself.
    const MIN_BYTES: u32 = 512;
    Ok(getsockopt(&socket, MemInfo)?[RECEIVE_BYTES].div_ceil(MIN_BYTES))
}

/// Whether more than half of a socket's receive buffer is full.
///
/// # Errors
///
/// Those of [`receive_drops`].
pub fn is_half_full(socket: BorrowedFd<'_>) -> io::Result<bool> {
    const RECEIVE_BYTES: usize = 0;
    const RECEIVE_BUFFER: usize = 1;
    let figures = getsockopt(&socket, MemInfo)?;
    Ok(figures[RECEIVE_BYTES] > figures[RECEIVE_BUFFER] / 2)
}

/// Whether more than half of a socket's send buffer is full: of what waits for a queue of the network
/// interface, or for the hardware address of a neighbour.
///
/// # Errors
///
/// Those of [`receive_drops`].
pub fn is_send_half_full(socket: BorrowedFd<'_>) -> io::Result<bool> {
    const SENT_BYTES: usize = 2;
    const SEND_BUFFER: usize = 3;
    let figures = getsockopt(&socket, MemInfo)?;
    Ok(figures[SENT_BYTES] > figures[SEND_BUFFER] / 2)
}

/// Lets the socket have an address that is not this host's (`IP_TRANSPARENT`, `IPV6_TRANSPARENT`).
///
/// # Errors
///
/// Those of `setsockopt(2)`: `EPERM` without `CAP_NET_ADMIN`.
pub fn set_transparent(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    if v6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

/// Is of IPv6 only, or of IPv4 too (`IPV6_V6ONLY`).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_only_v6(socket: BorrowedFd<'_>, only: bool) -> io::Result<()> {
    SockRef::from(&socket).set_only_v6(only)
}

/// Shares the address with other sockets of this user (`SO_REUSEPORT`).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_reuse_port(socket: BorrowedFd<'_>, share: bool) -> io::Result<()> {
    SockRef::from(&socket).set_reuse_port(share)
}

/// Lets other sockets that are so bound have the address too (`SO_REUSEADDR`).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_reuse_address(socket: BorrowedFd<'_>, share: bool) -> io::Result<()> {
    SockRef::from(&socket).set_reuse_address(share)
}

/// Makes a socket that is not bound yet the first of a group of its own (`SO_REUSEPORT`), whether
/// others will join it or not.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn found_group(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_reuse_port(socket, true)?;
    // A group is founded to hold a program that chooses among its sockets. It stays when that goes.
    let mut choose_the_first =
        [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: choose_the_first.as_mut_ptr() };
    set(socket, sockopt::AttachReusePortCbpf, &program)?;
    set(socket, DetachReusePortBpf, &0)
}

/// Whether a socket that is bound is in a group (`SO_REUSEPORT`), if only by itself.
///
/// # Errors
///
/// Those of `getsockopt(2)`.
pub fn is_in_group(socket: BorrowedFd<'_>) -> io::Result<bool> {
    SockRef::from(&socket).reuse_port()
}

/// The largest size of a buffer that the kernel can be asked for.
const MAX_BUFFER: usize = libc::c_int::MAX as usize;

fn set<O: SetSockOpt>(socket: BorrowedFd<'_>, option: O, value: &O::Val) -> io::Result<()> {
    Ok(setsockopt(&socket, option, value)?)
}

/// The supplementary groups of the process at the other end of a unix socket, as of when it
/// connected (`SO_PEERGROUPS`).
///
/// # Errors
///
/// Those of `getsockopt(2)`; kernels before 4.13 do not know it.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // The most groups that a process can have on Linux (`NGROUPS_MAX`).
    let mut groups = vec![0_u32; 65_536];
    let mut len = size_of_val(&groups[..]) as libc::socklen_t;
    // SAFETY: the numbers are writable for the length that is given, and so is the length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(len as usize / size_of::<u32>());
    Ok(groups)
}
