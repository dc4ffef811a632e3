//! Whether the kernel can give clients sockets of their own, found out before anything relies on it.

use std::io;
use std::net::UdpSocket;
use std::time::Duration;

use flowgate_config::Config;
use flowgate_core::config::Accept;
use socket2::{Domain, Type};

use crate::sys::fd::AsFd;
use crate::sys::{sockopt, udp};

/// Clients cannot have sockets of their own here.
#[derive(Debug, thiserror::Error)]
#[error(
    "listener {listener:?}: cannot serve clients by sockets of their own: {error}; set \
     listener.accept to \"shared\""
)]
pub struct AcceptError {
    listener: String,
    error: io::Error,
}

/// How long a datagram over the loopback interface may take.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(200);

/// Tries it out, if a listener asks for it.
///
/// # Errors
///
/// When it does not work: before Linux 6.13 the kernel does not find a client's socket behind the
/// listener's, and without IPv6 there is none.
pub fn check(config: &Config) -> Result<(), AcceptError> {
    let asks = config.listeners.iter().find(|listener| listener.accept != Accept::Shared);
    asks.map_or(Ok(()), |listener| {
        try_it().map_err(|error| AcceptError { listener: listener.name.clone(), error })
    })
}

/// Finds out by trying whether clients can have sockets of their own here, over the loopback
/// interface.
///
/// # Errors
///
/// Why not.
pub fn try_it() -> io::Result<()> {
    let listener = socket2::Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    sockopt::found_group(listener.as_fd())?;
    listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    let address = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
    let client = UdpSocket::bind("127.0.0.1:0")?;
    let own = UdpSocket::from(udp::over_listener(address, client.local_addr()?)?);
    own.set_nonblocking(false)?;
    own.set_read_timeout(Some(RECEIVE_TIMEOUT))?;
    client.send_to(b"?", address)?;
    match own.recv(&mut [0; 1]) {
        Ok(_) => Ok(()),
        Err(_) => {
            Err(io::Error::other("the kernel does not find them, as Linux does from 6.13 on"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trying_it_out_leaves_nothing_behind_and_finds_what_this_kernel_does() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>());
        let version = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
        let before = open();
        let has_ipv6 = socket2::Socket::new(Domain::IPV6, Type::DGRAM, None).is_ok();
        assert_eq!(try_it().is_ok(), version >= (6, 13) && has_ipv6, "{release}");
        // Other tests open files as well.
        assert!(open() < before + 50);
    }
}
