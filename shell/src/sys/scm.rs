//! Descriptors that travel over unix sockets (`SCM_RIGHTS`, `unix(7)`).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

/// The most descriptors that one message takes: a little less than the kernel does
/// (`SCM_MAX_FD`, 253).
pub const MAX_FDS: usize = 250;

/// Sends one packet with descriptors, at most [`MAX_FDS`]. They stay open here.
///
/// # Errors
///
/// Those of `sendmsg(2)`: `ETOOMANYREFS` where too many are under way that nobody has received.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    let (fd, pieces) = (socket.as_raw_fd(), [IoSlice::new(bytes)]);
    let sent = sendmsg::<UnixAddr>(fd, &pieces, control, MsgFlags::MSG_NOSIGNAL, None)?;
    if sent < bytes.len() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "a packet was cut"));
    }
    Ok(())
}

/// Receives one packet with its descriptors, which child processes do not get. An empty packet is
/// the end.
///
/// # Errors
///
/// Those of `recvmsg(2)`, and `InvalidData` where not all of the packet, or not all of its
/// descriptors, could be had: out of descriptors, or out of step.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = cmsg_space!([RawFd; MAX_FDS]);
    let mut pieces = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut pieces, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    // What did not fit is not there; what is there must be closed in any case.
    if let Ok(messages) = received.cmsgs() {
        for message in messages {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just opened them for us, and nobody else knows of them.
                let owned = raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                descriptors.extend(owned);
            }
        }
    }
    if received.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet did not arrive whole"));
    }
    Ok((received.bytes, descriptors))
}
