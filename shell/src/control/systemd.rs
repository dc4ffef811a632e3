//! What this process and the service manager that started it tell each other: how far it is
//! (`sd_notify(3)`), and which sockets are open for it already (`sd_listen_fds(3)`).
//!
//! Without a service manager nothing here does anything.

use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use socket2::{Protocol, Socket, Type};
use tracing::warn;

use crate::admin::escape::escaped;
use crate::handover::fdstore::{self, Kept};
use crate::sys::inherited;

/// How long a message waits at most for a service manager that has its hands full.
pub(crate) const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// How much longer than its drain a stop may take.
const TIME_TO_STOP: Duration = Duration::from_secs(10);

/// Tells the service manager how far this process is.
///
/// A message that does not arrive is no reason to stop balancing: the first one that fails is
/// logged.
#[derive(Debug, Default)]
pub struct Notifier {
    /// None: nobody wants to know.
    pub(crate) way: Option<NotifySocket>,
    watchdog: Option<Duration>,
    /// How many descriptors the service manager keeps for the next process.
    pub(crate) room: usize,
    has_failed: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: UnixDatagram,
    /// Not connected to it: it may be replaced while this process runs.
    pub(crate) manager: UnixAddr,
}

impl Notifier {
    /// A way to the service manager that started this process, if one did and wants to know
    /// (`NOTIFY_SOCKET`, `WATCHDOG_USEC`,
    /// `FDSTORE`).
    pub fn from_environment() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|a| !a.is_empty()) else {
            return Self::default();
        };
        let room = std::env::var("FDSTORE").ok().and_then(|room| room.parse().ok()).unwrap_or(0);
        match Self::to(&address, sd_notify::watchdog_enabled()) {
            Ok(notifier) => Self { room, ..notifier },
            Err(error) => {
                warn!("cannot reach the service manager at NOTIFY_SOCKET={address:?}: {error}");
                Self::default()
            }
        }
    }

    /// A way to the service manager at `address`: a path, or a name in the abstract namespace with
    /// an `@` before it. It restarts processes that it has not heard of for as long as `watchdog`.
    ///
    /// # Errors
    ///
    /// When that is not an address, or there can be no socket.
    pub fn to(address: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let manager = match address.as_bytes().strip_prefix(b"@") {
            Some(name) => UnixAddr::from_abstract_name(name)?,
            None => UnixAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        let way = Some(NotifySocket { socket, manager });
        Ok(Self { way, watchdog, room: 0, has_failed: AtomicBool::new(false) })
    }

    /// It is up, or has finished a reload, well or badly.
    pub fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// It reads its configuration again; [`ready`](Self::ready) follows.
    pub fn reloading(&self) {
        // A unit of `Type=notify-reload` has to say when.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// It stops, and lets flows go on for `drain` at most. The service manager does not time out
    /// before, whatever its own timeout is.
    pub fn stopping(&self, drain: Duration) {
        let micros = drain.saturating_add(TIME_TO_STOP).as_micros();
        let extend = format!("EXTEND_TIMEOUT_USEC={micros}");
        self.tell(&[NotifyState::Stopping, NotifyState::Custom(&extend)]);
    }

    /// What to show with the state of the service, in a line.
    pub fn status(&self, text: &str) {
        self.tell(&[NotifyState::Status(&escaped(text))]);
    }

    /// How often [`alive`](Self::alive) is expected: twice in the time after which the service
    /// manager restarts the process. None: it has no watchdog.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.way.is_some()).map(|limit| limit / 2)
    }

    /// Another process goes on with its work, and is to be watched instead of it.
    pub fn succeeded_by(&self, pid: u32) {
        self.tell(&[NotifyState::MainPid(pid)]);
    }

    /// It is alive.
    pub fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(NotifySocket { socket, manager }) = &self.way else { return };
        let mut message = String::new();
        for state in states {
            // Writing to a string does not fail.
            let _ = writeln!(message, "{state}");
        }
        let sent = socket.send_to_addr(message.as_bytes(), manager);
        if let Err(error) = sent
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            warn!("cannot tell the service manager {:?}: {error}", message.trim_end());
        }
    }
}

/// Why sockets of the service manager cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// What announces them is damaged.
    #[error("cannot take over the sockets that LISTEN_FDS and LISTEN_PID announce: {0}")]
    Announcement(#[source] io::Error),
    /// One of them is of no use to a listener.
    #[error(
        "descriptor {descriptor}, from the service manager, is {found}; Flowgate takes over UDP \
         sockets alone: in the .socket unit, give ListenDatagram= an IP address and a port"
    )]
    NotAListener {
        /// Its number.
        descriptor: RawFd,
        /// What it is.
        found: String,
    },
}

/// What was open for this process before it began.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The sockets for listeners, each with the address that it is bound to, in the order of the
    /// service manager. They do not block, and child processes do not get them.
    pub listeners: Vec<(SocketAddr, OwnedFd)>,
    /// What a former process has left with the service manager when it stopped.
    pub kept: Option<Kept>,
}

/// What is open for this process. Only the first call returns anything.
///
/// # Errors
///
/// When there is a socket for listeners that is not a bound UDP socket. All are closed then.
pub fn inherited() -> Result<Inherited, InheritError> {
    let mut inherited = Inherited::default();
    let mut flows = Vec::new();
    let mut snapshot = None;
    for (name, descriptor) in inherited::descriptors().map_err(InheritError::Announcement)? {
        match name.as_str() {
            fdstore::SNAPSHOT => snapshot = Some(descriptor),
            fdstore::FLOW => flows.push(descriptor),
            _ => inherited.listeners.push(listener_socket(descriptor)?),
        }
    }
    inherited.kept = snapshot.map(|snapshot| Kept { snapshot, flows });
    Ok(inherited)
}

/// A descriptor with the address it is bound to, if it is a UDP socket without a peer.
fn listener_socket(descriptor: OwnedFd) -> Result<(SocketAddr, OwnedFd), InheritError> {
    let number = descriptor.as_raw_fd();
    let refuse = |found: String| InheritError::NotAListener { descriptor: number, found };
    let unusable = |error: io::Error| refuse(format!("not a usable socket ({error})"));

    let socket = Socket::from(descriptor);
    let kind = socket.r#type().map_err(unusable)?;
    let Some(address) = socket.local_addr().map_err(unusable)?.as_socket() else {
        return Err(refuse("a socket without an IP address".into()));
    };
    match kind {
        Type::DGRAM => {}
        Type::STREAM => return Err(refuse(format!("a TCP socket on {address}"))),
        _ => return Err(refuse(format!("neither a UDP nor a TCP socket, on {address}"))),
    }
    if socket.protocol().map_err(unusable)? != Some(Protocol::UDP) {
        return Err(refuse(format!("a socket of another protocol than UDP on {address}")));
    }
    if address.port() == 0 {
        return Err(refuse("a UDP socket that is not bound".into()));
    }
    if let Ok(peer) = socket.peer_addr() {
        let peer = peer.as_socket().map_or_else(String::new, |peer| format!(" to {peer}"));
        return Err(refuse(format!("a UDP socket that is connected{peer}")));
    }
    socket.set_nonblocking(true).map_err(unusable)?;
    socket.set_cloexec(true).map_err(unusable)?;
    Ok((address, socket.into()))
}

#[cfg(test)]
mod tests;
