//! `flowgate trace`: what is decided on datagrams, told while it happens.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use flowgate::observe::event::TraceEvent;
use flowgate_tests::e2e::{PATIENCE, Peer, eventually, simple_config};
use flowgate_tests::process::Process;
use flowgate_tests::scratch::unused_path;
use flowgate_tests::skip::skip_test;
use nix::sys::signal::Signal;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// A running `flowgate trace` that has begun.
struct Trace {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Trace {
    fn begin(flowgate: &Process, arguments: &[&str]) -> Self {
        let mut command = Command::new(FLOWGATE);
        command.arg("trace").args(arguments).args(["--socket", &flowgate.control_socket()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a child process");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("a pipe");
        assert!(line.starts_with("tracing"), "{line}");
        Self { child, stdout, stderr }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a pipe");
        line.trim_end().to_owned()
    }

    /// Its exit code, what else it printed, and what it said in the end.
    fn end(&mut self) -> (Option<i32>, String, String) {
        let (mut rest, mut last) = (String::new(), String::new());
        self.stdout.read_to_string(&mut rest).expect("a pipe");
        self.stderr.read_to_string(&mut last).expect("a pipe");
        (self.child.wait().expect("a child").code(), rest, last)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_flow_is_told_in_plain_words_and_other_clients_are_not() {
    let (client, other, backend) = (Peer::bind("127.0.0.9:0"), Peer::v4(), Peer::v4());
    let config = simple_config("127.0.0.1:0", &[&backend], "responses = 1");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();
    let mut trace = Trace::begin(&flowgate, &["--client", "127.0.0.9"]);
    other.send_to(b"nobody looks", address);
    backend.answer(b"at this");
    client.send_to(b"question", address);
    backend.answer(b"answer");
    assert_eq!(client.receive().bytes, b"answer");
    let (opened, answered) = (trace.line(), trace.line());
    let (from, to) = (client.address(), backend.address());
    assert!(opened.contains(&format!("{from} -> 127.0.0.1:0  1 x 8 B  new flow ")), "{opened}");
    assert!(opened.ends_with(&format!(" -> {to} (rendezvous)")), "{opened}");
    assert!(answered.contains(&format!("{from} <- 127.0.0.1:0  1 x 6 B  answer after ")));
    assert!(answered.ends_with(" complete"), "{answered}");
    flowgate.signal(Signal::SIGINT);
    let (code, rest, last) = trace.end();
    assert_eq!((code, &*rest), (Some(0), ""));
    assert!(last.contains("flowgate stops"), "{last}");
}

#[test]
fn it_ends_when_its_time_is_over_and_its_lines_are_json() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let limits = "[cluster.test.limits]\nflows_per_source = 1";
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], limits));
    let address = flowgate.address();
    let mut trace = Trace::begin(&flowgate, &["--json", "--drops", "--for", "5s"]);
    client.send_to(b"first", address);
    backend.answer(b"welcome");
    Peer::v4().send_to(b"one too many", address);
    let event: TraceEvent = serde_json::from_str(&trace.line()).expect("an event");
    assert!(event.is_drop() && event.words() == "dropped: source_flows (limit 1)", "{event}");
    let (code, rest, _) = trace.end();
    assert_eq!((code, &*rest), (Some(0), "{\"end\":\"its time is over\"}\n"));
}

#[test]
fn what_cannot_be_traced_is_refused_with_the_reason() {
    let backend = Peer::v4();
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], ""));
    flowgate.address();
    for (arguments, complaint) in [
        (["trace", "--backend", "10.9.9.9:1"], format!("there are test/{}", backend.address())),
        (["trace", "--backend", "nowhere/10.9.9.9:1"], "there is no backend".to_owned()),
    ] {
        let output = flowgate.ask(&arguments);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaints}");
        assert!(complaints.contains(&complaint), "{complaints}");
    }
    let backend = format!("test/{}", backend.address());
    let traces: Vec<_> =
        (0..4).map(|_| Trace::begin(&flowgate, &["--backend", &backend])).collect();
    let output = flowgate.ask(&["trace"]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(complaints.contains("there are 4 traces and recordings already"), "{complaints}");
    drop(traces);
    eventually("there is room for another", || {
        flowgate.ask(&["trace", "--for", "1ms"]).status.success().then_some(())
    });
}

/// Asks for a trace with payload, and reads only the head of the answer.
fn lazy_reader(flowgate: &Process) -> BufReader<UnixStream> {
    let mut stream = UnixStream::connect(flowgate.control_socket()).expect("someone listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.write_all(b"GET /trace?payload=true HTTP/1.1\r\nHost: flowgate\r\n\r\n").expect("room");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert!(reader.read_line(&mut line).expect("a head") > 0);
        assert!(!line.starts_with("HTTP/1.1 4"), "{line}");
    }
    reader
}

#[test]
fn who_does_not_read_holds_up_nobody_and_is_told_what_was_left_out() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], ""));
    let address = flowgate.address();
    let mut reader = lazy_reader(&flowgate);
    let question = vec![7; 60_000];
    for number in 0..400_u32 {
        client.send_to(&question, address);
        assert_eq!(backend.answer(&number.to_be_bytes()).bytes.len(), question.len());
        assert_eq!(client.receive().bytes, number.to_be_bytes(), "nothing is held up");
    }
    let mut line = String::new();
    while !line.contains("left_out") {
        line.clear();
        assert!(reader.read_line(&mut line).expect("it goes on") > 0, "it ends");
        if line.len() < 1_000 {
            // Small ones come when there is room again.
            client.send_to(b"more", address);
        }
    }
    drop(reader);
    client.send_to(b"on", address);
    assert!(eventually("it goes on", || {
        let bytes = backend.receive().bytes;
        (bytes == b"on").then_some(true)
    }));
}

#[test]
fn a_capture_opens_in_wireshark_with_comments() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let config = simple_config("127.0.0.1:0", &[&backend], "responses = 1");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();
    let path = unused_path("trace.pcapng");
    let file = path.to_str().expect("a plain path");
    let mut trace = Trace::begin(&flowgate, &["--pcap", file]);
    client.send_to(b"question", address);
    let upstream = backend.answer(b"answer").from;
    assert_eq!(client.receive().bytes, b"answer");
    trace.line();
    assert!(trace.line().ends_with("complete"));
    let fields = ["udp.srcport", "udp.dstport", "udp.length", "frame.comment"];
    let mut tshark = Command::new("tshark");
    tshark.args(["-r", file, "-d", "udp.port==0,data", "-T", "fields"]);
    tshark.args(fields.iter().flat_map(|field| ["-e", field]));
    let output = tshark.output();
    let _ = std::fs::remove_file(&path);
    let Ok(output) = output else {
        return skip_test("tshark (Debian: tshark) is not installed");
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    let packets: Vec<Vec<&str>> = printed.lines().map(|line| line.split('\t').collect()).collect();
    let ports: Vec<(&str, &str)> = packets.iter().map(|packet| (packet[0], packet[1])).collect();
    let [client, called, upstream, backend] =
        [client.address(), address, upstream, backend.address()].map(|a| a.port().to_string());
    let expected: [(&str, &str); 4] =
        [(&client, &called), (&upstream, &backend), (&backend, &upstream), (&called, &client)];
    assert_eq!(ports, expected, "{printed}");
    assert!(packets[0][3].contains("new flow") && packets[3][3].contains("complete"), "{printed}");
    assert_eq!((packets[0][2], packets[3][2]), ("16", "14"), "{printed}");
}
