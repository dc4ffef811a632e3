//! The control socket and whoever means it ill, and the commands that use it (SCENARIOS.md,
//! row 41).

mod commands;
mod served;
mod top;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flowgate::admin::request::{Request, Response};
use flowgate::admin::socket::{self, LONGEST_REQUEST, MOST_SERVED};
use flowgate_tests::e2e::{Balancer, PATIENCE, Peer, eventually};
use flowgate_tests::skip::skip_test;
use nix::unistd::geteuid;

use served::Served;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// What comes until the end of the stream.
fn answer(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // What was not read makes of the end of the stream a reset one.
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8(answer).expect("UTF-8"),
    }
}

#[test]
fn another_user_is_refused_by_the_mode_and_by_his_credentials() {
    const NOBODY: &str = "65534";
    if !geteuid().is_root() {
        return skip_test("only root can be another user");
    }
    let served = Served::start();
    // Where another user can reach it.
    let binary = served.directory.join("flowgate");
    std::fs::copy(FLOWGATE, &binary).expect("a copy");
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("our file");
    };
    allow(&binary, 0o755);
    allow(&served.directory, 0o755);
    let as_nobody = || {
        let binary = binary.to_str().expect("a plain path");
        let user = ["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"];
        let mut command = Command::new("setpriv");
        command.args(user).args([binary, "status", "--socket", served.path()]);
        command.stdin(Stdio::null()).output()
    };
    let output = match as_nobody() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return skip_test("setpriv (Debian: util-linux) is not installed");
        }
        output => output.expect("a child process"),
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("is of another user's flowgate"), "{complaint}");

    allow(served.socket.path(), 0o666);
    let output = as_nobody().expect("a child process");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("refused: you are user 65534; only root may"), "{complaint}");
    assert!(served.asked.lock().expect("no panic").is_empty());
    served.assert_serves();
}

#[test]
fn an_endless_line_is_cut_short() {
    let served = Served::start();
    let mut stream = served.connect();
    let mut written = 0;
    let error = loop {
        match stream.write(&[b'x'; 4096]) {
            Ok(length) => written += length,
            Err(error) => break error,
        }
        assert!(written < 100 * LONGEST_REQUEST, "nobody stops us");
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    let answer = answer(&mut stream);
    assert!(answer.contains("longer than 65536 bytes"), "{answer}");
    served.assert_serves();
}

#[test]
fn a_slow_writer_is_cut_off_and_keeps_nobody_waiting() {
    let served = Served::start();
    let start = Instant::now();
    let mut stream = served.connect();
    // Reading in vain is also the pause between two bytes.
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket");
    let mut answer = [0; 200];
    let answer = loop {
        let _ = stream.write(b" ");
        match stream.read(&mut answer) {
            Ok(length) => break String::from_utf8_lossy(&answer[..length]),
            Err(error) => {
                let is_pause =
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
                assert!(is_pause, "{error}");
            }
        }
        served.assert_serves();
        assert!(start.elapsed() < PATIENCE, "nobody cuts us off");
    };
    assert!(answer.contains("took longer than 5 s"), "{answer}");
    assert!(start.elapsed() >= socket::PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn slow_readers_hold_their_places_for_a_while_and_no_longer() {
    let served = Served::start();
    let slow: Vec<_> = (0..MOST_SERVED)
        .map(|_| {
            let mut stream = served.connect();
            let question = b"{\"command\":\"flows\",\"filter\":{\"limit\":20000}}\n";
            stream.write_all(question).expect("somebody listens");
            stream
        })
        .collect();
    match served.ask(&Request::Reload) {
        Ok(Response::Refused { reasons }) => assert!(reasons[0].starts_with("busy"), "{reasons:?}"),
        other => panic!("{other:?}"),
    }
    let is_served = || served.ask(&Request::Reload).is_ok_and(|answer| answer == Response::done());
    eventually("the slow ones lose their places", || is_served().then_some(()));
    drop(slow);
}

#[test]
fn of_a_thousand_connections_some_are_served_and_the_data_path_notices_none() {
    const CONNECTIONS: usize = 1_000;
    flowgate::sys::process::raise_descriptor_limit().expect("a limit");
    let (client, backend) = (Peer::v4(), Peer::v4());
    let balancer = Balancer::between("127.0.0.1:0", &[&backend], "");
    let mut round_trips = 0;
    let mut round_trip = || {
        client.send_to(b"question", balancer.address());
        let question = backend.receive();
        backend.send_to(b"answer", question.from);
        assert_eq!(client.receive().bytes, b"answer");
        round_trips += 1;
    };
    let served = Served::start();
    let connect = |_| {
        round_trip();
        served.connect()
    };
    let streams: Vec<_> = (0..CONNECTIONS).map(connect).collect();
    let answers: Vec<_> = streams.into_iter().map(|mut stream| answer(&mut stream)).collect();
    round_trip();
    balancer.assert_lossless(round_trips, round_trips);

    let count = |text| answers.iter().filter(|answer| answer.contains(text)).count();
    let (busy, late) = (count("busy"), count("took longer"));
    assert_eq!(busy + late, CONNECTIONS, "{answers:?}");
    // Only more, if it took so long that the first had to go before the last came.
    assert!(late >= MOST_SERVED, "{late}");
    served.assert_serves();
}

#[test]
fn a_thousand_clients_that_ask_at_once_get_an_answer_each() {
    let served = Served::start();
    let ask = || {
        for _ in 0..40 {
            match served.ask(&Request::Reload) {
                Ok(Response::Done { .. }) => {}
                Ok(Response::Refused { reasons }) if reasons[0].starts_with("busy") => {}
                other => panic!("{other:?}"),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..25 {
            scope.spawn(ask);
        }
    });
    served.assert_serves();
}

#[test]
fn garbage_is_refused_and_harms_nobody() {
    let served = Served::start();
    let deep = "[".repeat(60_000) + "\n";
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\0\0\0\0\n",
        b"\xff\xfe\x1b[2J\n",
        b"{\"command\":\"fly\\u001b[2J\"}\n",
        b"{\"command\":\"stop\",\"now\":1e999}\n",
        b"{\"command\":\"flows\",\"filter\":{\"limit\":-1}}\n",
        b"{\"command\":\"status\"} {\"command\":\"stop\"}\n",
        b"null\n",
        deep.as_bytes(),
    ] {
        let mut stream = served.connect();
        stream.write_all(garbage).expect("somebody listens");
        let answer = answer(&mut stream);
        let shown = String::from_utf8_lossy(garbage);
        assert!(answer.contains("not a request"), "{shown:?}: {answer}");
        assert!(!answer.contains('\x1b'), "{shown:?}: {answer}");
        assert_eq!(answer.matches('\n').count(), 1, "{shown:?}: {answer}");
    }
    // Whoever says nothing at all is not answered.
    for silence in [&b""[..], b"\n"] {
        let mut stream = served.connect();
        stream.write_all(silence).expect("somebody listens");
        stream.shutdown(std::net::Shutdown::Write).expect("a socket");
        assert_eq!(answer(&mut stream), "");
    }
    assert!(served.asked.lock().expect("no panic").is_empty());
    served.assert_serves();
}
