//! The kernel's side of the data path: everything that needs `unsafe`, and the encodings that
//! go with it. Nothing here decides anything.
//!
//! What Linux alone has is left out elsewhere, or stands there as a module of the same name that says
//! so (`none.rs`).

pub mod arena;
pub mod cache;
pub mod clock;
pub mod errno;
pub mod fd;
pub mod files;
#[cfg_attr(not(target_os = "linux"), path = "sys/interface/none.rs")]
pub mod interface;
pub mod message;
#[cfg_attr(not(target_os = "linux"), path = "sys/netlink/none.rs")]
pub mod netlink;
#[cfg(unix)]
pub mod peer;
pub mod portable;
pub mod ports;
pub mod process;
#[cfg_attr(not(target_os = "linux"), path = "sys/sockopt/none.rs")]
pub mod sockopt;
pub mod udp;
#[cfg_attr(not(target_os = "linux"), path = "sys/watch/none.rs")]
pub mod watch;

#[cfg(target_os = "linux")]
pub mod cmsg;
#[cfg(target_os = "linux")]
pub mod inherited;
#[cfg(target_os = "linux")]
pub mod mmsg;
#[cfg(target_os = "linux")]
pub mod neighbours;
#[cfg(target_os = "linux")]
pub mod route;
#[cfg(target_os = "linux")]
pub mod scm;
#[cfg(target_os = "linux")]
pub mod sockaddr;
