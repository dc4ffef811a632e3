//! A service manager that keeps descriptors for the services that it starts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use flowgate::handover::channel::Channel;
use flowgate::sys::scm;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::e2e::PATIENCE;
use crate::scratch::unused_path;

/// A service manager, and what it keeps.
pub struct ServiceManager {
    activator: String,
    place: PathBuf,
    notifications: UnixDatagram,
    kept: Vec<(String, OwnedFd)>,
    room: usize,
}

/// A process of a service, killed when dropped.
pub struct Service {
    child: Child,
}

impl ServiceManager {
    /// One that keeps this many descriptors, and starts programs by `activator`.
    ///
    /// # Panics
    ///
    /// When it has no place for its socket.
    pub fn new(activator: &str, room: usize) -> Self {
        let place = unused_path("manager");
        let notifications = UnixDatagram::bind(&place).expect("a socket");
        notifications.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { activator: activator.to_owned(), place, notifications, kept: Vec::new(), room }
    }

    /// How many descriptors it keeps under a name.
    pub fn keeps(&self, name: &str) -> usize {
        self.kept.iter().filter(|(kept, _)| kept == name).count()
    }

    /// Starts a program with all that is kept for it.
    ///
    /// # Panics
    ///
    /// When it does not start.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Service {
        let (ours, theirs) = Channel::pair().expect("a channel");
        let names: Vec<_> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
        let child = Command::new(&self.activator)
            .arg(self.kept.len().to_string())
            .arg(program)
            .args(arguments)
            .env("LISTEN_FDNAMES", names.join(":"))
            .env("NOTIFY_SOCKET", &self.place)
            .env("FDSTORE", self.room.to_string())
            .stdin(Stdio::from(theirs.into_descriptor()))
            .spawn()
            .expect("a child process");
        let ours = ours.into_descriptor();
        let all: Vec<_> = self.kept.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        for some in all.chunks(scm::MAX_FDS) {
            scm::send(ours.as_fd(), b"descriptors", some).expect("it listens");
        }
        Service { child }
    }

    /// Takes in what is said until a message has this line.
    ///
    /// # Panics
    ///
    /// When none has for a long time.
    #[track_caller]
    pub fn hear_until(&mut self, line: &str) {
        loop {
            let mut message = [0; 4096];
            let heard = scm::receive(self.notifications.as_fd(), &mut message);
            let (length, descriptors) = match heard {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                heard => heard.unwrap_or_else(|error| panic!("no {line:?}: {error}")),
            };
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            let value = |key: &str| {
                let values = message.lines().filter_map(|line| line.split_once('='));
                values.filter(|(found, _)| *found == key).map(|(_, value)| value.to_owned()).next()
            };
            let name = value("FDNAME").unwrap_or_default();
            if value("FDSTORE").is_some() {
                assert_eq!(value("FDPOLL").as_deref(), Some("0"), "{message}");
                self.kept.extend(descriptors.into_iter().map(|fd| (name.clone(), fd)));
                assert!(self.kept.len() <= self.room, "there is no room for more");
            } else if value("FDSTOREREMOVE").is_some() {
                self.kept.retain(|(kept, _)| *kept != name);
            }
            if message.lines().any(|found| found == line) {
                return;
            }
        }
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.place);
    }
}

impl Service {
    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// When it is not its child.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("a child")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
