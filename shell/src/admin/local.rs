//! How a client on this machine and the process that it asks find each other: by a unix socket, which
//! tells who asks; on Windows by a loopback address and a token, which stand in a file.

#[cfg(any(windows, test))]
mod token;
#[cfg(unix)]
mod unix;

#[cfg(any(windows, test))]
pub(super) use token::Token;
#[cfg(windows)]
pub(super) use token::{Accepting, Connection, Listener};
#[cfg(unix)]
pub(super) use unix::{Accepting, Connection, Listener, readers};
