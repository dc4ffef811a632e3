//! What operators ask of a running process and have it do: another weight, an explanation, figures of how
//! fast backends answer, less to transfer, names to complete.

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use flowgate_tests::e2e::{Peer, eventually, simple_config};
use flowgate_tests::process::{Process, output};
use flowgate_tests::skip::skip_test;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use serde_json::Value;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// Lets so many clients ask, and says how many of them each backend got.
fn shares(address: SocketAddr, backends: [&Peer; 2], clients: u32) -> [u32; 2] {
    let peers: Vec<Peer> = (0..clients).map(|_| Peer::v4()).collect();
    peers.iter().for_each(|client| client.send_to(b"question", address));
    let mut got = [0, 0];
    eventually("all of them are passed on", || {
        for (got, backend) in got.iter_mut().zip(backends) {
            while backend.receive_soon().is_some() {
                *got += 1;
            }
        }
        (got[0] + got[1] == clients).then_some(got)
    })
}

fn weights(flowgate: &Process) -> Vec<(u64, Option<u64>)> {
    let status = flowgate.ask_json(&["status"]);
    let backends = status["clusters"][0]["backends"].as_array().expect("backends");
    let of = |b: &Value| (b["weight"].as_u64().expect("a weight"), b["configured_weight"].as_u64());
    backends.iter().map(of).collect()
}

#[test]
fn a_weight_holds_over_an_upgrade_until_the_next_reload_however_is_balanced() {
    for balance in ["rendezvous", "maglev", "round-robin", "random", "least-flows", "power-of-two"]
    {
        let (one, two) = (Peer::v4(), Peer::v4());
        let more = format!("balance = \"{balance}\"\naffinity = \"source-ip-port\"");
        let config = simple_config("127.0.0.1:0", &[&one, &two], &more);
        let mut flowgate = Process::run(FLOWGATE, &config);
        let address = flowgate.address();
        let name = format!("test/{}", two.address());
        let none = flowgate.ask(&["backend", &name, "weight", "0"]);
        let said = String::from_utf8_lossy(&none.stdout).into_owned();
        assert!(said.contains("has weight 0 until the next reload"), "{balance}: {said}");
        assert_eq!(weights(&flowgate), [(1, None), (0, Some(1))], "{balance}");
        assert_eq!(shares(address, [&one, &two], 20), [20, 0], "{balance}");
        if balance == "rendezvous" {
            let shown = flowgate.ask(&["status"]);
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            assert!(shown.contains("0 (configured: 1)"), "{shown}");
            flowgate.upgrade(&[]);
            assert_eq!(weights(&flowgate), [(1, None), (0, Some(1))], "it is handed over");
            assert_eq!(shares(address, [&one, &two], 20), [20, 0], "as before the upgrade");
        }
        assert!(flowgate.ask(&["backend", &name, "weight", "7"]).status.success());
        let [first, second] = shares(address, [&one, &two], 40);
        assert!(second > 0, "{balance}: {first} and {second}");
        flowgate.reload(&config);
        assert_eq!(weights(&flowgate), [(1, None), (1, None)], "{balance}");
    }
}

#[test]
fn weights_are_for_backends_that_there_are() {
    let backend = Peer::v4();
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], ""));
    flowgate.address();
    let refused = flowgate.ask(&["backend", "test/10.9.9.9:1", "weight", "2"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has no backend"), "{refused:?}");
    let wrong = flowgate.ask(&["backend", "test/10.9.9.9:1", "weight", "much"]);
    assert_eq!(wrong.status.code(), Some(2));
    let none = flowgate.ask(&["backend", &format!("test/{}", backend.address()), "weight", "0"]);
    let notes = String::from_utf8_lossy(&none.stdout).into_owned();
    assert!(notes.contains("no backend of \"test\" takes new flows now"), "{notes}");
}

#[test]
fn explain_live_knows_what_stands_and_what_a_client_has() {
    let (one, two) = (Peer::v4(), Peer::v4());
    let more = "affinity = \"source-ip-port\"\n[cluster.test.limits]\nflows_per_source = 1";
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&one, &two], more));
    let address = flowgate.address();
    let explain = |client: SocketAddr| {
        let all = flowgate.ask_json(&["explain", "--live", &client.to_string()]);
        let listener = &all["listeners"][0];
        assert_eq!(listener["address"], address.to_string(), "{all}");
        let because: Vec<_> = listener["because"].as_array().expect("lines").clone();
        let lines = because.iter().map(|line| line.as_str().expect("a line").to_owned());
        (listener["backend"].clone(), lines.collect::<Vec<_>>().join("\n"))
    };
    let client = Peer::v4();
    let (backend, _) = explain(client.address());
    let (meant, other) =
        if backend == one.address().to_string() { (&one, &two) } else { (&two, &one) };
    let drain = ["drain", &format!("test/{}", meant.address())];
    assert!(flowgate.ask(&drain).status.success());
    let (backend, because) = explain(client.address());
    assert_eq!(backend, other.address().to_string(), "{because}");
    let left_out = format!("not {}: it is draining", meant.address());
    assert!(because.contains(&left_out), "{because}");
    client.send_to(b"question", address);
    assert_eq!(other.answer(b"answer").bytes, b"question");
    assert_eq!(client.receive().bytes, b"answer");
    assert!(flowgate.ask(&["undrain", drain[1]]).status.success());
    let (backend, because) = explain(client.address());
    assert_eq!(backend, other.address().to_string(), "it goes on where it is: {because}");
    assert!(because.contains("it has a flow"), "{because}");
    let (_, because) = explain("127.0.0.1:9".parse().expect("an address"));
    assert!(because.contains("flows_per_source: 1 of 1"), "{because}");
    let wrong = output(FLOWGATE, &["explain", "--live", "some.toml", "127.0.0.1:9"]);
    assert_eq!(wrong.status.code(), Some(2), "the configuration is the running one's");
}

/// What is answered to a request on the control socket: its head, and the rest.
fn get(flowgate: &Process, path: &str, more: &str) -> (String, Vec<u8>) {
    let mut stream = UnixStream::connect(flowgate.control_socket()).expect("someone listens");
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: flowgate\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).expect("room");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8(answer[..end].to_vec()).expect("text");
    (head.to_ascii_lowercase(), answer[end..].to_vec())
}

#[test]
fn first_answers_are_counted_by_how_long_they_took_and_handed_over() {
    let backend = Peer::v4();
    let config = simple_config("127.0.0.1:0", &[&backend], "");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();
    let exchange = || {
        let client = Peer::v4();
        for _ in 0..2 {
            client.send_to(b"question", address);
            backend.answer(b"answer");
            assert_eq!(client.receive().bytes, b"answer");
        }
    };
    let series = |flowgate: &Process| {
        let (_, text) = get(flowgate, "/metrics", "");
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains("# TYPE flowgate_first_answer_seconds histogram\n"), "{text}");
        let labels = format!("cluster=\"test\",backend=\"{}\"", backend.address());
        let value = |suffix: &str, le: &str| {
            let start = format!("flowgate_first_answer_seconds_{suffix}{{{labels}{le}}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            line.unwrap_or_else(|| panic!("no {start} in {text}")).parse::<f64>().expect("a number")
        };
        let within = |le: &str| value("bucket", &format!(",le=\"{le}\""));
        assert!(within("0.0005") <= within("0.25") && within("5.0") <= within("+Inf"));
        assert_eq!(within("+Inf"), value("count", ""));
        assert!(value("sum", "") > 0.0 || value("count", "") == 0.0);
        value("count", "")
    };
    assert_eq!(series(&flowgate), 0.0);
    (0..3).for_each(|_| exchange());
    // A report is as good as a new one for a moment.
    let are_counted = |flowgate: &Process, flows: f64| {
        eventually("each flow is counted once", || (series(flowgate) == flows).then_some(()))
    };
    are_counted(&flowgate, 3.0);
    let status = flowgate.ask_json(&["status"]);
    assert_eq!(status["clusters"][0]["backends"][0]["first_answers"]["count"], 3, "{status}");
    flowgate.upgrade(&[]);
    exchange();
    are_counted(&flowgate, 4.0);
}

/// Has gzip unpack bytes; `None` where there is no gzip.
fn unpacked(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut gzip = Command::new("gzip");
    let mut child = gzip.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    let mut stdin = child.stdin.take()?;
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().ok()?;
    writer.join().expect("no panic").expect("a pipe");
    assert!(output.status.success());
    Some(output.stdout)
}

#[test]
fn who_understands_gzip_gets_less_to_transfer() {
    let backend = Peer::v4();
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], ""));
    flowgate.address();
    for path in ["/", "/metrics", "/status"] {
        let (head, plain) = get(&flowgate, path, "");
        assert!(!head.contains("content-encoding"), "{head}");
        let (head, packed) = get(&flowgate, path, "Accept-Encoding: br, gzip;q=0.8\r\n");
        assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
        assert!(head.contains("vary: ") && head.contains("accept-encoding"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", packed.len())), "{head}");
        assert!(packed.len() * 2 < plain.len(), "{path}: {} of {}", packed.len(), plain.len());
        let Some(text) = unpacked(&packed) else { return skip_test("there is no gzip") };
        // Figures change, and the page has a number that nobody can guess.
        assert_eq!(text[..20], plain[..20], "{path}");
    }
    let (head, _) = get(&flowgate, "/live", "Accept-Encoding: gzip\r\n");
    assert!(!head.contains("content-encoding"), "it is short: {head}");
}

#[test]
fn bash_completes_the_names_of_backends() {
    let (one, two) = (Peer::v4(), Peer::v4());
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&one, &two], ""));
    flowgate.address();
    let listed = flowgate.ask(&["__backends"]);
    let names = [&one, &two].map(|peer| format!("test/{}", peer.address()));
    assert_eq!(String::from_utf8_lossy(&listed.stdout), format!("{}\n{}\n", names[0], names[1]));
    let socket = flowgate.control_socket().to_owned();
    let completed = |command: &str, start: &str| {
        // Bash takes the colon for the end of a word.
        let script = format!(
            "source <('{FLOWGATE}' completions bash)\n\
             COMP_LINE='flowgate {command} {start}:' COMP_POINT=${{#COMP_LINE}}\n\
             COMP_WORDS=('{FLOWGATE}' {command} '{start}' :) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             _flowgate_backends flowgate : '{start}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
        );
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).env("FLOWGATE_SOCKET", &socket);
        let output = bash.output().ok()?;
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{script}");
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let ports = [&one, &two].map(|peer| peer.address().port());
    let expected = format!("{}\n{}\n", ports[0], ports[1]);
    for (command, start) in [
        ("drain", "test/127.0.0.1"),
        ("trace --drops --backend", "test/127.0.0.1"),
        ("flows --backend", "127.0.0.1"),
    ] {
        let Some(completed) = completed(command, start) else {
            return skip_test("there is no bash");
        };
        assert_eq!(completed, expected, "{command}");
    }
}

#[test]
fn top_ends_with_its_terminal() {
    let backend = Peer::v4();
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], ""));
    flowgate.address();
    let size = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).expect("a terminal");
    // Nobody but the test has it, who need not wait.
    for flag in [FcntlArg::F_SETFL(OFlag::O_NONBLOCK), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)] {
        fcntl(&terminal.master, flag).expect("it is set");
    }
    let slave = || Stdio::from(terminal.slave.try_clone().expect("a descriptor"));
    // In a session of its own, whose terminal it is.
    let mut top = Command::new("setsid");
    top.args(["--ctty", "--wait", FLOWGATE, "top", "--socket", &flowgate.control_socket()]);
    top.stdin(slave()).stdout(slave()).stderr(slave());
    let Ok(mut top) = top.spawn() else { return skip_test("there is no setsid") };
    let mut screen = File::from(terminal.master);
    let (mut shown, mut piece) = (String::new(), [0; 4_096]);
    eventually("it is drawn", || {
        let len = screen.read(&mut piece).unwrap_or(0);
        shown.push_str(&String::from_utf8_lossy(&piece[..len]));
        shown.contains("127.0.0.1").then_some(())
    });
    drop((screen, terminal.slave));
    eventually("it has ended", || top.try_wait().expect("its state"));
}
