//! The kernel's side of the data path: everything that needs `unsafe`, and the encodings that
//! go with it. Nothing here decides anything.

pub mod arena;
pub mod clock;
pub mod cmsg;
pub mod errno;
pub mod inherited;
pub mod mmsg;
pub mod neighbours;
pub mod netlink;
pub mod portable;
pub mod ports;
pub mod process;
pub mod route;
pub mod scm;
pub mod sockaddr;
pub mod sockopt;
pub mod udp;
pub mod watch;
