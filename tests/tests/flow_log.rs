//! The log of flows, as `flowgate run` writes it.

use std::path::{Path, PathBuf};

use flowgate_tests::e2e::{Peer, eventually, own_address};
use flowgate_tests::process::Process;
use flowgate_tests::scratch::unused_path;
use nix::sys::signal::Signal;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// The lines of a log, once there are this many.
#[track_caller]
fn lines(path: &Path, count: usize) -> Vec<serde_json::Value> {
    eventually("the flows are written down", || {
        let text = std::fs::read_to_string(path).ok()?;
        let lines: Vec<_> = text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        (lines.len() == count).then_some(lines)
    })
}

#[test]
fn each_flow_is_a_line_also_after_a_reload_and_a_rotation() {
    let backend = Peer::v4();
    let path = unused_path("flows.json");
    let moved = PathBuf::from(format!("{}.1", path.display()));
    let config = |name: &str, flows: &str| {
        format!(
            "[log]\nflows = {flows:?}\n[[listener]]\nname = {name:?}\n\
             address = \"127.0.0.1:0\"\ncluster = \"test\"\n\
             [cluster.test]\nresponses = 1\nbackends = [\"{}\"]\n",
            backend.address()
        )
    };
    let log = path.to_str().expect("a plain path");
    let mut flowgate = Process::run(FLOWGATE, &config("first", log));
    let address = flowgate.address();
    let ask = || {
        let client = Peer::v4();
        client.send_to(b"question", address);
        backend.answer(b"the answer");
        client.receive();
        client.address().to_string()
    };
    let client = ask();
    let [line] = &lines(&path, 1)[..] else { panic!("one line") };
    assert_eq!((&line["listener"], &line["reason"]), (&"first".into(), &"complete".into()));
    assert_eq!(line["client"], client);
    assert_eq!(line["backend"], backend.address().to_string());
    assert_eq!((&line["bytes_to_backend"], &line["bytes_to_client"]), (&8.into(), &10.into()));

    // Where it goes waits for a restart, which the reload says. Until then it goes on.
    flowgate.rewrite_config(&config("first", "off"));
    let output = flowgate.ask(&["reload"]);
    let notes = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && notes.contains("log.flows"), "{notes}");
    ask();
    lines(&path, 2);

    std::fs::rename(&path, &moved).expect("the log is there");
    flowgate.signal(Signal::SIGUSR1);
    eventually("there is a new file", || path.exists().then_some(()));
    ask();
    assert_eq!(lines(&path, 1)[0]["listener"], "first");
    lines(&moved, 2);
    for path in [path, moved] {
        std::fs::remove_file(path).expect("the log is there");
    }
}

#[test]
fn a_listener_that_is_renamed_is_known_by_its_new_name() {
    let backend = Peer::v4();
    let path = unused_path("renamed.json");
    // With port 0 another name is another listener.
    let address = own_address();
    let config = |name: &str| {
        format!(
            "[log]\nflows = {path:?}\n[[listener]]\nname = {name:?}\naddress = \"{address}\"\n\
             cluster = \"test\"\n[cluster.test]\nresponses = 1\nbackends = [\"{}\"]\n",
            backend.address()
        )
    };
    let mut flowgate = Process::run(FLOWGATE, &config("before"));
    flowgate.address();
    flowgate.reload(&config("after"));
    let client = Peer::v4();
    client.send_to(b"question", address);
    backend.answer(b"answer");
    client.receive();
    assert_eq!(lines(&path, 1)[0]["listener"], "after");
    std::fs::remove_file(path).expect("the log is there");
}

/// Who stops at once has the flows that end by it written down, too.
#[test]
fn flows_alive_at_an_immediate_stop_are_lines() {
    const FLOWS: usize = 20;
    let backend = Peer::v4();
    let path = std::env::temp_dir().join(format!("flowgate-stop-{}.json", std::process::id()));
    let log = path.to_str().expect("a plain path");
    let mut flowgate = Process::run(
        FLOWGATE,
        &format!(
            "[log]\nflows = {log:?}\n[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \
             \"test\"\n[cluster.test]\nbackends = [\"{}\"]\n",
            backend.address()
        ),
    );
    let address = flowgate.address();
    let clients: Vec<_> = (0..FLOWS).map(|_| Peer::v4()).collect();
    for client in &clients {
        client.send_to(b"question", address);
        backend.receive();
    }
    flowgate.signal(Signal::SIGINT);
    flowgate.wait();
    assert_eq!(lines(&path, FLOWS)[0]["reason"], "drained");
    std::fs::remove_file(&path).expect("the log is there");
}
