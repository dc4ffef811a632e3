use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::client::{self, ClientError};
use super::super::local::readers;
use super::super::request::{Request, Response};
use super::super::server::MAX_CONNECTIONS;
use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// A directory of its own, deleted when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("flowgate-socket-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Answers everything with the same note.
fn says(note: &'static str) -> Handler {
    Arc::new(move |_| Response::Done { notes: vec![note.to_owned()] })
}

fn ask(path: &Path) -> Result<Response, ClientError> {
    client::request(path, &Request::Reload, PATIENCE)
}

fn note(path: &Path) -> String {
    match ask(path) {
        Ok(Response::Done { mut notes }) => notes.remove(0),
        other => panic!("{other:?}"),
    }
}

/// A handler that says when it is called, and answers when it is told to.
fn gated() -> (Handler, Sender<()>, Receiver<()>) {
    let (go_on, wait) = channel::<()>();
    let (called, is_called) = channel();
    let gate = Mutex::new((wait, called));
    let handler: Handler = Arc::new(move |_| {
        let gate = gate.lock().unwrap();
        gate.1.send(()).unwrap();
        gate.0.recv().unwrap();
        Response::done()
    });
    (handler, go_on, is_called)
}

#[test]
fn the_socket_is_of_its_owner_only_and_goes_when_it_is_dropped() {
    let directory = Directory::new();
    let socket = ControlSocket::start(&directory.socket(), says("here")).unwrap();
    let file = std::fs::symlink_metadata(socket.path()).unwrap();
    assert!(file.file_type().is_socket());
    // Where there is a group that may read, and we may give it the file, its members get this far.
    let readers = readers().filter(|group| file.gid() == group.as_raw());
    let (of_file, of_directory) = if readers.is_some() { (0o660, 0o750) } else { (0o600, 0o700) };
    assert_eq!(file.mode() & 0o7777, of_file);
    assert_eq!(std::fs::metadata(&directory.0).unwrap().mode() & 0o7777, of_directory);
    assert_eq!(note(socket.path()), "here");

    drop(socket);
    assert!(!directory.socket().exists());
    let error = ask(&directory.socket()).unwrap_err();
    assert!(matches!(error, ClientError::NotListening(_)), "{error}");
    assert!(error.to_string().contains("start one with `flowgate run`"), "{error}");
}

#[test]
fn the_socket_of_a_dead_process_is_replaced() {
    let directory = Directory::new();
    std::fs::create_dir(&directory.0).unwrap();
    // A listener leaves its file behind, as a process does that is killed.
    drop(UnixListener::bind(directory.socket()).unwrap());
    let error = ask(&directory.socket()).unwrap_err();
    assert!(matches!(error, ClientError::NotListening(_)), "{error}");
    let socket = ControlSocket::start(&directory.socket(), says("alive")).unwrap();
    assert_eq!(note(socket.path()), "alive");
}

#[test]
fn the_socket_of_a_living_process_is_left_alone() {
    let directory = Directory::new();
    let first = ControlSocket::start(&directory.socket(), says("first")).unwrap();
    let error = ControlSocket::start(&directory.socket(), says("second")).unwrap_err();
    assert!(matches!(error, ControlError::AnotherIsRunning(_)), "{error}");
    assert!(error.to_string().contains("another flowgate is running"), "{error}");
    assert_eq!(note(first.path()), "first");
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = Directory::new();
    std::fs::create_dir(&directory.0).unwrap();
    std::fs::write(directory.socket(), "precious").unwrap();
    let error = ControlSocket::start(&directory.socket(), says("no")).unwrap_err();
    assert!(matches!(error, ControlError::NotASocket(_)), "{error}");
    assert_eq!(std::fs::read_to_string(directory.socket()).unwrap(), "precious");
}

#[test]
fn a_file_that_another_has_put_there_is_not_removed() {
    let directory = Directory::new();
    let first = ControlSocket::start(&directory.socket(), says("first")).unwrap();
    std::fs::remove_file(directory.socket()).unwrap();
    let second = ControlSocket::start(&directory.socket(), says("second")).unwrap();
    drop(first);
    assert_eq!(note(second.path()), "second");
}

#[test]
fn of_many_that_start_at_once_one_gets_the_socket() {
    let directory = Directory::new();
    let path = directory.socket();
    let start = || ControlSocket::start(&path, says("the one")).ok();
    let started = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(started.len(), 1);
    assert_eq!(note(&path), "the one");
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let path = PathBuf::from(format!("/tmp/{}/control.sock", "x".repeat(100)));
    let error = ControlSocket::start(&path, says("no")).unwrap_err().to_string();
    assert!(error.contains("at most 107 bytes"), "{error}");
}

#[test]
fn an_answer_that_is_being_given_is_read_even_when_the_socket_is_dropped() {
    let directory = Directory::new();
    let (handler, go_on, is_called) = gated();
    let socket = ControlSocket::start(&directory.socket(), handler).unwrap();
    let path = directory.socket();
    let client = std::thread::spawn(move || ask(&path));
    is_called.recv().unwrap();
    let dropper = std::thread::spawn(move || drop(socket));
    go_on.send(()).unwrap();
    dropper.join().unwrap();
    assert_eq!(client.join().unwrap().unwrap(), Response::done());
}

#[test]
fn a_handler_that_panics_costs_one_answer() {
    let directory = Directory::new();
    let handler: Handler = Arc::new(|request| match request {
        Request::Stop { .. } => panic!("a bug, on purpose"),
        _ => Response::done(),
    });
    let socket = ControlSocket::start(&directory.socket(), handler).unwrap();
    for _ in 0..MAX_CONNECTIONS + 1 {
        let stop = Request::Stop { now: true };
        match client::request(socket.path(), &stop, PATIENCE).unwrap() {
            Response::Refused { reasons } => assert!(reasons[0].contains("a bug"), "{reasons:?}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(ask(socket.path()).unwrap(), Response::done());
}

#[test]
fn who_answers_something_else_is_no_flowgate() {
    let directory = Directory::new();
    std::fs::create_dir(&directory.0).unwrap();
    let listener = UnixListener::bind(directory.socket()).unwrap();
    let other = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"220 \x1b[2J ready\r\n").unwrap();
        stream
    });
    let error = ask(&directory.socket()).unwrap_err();
    assert!(matches!(error, ClientError::NotAnAnswer(..)), "{error}");
    drop(other.join().unwrap());
}

#[test]
fn a_lock_that_any_reader_could_take_is_not_waited_for() {
    use nix::fcntl::{Flock, FlockArg};
    let directory = Directory::new();
    std::fs::create_dir(&directory.0).unwrap();
    let reader = std::fs::File::open(&directory.0).unwrap();
    let _lock = Flock::lock(reader, FlockArg::LockExclusiveNonblock).unwrap();
    let socket = ControlSocket::start(&directory.socket(), says("here")).unwrap();
    assert_eq!(note(socket.path()), "here");
    let lock = std::fs::metadata(directory.0.join("control.sock.lock")).unwrap();
    assert_eq!(lock.mode() & 0o777, 0o600);
}

#[test]
fn it_is_http_with_json() {
    let directory = Directory::new();
    let socket = ControlSocket::start(&directory.socket(), says("a\nb")).unwrap();
    let exchange = |request: &str| {
        let mut stream = UnixStream::connect(socket.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let head = "HTTP/1.1\r\nHost: flowgate\r\nConnection: close\r\n";
    let done = exchange(&format!("POST /reload {head}Content-Length: 0\r\n\r\n"));
    assert!(done.starts_with("HTTP/1.1 200"), "{done}");
    assert!(done.ends_with("\r\n\r\n{\"result\":\"done\",\"notes\":[\"a\\nb\"]}\n"), "{done}");
    for (request, status) in [
        ("GET /reload", 405),
        ("GET /nothing", 404),
        ("POST /status", 405),
        ("POST /drain", 400),
        ("GET /flows?limit=-1", 400),
        ("GET /flows?clients=10.0.0.0/8", 400),
    ] {
        let answer = exchange(&format!("{request} {head}Content-Length: 0\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
    }
}

#[test]
fn while_it_is_paused_connections_wait_and_accepted_ones_are_answered() {
    let directory = Directory::new();
    let (handler, go_on, is_called) = gated();
    let socket = ControlSocket::start(&directory.socket(), handler).unwrap();
    let client = || {
        let path = directory.socket();
        std::thread::spawn(move || ask(&path))
    };
    let first = client();
    is_called.recv().unwrap();
    socket.pause();
    let second = client();
    go_on.send(()).unwrap();
    assert_eq!(first.join().unwrap().unwrap(), Response::done());
    assert!(is_called.try_recv().is_err(), "it is not accepted");
    socket.resume();
    is_called.recv().unwrap();
    go_on.send(()).unwrap();
    assert_eq!(second.join().unwrap().unwrap(), Response::done());
}
