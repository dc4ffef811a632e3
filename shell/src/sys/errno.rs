//! What the numbers of errors say, and of whom. They are sorted here and nowhere else:
//!
//! - *ours*: descriptors, ports or memory are short, our address is gone. Never held against a
//!   backend.
//! - *theirs*: refused, unreachable, no way to them. Held against the backend, whether `connect`, a
//!   send, a receive or the error queue says so.
//! - *this datagram's*: too long, not permitted. Neither.

mod numbers;

use std::io;

use flowgate_core::probe::ProbeOutcome;
use flowgate_core::{DropReason, NetworkError};

use super::udp::NoSource;

/// The number of an error, if the system has told it.
fn number(error: &io::Error) -> Option<i32> {
    error.raw_os_error().map(numbers::canonical)
}

/// What the error of a send asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// To send it again: a signal came.
    Interrupted,
    /// To wait for room.
    Full,
    /// To send its datagrams one by one. `for_good` if no other batch fares better.
    NoGso {
        /// Whether that is so for all that goes the same way.
        for_good: bool,
    },
    /// To send it again: the network has said this of an earlier datagram.
    Stale(NetworkError),
    /// To send it again once: on a connected socket the network may have said this of an earlier
    /// datagram, and if it did it is told no second time.
    MayBeStale(Option<NetworkError>),
    /// To give it up.
    Lost,
}

/// Sorts the error of a send of one datagram, or of a GSO batch.
pub fn on_send(error: &io::Error, is_batch: bool) -> SendError {
    match number(error) {
        Some(numbers::EINTR) => SendError::Interrupted,
        Some(numbers::ECONNREFUSED) => SendError::Stale(NetworkError::Refused),
        Some(numbers::EIO) => SendError::NoGso { for_good: true },
        Some(numbers::EINVAL | numbers::EMSGSIZE) if is_batch => {
            SendError::NoGso { for_good: false }
        }
        Some(numbers::EAGAIN) => SendError::Full,
        Some(numbers::EMSGSIZE) => SendError::MayBeStale(None),
        _ => match upstream_failure(error) {
            Some(failure) => SendError::MayBeStale(Some(failure)),
            None => SendError::Lost,
        },
    }
}

/// What the network said of an earlier datagram (ICMP), if an error may tell that.
pub fn upstream_failure(error: &io::Error) -> Option<NetworkError> {
    match number(error)? {
        numbers::ECONNREFUSED => Some(NetworkError::Refused),
        numbers::EHOSTUNREACH
        | numbers::ENETUNREACH
        | numbers::EHOSTDOWN
        | numbers::ENONET
        | numbers::ENOPROTOOPT
        | numbers::EPROTO
        | numbers::EACCES => Some(NetworkError::Unreachable),
        _ => None,
    }
}

/// What the error of opening a socket to a backend says of that backend, if it is not ours: that
/// there is no way to it from here. A blackhole is an invalid argument, and a host without IPv6 has
/// no such family.
pub fn connect_failure(error: &io::Error) -> Option<NetworkError> {
    match number(error)? {
        numbers::EINVAL | numbers::EAFNOSUPPORT => Some(NetworkError::Unreachable),
        _ => upstream_failure(error),
    }
}

/// Whether a connected socket may meet this since the address that it sends from is gone, or since
/// it has none.
pub fn may_lack_its_source(error: &io::Error) -> bool {
    matches!(
        number(error),
        Some(
            numbers::ENETUNREACH | numbers::EINVAL | numbers::EADDRNOTAVAIL | numbers::EDESTADDRREQ
        )
    )
}

/// Whether a socket is connected to nobody any more: it could not be connected again when the address
/// went that it had sent from.
pub fn lacks_its_peer(error: &io::Error) -> bool {
    number(error) == Some(numbers::EDESTADDRREQ)
}

/// Whether two errors are the same one.
pub fn is_same(one: &io::Error, other: &io::Error) -> bool {
    (number(one), one.kind()) == (number(other), other.kind())
}

/// Whether a receive says it of something that was sent before, by a socket that is connected to
/// nobody. Windows does.
pub fn is_of_a_send(error: &io::Error) -> bool {
    cfg!(windows) && matches!(number(error), Some(numbers::ECONNREFUSED | numbers::ENETRESET))
}

/// Whether there is nobody at the other end of what was to be opened.
#[cfg(unix)]
pub fn is_no_reader(error: &io::Error) -> bool {
    number(error) == Some(numbers::ENXIO)
}

/// Whether more descriptors are on their way to other processes than may be (`ETOOMANYREFS`).
#[cfg(target_os = "linux")]
pub fn has_too_many_in_flight(error: &io::Error) -> bool {
    number(error) == Some(numbers::ETOOMANYREFS)
}

/// What a kernel says that does not cut up what it is given to send.
pub fn no_gso() -> io::Error {
    io::Error::from_raw_os_error(numbers::EIO)
}

/// Whether a connection is on its way: a call that does not block has begun to make it.
pub fn is_in_progress(error: &io::Error) -> bool {
    number(error) == Some(numbers::EINPROGRESS)
}

/// What the failure of a probe's system call says about its target.
pub fn on_probe(error: &io::Error) -> ProbeOutcome {
    match (error.kind(), number(error)) {
        (io::ErrorKind::ConnectionRefused, _) => ProbeOutcome::Refused,
        (io::ErrorKind::TimedOut, _) => ProbeOutcome::TimedOut,
        // Something is short here: descriptors, memory, ports, room in a send buffer. It would be
        // a pity to lose all backends for that.
        (io::ErrorKind::AddrNotAvailable | io::ErrorKind::WouldBlock, _)
        | (
            _,
            Some(
                numbers::EMFILE
                | numbers::ENFILE
                | numbers::ENOMEM
                | numbers::ENOBUFS
                | numbers::ENOSPC,
            ),
        ) => ProbeOutcome::Inconclusive,
        _ => ProbeOutcome::Unreachable,
    }
}

/// Whether a system call does not exist here: an old kernel, or a sandbox that hides it.
pub fn is_missing(error: &io::Error) -> bool {
    number(error) == Some(numbers::ENOSYS)
}

/// The name under which datagrams that met an error are counted.
pub fn drop_reason(error: &io::Error) -> DropReason {
    match number(error) {
        None if error.get_ref().is_some_and(|inner| inner.is::<NoSource>()) => DropReason::NoSource,
        Some(numbers::EMFILE | numbers::ENFILE) => DropReason::NoDescriptors,
        Some(numbers::EADDRNOTAVAIL | numbers::EAGAIN | numbers::EADDRINUSE) => DropReason::NoPorts,
        Some(numbers::ENOBUFS | numbers::ENOMEM) => DropReason::NoBuffers,
        Some(numbers::EPERM | numbers::EACCES) => DropReason::NotPermitted,
        Some(
            numbers::ENETUNREACH
            | numbers::EHOSTUNREACH
            | numbers::ENETDOWN
            | numbers::EHOSTDOWN
            | numbers::ENONET,
        ) => DropReason::Unreachable,
        Some(numbers::ECONNREFUSED) => DropReason::Refused,
        Some(numbers::EMSGSIZE) => DropReason::MessageSize,
        _ => DropReason::SendFailed,
    }
}

/// What the kernel says where another socket has the port (`EADDRINUSE`).
pub fn address_in_use() -> io::Error {
    io::Error::from_raw_os_error(numbers::EADDRINUSE)
}

/// Whether a socket cannot be bound to an address, whatever port it has: `connect(2)` tells a lack of
/// ports by the first of these numbers.
pub fn is_no_source(error: &io::Error) -> bool {
    matches!(number(error), Some(numbers::EADDRNOTAVAIL | numbers::EINVAL | numbers::EAFNOSUPPORT))
}

/// What the kernel says where the process has no descriptors left (`EMFILE`).
pub fn out_of_descriptors() -> io::Error {
    io::Error::from_raw_os_error(numbers::EMFILE)
}

/// Whether the process or the system has no descriptors left.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(number(error), Some(numbers::EMFILE | numbers::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn what_is_short_here_is_never_held_against_a_backend() {
        for ours in [
            numbers::EMFILE,
            numbers::ENFILE,
            numbers::ENOMEM,
            numbers::ENOBUFS,
            numbers::EADDRNOTAVAIL,
            numbers::EAGAIN,
            numbers::EADDRINUSE,
            numbers::EPERM,
            numbers::EINTR,
            numbers::EMSGSIZE,
        ] {
            assert_eq!(upstream_failure(&of(ours)), None, "{ours}");
            assert_eq!(connect_failure(&of(ours)), None, "{ours}");
        }
        assert_eq!(connect_failure(&NoSource.into()), None);
    }

    #[test]
    fn want_of_something_here_is_not_blamed_on_a_target() {
        for (code, outcome) in [
            (numbers::ECONNREFUSED, ProbeOutcome::Refused),
            (numbers::EHOSTUNREACH, ProbeOutcome::Unreachable),
            (numbers::ENETUNREACH, ProbeOutcome::Unreachable),
            (numbers::EPERM, ProbeOutcome::Unreachable),
            (numbers::ETIMEDOUT, ProbeOutcome::TimedOut),
            (numbers::EMFILE, ProbeOutcome::Inconclusive),
            (numbers::ENOBUFS, ProbeOutcome::Inconclusive),
            (numbers::EADDRNOTAVAIL, ProbeOutcome::Inconclusive),
        ] {
            assert_eq!(on_probe(&of(code)), outcome);
        }
        assert_eq!(on_probe(&NoSource.into()), ProbeOutcome::Inconclusive);
    }

    #[test]
    fn no_way_to_a_backend_is_held_against_it_whoever_says_so() {
        for theirs in
            [numbers::ENETUNREACH, numbers::EHOSTUNREACH, numbers::EACCES, numbers::EHOSTDOWN]
        {
            let failure = Some(NetworkError::Unreachable);
            assert_eq!(upstream_failure(&of(theirs)), failure);
            assert_eq!(connect_failure(&of(theirs)), failure);
            assert_eq!(on_send(&of(theirs), false), SendError::MayBeStale(failure));
        }
        assert_eq!(connect_failure(&of(numbers::EINVAL)), Some(NetworkError::Unreachable));
        assert_eq!(on_send(&of(numbers::EINVAL), false), SendError::Lost);
        assert_eq!(on_send(&of(numbers::EINVAL), true), SendError::NoGso { for_good: false });
    }
}
