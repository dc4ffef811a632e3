//! Where the system tells nothing of this host's addresses, links and routes that would be of use.

use std::io;
use std::net::IpAddr;

use mio::{Registry, Token};

/// Nothing to listen to.
#[derive(Debug)]
pub enum NetworkWatch {}

impl NetworkWatch {
    /// Nobody tells anything.
    ///
    /// # Errors
    ///
    /// Always.
    pub fn open(_registry: &Registry, _token: Token) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What has changed.
    pub fn changes(&self) -> NetworkChanges {
        match *self {}
    }
}

/// What has changed of this host's network.
#[derive(Debug, Default)]
pub struct NetworkChanges {
    /// The addresses that have gone.
    pub gone: Vec<IpAddr>,
    /// Whether there may be a way now where there was none.
    pub has_another_way: bool,
    /// Whether packets may leave by other links than before.
    pub have_routes_changed: bool,
}
