//! The control socket and anyone who means it ill, and the commands that use it.

mod commands;
mod served;
mod top;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flowgate::admin::http::MAX_CONNECTIONS;
use flowgate::admin::request::{Request, Response};
use flowgate_tests::e2e::{Balancer, PATIENCE, Peer};
use flowgate_tests::scratch::unused_path;
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
    assert!(
        complaint.contains("refused: you are user 65534; only root may control this"),
        "{complaint}"
    );
    assert!(served.asked.lock().expect("no panic").is_empty());
    served.assert_serves();
}

/// Runs a Flowgate on a machine that has a group `flowgate`, and asks it as a member of that group:
/// for its status, then to stop; and for its status as nobody.
const READERS: &str = r#"
set -e
cp /etc/group "$2/group"; chmod 644 "$2/group"
grep -q ^flowgate: "$2/group" || echo "flowgate:x:47110:" >> "$2/group"
mount --bind "$2/group" /etc/group
gid=$(awk -F: '$1 == "flowgate" { print $3 }' /etc/group)
"$1" run "$2/flowgate.toml" 2>"$2/log" & flowgate=$!
trap 'kill -9 $flowgate' EXIT
tries=0
until "$1" status --socket "$2/run/socket" >/dev/null 2>&1; do
    tries=$((tries + 1)); [ $tries -lt 500 ]; sleep 0.02
done
stat -c %a "$2/run" "$2/run/socket"
reader() { setpriv --reuid 65534 --regid 65534 --groups "$gid" "$@" 2>&1 || echo "failed: $?"; }
reader "$1" ready --socket "$2/run/socket"
reader "$1" stop --socket "$2/run/socket"
gid=65534
reader "$1" ready --socket "$2/run/socket"
"#;

#[test]
fn members_of_the_group_flowgate_read_and_change_nothing() {
    if !geteuid().is_root() {
        return skip_test("only root can have another user ask");
    }
    let directory = unused_path("readers");
    std::fs::create_dir(&directory).expect("a folder");
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).expect("our folder");
    let binary = directory.join("flowgate");
    std::fs::copy(FLOWGATE, &binary).expect("a copy");
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).expect("our file");
    let config = format!(
        "[admin]\nsocket = {:?}\n[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"a\"\n\
         [cluster.a]\nbackends = [\"127.0.0.1:9\"]\n",
        directory.join("run/socket")
    );
    std::fs::write(directory.join("flowgate.toml"), config).expect("a file");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", READERS, "sh"]).args([&binary, &directory]);
    let output = match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => return skip_test(&format!("unshare (Debian: util-linux): {error}")),
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    let _ = std::fs::remove_dir_all(&directory);
    if complaint.contains("unshare failed") || complaint.contains("permission denied") {
        return skip_test(&format!("mounts are not allowed here: {complaint}"));
    }
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..3], ["750", "660", "ready"], "{said}{complaint}");
    assert!(lines[3].contains("may read and not change"), "{said}{complaint}");
    assert_eq!(lines[4], "failed: 1", "{said}{complaint}");
    assert!(lines[5].contains("is of another user's flowgate"), "{said}{complaint}");
}

#[test]
fn an_endless_body_is_cut_short() {
    let served = Served::start();
    let mut stream = served.connect();
    let head = "POST /reload HTTP/1.1\r\nHost: flowgate\r\nConnection: close\r\n";
    let head = format!("{head}Content-Length: 1000000000\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("someone listens");
    let mut written = 0;
    while let Ok(length) = stream.write(&[b' '; 4096]) {
        written += length;
        assert!(written < 100_000_000, "nobody stops us");
    }
    let answer = answer(&mut stream);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(served.asked.lock().expect("no panic").is_empty());
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
    loop {
        let _ = stream.write(b"G");
        match stream.read(&mut answer) {
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => {
                let is_pause =
                    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
                assert!(is_pause, "{error}");
            }
        }
        served.assert_serves();
        assert!(start.elapsed() < PATIENCE, "nobody cuts us off");
    }
}

#[test]
fn idle_connections_push_out_no_request_that_has_begun() {
    let served = Served::start();
    let mut honest = served.connect();
    honest.write_all(b"POST /rel").expect("someone listens");
    // The server has it when one that came later has been answered.
    served.assert_serves();
    let idle: Vec<_> = (0..2 * MAX_CONNECTIONS).map(|_| served.connect()).collect();
    served.assert_serves();
    let rest = b"oad HTTP/1.1\r\nHost: flowgate\r\nConnection: close\r\n\r\n";
    honest.write_all(rest).expect("the connection is there");
    let answer = answer(&mut honest);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(idle);
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
    let mut streams: Vec<_> = (0..CONNECTIONS).map(connect).collect();
    // The first had to go, the last is served.
    assert_eq!(answer(&mut streams[0]), "");
    let last = streams.last_mut().expect("a thousand");
    let question = b"POST /reload HTTP/1.1\r\nHost: flowgate\r\nConnection: close\r\n\r\n";
    last.write_all(question).expect("someone listens");
    assert!(answer(last).starts_with("HTTP/1.1 200"));
    round_trip();
    balancer.assert_lossless(round_trips, round_trips);
    served.assert_serves();
}

#[test]
fn a_thousand_clients_that_ask_at_once_get_an_answer_each() {
    let served = Served::start();
    let ask = || {
        for _ in 0..40 {
            match served.ask(&Request::Reload) {
                Ok(Response::Done { .. }) => {}
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
    let post = |path: &str, body: &str| {
        let head = "HTTP/1.1\r\nHost: flowgate\r\nConnection: close\r\n";
        format!("POST {path} {head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    let deep = "[".repeat(60_000);
    for garbage in [
        b"\0\0\0\0\r\n\r\n".to_vec(),
        b"\xff\xfe\x1b[2J\r\n\r\n".to_vec(),
        b"{\"command\":\"status\"}\n".to_vec(),
        post("/fly%1b[2J", ""),
        post("/stop", "{\"now\":1e999}"),
        post("/stop", "{\"command\":\"reload\",\"later\":\"\\u001b[2J\"}"),
        post("/drain", "null"),
        post("/upgrade", &deep),
    ] {
        let mut stream = served.connect();
        stream.write_all(&garbage).expect("someone listens");
        let answer = answer(&mut stream);
        let shown = String::from_utf8_lossy(&garbage[..garbage.len().min(60)]);
        assert!(answer.starts_with("HTTP/1.1 4"), "{shown:?}: {answer}");
        assert!(!answer.contains('\x1b'), "{shown:?}: {answer}");
    }
    // Anyone who says nothing at all is not answered.
    let mut stream = served.connect();
    stream.shutdown(std::net::Shutdown::Write).expect("a socket");
    assert_eq!(answer(&mut stream), "");
    assert!(served.asked.lock().expect("no panic").is_empty());
    served.assert_serves();
}
