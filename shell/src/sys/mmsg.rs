//! Many datagrams with one system call: `recvmmsg(2)` and `sendmmsg(2)`.

mod raw;
mod receive;
mod send;

pub use receive::{Receiver, check_receive, take_errors};
pub use send::Sender;

/// A header of nothing. Some C libraries have padding in it, which nobody else can name.
const fn empty_header() -> libc::msghdr {
    // SAFETY: all zeroes are a header, of nothing.
    unsafe { std::mem::zeroed() }
}

/// How many bytes of control messages a header tells of.
#[allow(clippy::unnecessary_cast, reason = "not every C library has it as large as a size")]
const fn control_len(header: &libc::msghdr) -> usize {
    header.msg_controllen as usize
}
