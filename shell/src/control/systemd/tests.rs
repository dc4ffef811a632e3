use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::*;

/// Long enough for a machine that is busy.
const LONG: Duration = Duration::from_secs(30);

/// A service manager: a socket that messages come to.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(name: &str) -> Self {
        let file = format!("flowgate-notify-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(file);
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self { socket, path }
    }

    fn notifier(&self) -> Notifier {
        Notifier::to(self.path.as_os_str(), Some(Duration::from_secs(10))).unwrap()
    }

    #[track_caller]
    fn hears(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("a message");
        String::from_utf8(message[..length].to_vec()).unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[test]
fn each_state_is_one_message() {
    let manager = Manager::new("states");
    let notifier = manager.notifier();
    notifier.ready();
    assert_eq!(manager.hears(), "READY=1\n");
    notifier.alive();
    assert_eq!(manager.hears(), "WATCHDOG=1\n");
    notifier.stopping(Duration::from_secs(30));
    assert_eq!(manager.hears(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\n");
    notifier.reloading();
    let reloading = manager.hears();
    let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").map(str::trim_end);
    assert!(micros.is_some_and(|micros| micros.parse::<u64>().is_ok()), "{reloading}");
}

#[test]
fn a_status_stays_on_its_line() {
    let manager = Manager::new("status");
    manager.notifier().status("2 listeners\nREADY=1\u{1b}[2J");
    assert_eq!(manager.hears(), "STATUS=2 listeners\\nREADY=1\\u{1b}[2J\n");
}

#[test]
fn the_watchdog_hears_of_us_twice_in_its_time() {
    let manager = Manager::new("watchdog");
    assert_eq!(manager.notifier().watchdog_interval(), Some(Duration::from_secs(5)));
    let without = Notifier::to(manager.path.as_os_str(), None).unwrap();
    assert_eq!(without.watchdog_interval(), None);
}

#[test]
fn a_name_may_be_in_the_abstract_namespace() {
    let name = format!("flowgate-notify-{}", std::process::id());
    let address = UnixAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    let notifier = Notifier::to(OsStr::new(&format!("@{name}")), None).unwrap();
    notifier.ready();
    let mut message = [0; 64];
    assert_eq!(socket.recv(&mut message).unwrap(), "READY=1\n".len());
}

#[test]
fn a_service_manager_that_comes_back_hears_of_us_again() {
    let manager = Manager::new("back");
    let notifier = manager.notifier();
    drop(manager);
    notifier.alive();
    assert!(notifier.has_failed.load(Ordering::Relaxed));
    let manager = Manager::new("back");
    notifier.alive();
    assert_eq!(manager.hears(), "WATCHDOG=1\n");
}

#[test]
fn a_service_manager_that_reads_nothing_holds_nobody_up_for_long() {
    let manager = Manager::new("full");
    let notifier = manager.notifier();
    // Fills the socket: anyone who sends more waits for room until its patience is over.
    notifier
        .way
        .as_ref()
        .unwrap()
        .socket
        .set_write_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    while !notifier.has_failed.load(Ordering::Relaxed) {
        notifier.alive();
    }
    assert_eq!(manager.hears(), "WATCHDOG=1\n");
}

#[test]
fn nobody_is_told_where_nobody_wants_to_know() {
    let notifier = Notifier::default();
    notifier.ready();
    notifier.stopping(Duration::MAX);
    assert_eq!(notifier.watchdog_interval(), None);
    assert!(!notifier.has_failed.load(Ordering::Relaxed));
}

#[test]
fn a_udp_socket_is_taken_over_without_blocking_anybody() {
    for any in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(given) = UdpSocket::bind(any) else { continue };
        let address = given.local_addr().unwrap();
        fcntl(&given, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let (bound, socket) = listener_socket(given.into()).unwrap();
        assert_eq!(bound, address);
        let flags = fcntl(socket.as_fd(), FcntlArg::F_GETFD).unwrap();
        assert_eq!(FdFlag::from_bits_truncate(flags), FdFlag::FD_CLOEXEC);
        let error = UdpSocket::from(socket).recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn whatever_is_no_listener_is_refused_by_what_it_is() {
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    connected.connect(connected.local_addr().unwrap()).unwrap();
    let unbound = Socket::new(socket2::Domain::IPV4, Type::DGRAM, None).unwrap();
    let cases: [(OwnedFd, &str); 6] = [
        (TcpListener::bind("127.0.0.1:0").unwrap().into(), "is a TCP socket on 127.0.0.1:"),
        (UnixDatagram::unbound().unwrap().into(), "is a socket without an IP address"),
        (UnixStream::pair().unwrap().0.into(), "is a socket without an IP address"),
        (std::fs::File::open("/dev/null").unwrap().into(), "is not a usable socket ("),
        (connected.into(), "is a UDP socket that is connected to 127.0.0.1:"),
        (unbound.into(), "is a UDP socket that is not bound"),
    ];
    for (descriptor, expected) in cases {
        let number = descriptor.as_raw_fd();
        let error = listener_socket(descriptor).expect_err(expected).to_string();
        assert!(error.starts_with(&format!("descriptor {number}, ")), "{error}");
        assert!(error.contains(expected) && error.contains("ListenDatagram="), "{error}");
    }
}

/// What a service manager gives a process that it starts: the whole process shares it, so that this
/// runs in a child.
#[test]
fn in_a_child() {
    if std::env::var_os("FLOWGATE_TEST_CHILD").is_none() {
        return;
    }
    let notifier = Notifier::from_environment();
    let first = inherited();
    let second = inherited();
    let addresses = |inherited: Result<Inherited, InheritError>| match inherited {
        Ok(all) => format!("{:?}", all.listeners.iter().map(|s| s.0).collect::<Vec<_>>()),
        Err(error) => error.to_string(),
    };
    let (first, second) = (addresses(first), addresses(second));
    notifier.status(&format!("{:?} {first} {second}", notifier.watchdog_interval()));
}

/// Runs [`in_a_child`] with a UDP socket as descriptor 3 and returns the status that it tells, and
/// the socket's address.
fn child(name: &str, announcement: &str) -> (String, SocketAddr) {
    let manager = Manager::new(name);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let script = format!("exec 3<&0 </dev/null; {announcement} exec \"$@\"");
    let test = std::env::current_exe().unwrap();
    let status = Command::new("sh")
        .args([
            "-c",
            &script,
            "sh",
            test.to_str().unwrap(),
            "--exact",
            "control::systemd::tests::in_a_child",
        ])
        .env("FLOWGATE_TEST_CHILD", "yes")
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "3000000")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    (manager.hears(), address)
}

#[test]
fn what_the_environment_announces_is_taken_over_once() {
    let (status, address) = child("taken", "LISTEN_PID=$$ LISTEN_FDS=1");
    assert_eq!(status, format!("STATUS=Some(1.5s) [{address}] []\n"));
}

#[test]
fn what_is_announced_to_another_process_is_left_alone() {
    let (status, _) = child("other", "LISTEN_PID=1 LISTEN_FDS=1");
    assert_eq!(status, "STATUS=Some(1.5s) [] []\n");
}

#[test]
fn an_announcement_without_sense_is_an_error() {
    for (name, announcement) in [
        ("word", "LISTEN_PID=$$ LISTEN_FDS=two"),
        ("closed", "LISTEN_PID=$$ LISTEN_FDS=4000000000"),
    ] {
        let (status, _) = child(name, announcement);
        assert!(status.contains("cannot take over the sockets that LISTEN_FDS"), "{status}");
    }
}
