//! A configuration that is a directory, and what its strings ask of the environment.

use std::net::UdpSocket;
use std::process::{Command, Stdio};

use flowgate_tests::e2e::Peer;
use flowgate_tests::process::Process;
use flowgate_tests::scratch::Scratch;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// Runs the command on a directory and returns its exit code, what it printed and what it complained of.
fn flowgate(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(FLOWGATE);
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
    let output = command.output().expect("a child process");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const CLUSTER: &str = "[cluster.web]\nbackends = [\"${BACKEND}\"]\n";
const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"web\"\n";

/// What the backend gets when a client sends to a balancer.
#[track_caller]
fn forwards(process: &mut Process, backend: &Peer) {
    let client = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let to = process.address();
    client.send_to(b"through", to).expect("sent");
    assert_eq!(backend.receive().bytes, b"through");
}

#[test]
fn a_directory_runs_reloads_and_upgrades_as_one_configuration() {
    let (backend, directory) = (Peer::bind("127.0.0.1:0"), Scratch::new("conf.d"));
    let write = |name: &str, text: &str| {
        std::fs::write(directory.path().join(name), text).expect("a file");
    };
    write("10-cluster.toml", CLUSTER);
    // None of these is read.
    write(".20-hidden.toml", "nonsense");
    write("30-copy.toml.new", "nonsense");
    let address = backend.address().to_string();
    let variables = [("BACKEND", address.as_str())];
    let mut process = Process::run_directory(FLOWGATE, directory.path(), LISTENER, &variables);
    forwards(&mut process, &backend);

    write("20-more.toml", &LISTENER.replace("address", "name = \"second\"\naddress"));
    assert!(process.ask(&["reload"]).status.success());
    let names = |process: &Process| -> Vec<String> {
        let status = process.ask_json(&["status"]);
        let listeners = status["listeners"].as_array().expect("listeners").iter();
        listeners.map(|listener| listener["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&process), ["second", "127.0.0.1:0"]);

    // What is refused changes nothing, and is told with its file and line.
    write("40-bad.toml", "\n[cluster.web]\nbackends = []\n");
    let refused = process.ask(&["reload"]);
    let complaints = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(complaints.contains("40-bad.toml:2:10: cluster.web: "), "{complaints}");
    assert!(complaints.contains("10-cluster.toml:1 has it already"), "{complaints}");
    std::fs::remove_file(directory.path().join("40-bad.toml")).expect("it was there");

    process.upgrade(&[]);
    assert_eq!(names(&process), ["second", "127.0.0.1:0"]);
    let status = process.ask_json(&["status"]);
    assert_eq!(status["clusters"][0]["backends"][0]["address"], address.as_str());
}

#[test]
fn check_and_explain_know_directories_and_the_environment() {
    let directory = Scratch::new("conf.d");
    let path = directory.path().to_str().expect("a plain path");
    let (code, _, complaints) = flowgate(&["check", path], &[]);
    assert_eq!((code, complaints.contains("*.toml")), (Some(1), true), "{complaints}");

    std::fs::write(directory.path().join("b.toml"), CLUSTER).expect("a file");
    std::fs::write(directory.path().join("a.toml"), LISTENER.replace(":0", ":5300"))
        .expect("a file");
    let (code, _, complaints) = flowgate(&["check", path], &[]);
    assert_eq!(code, Some(1));
    let expected = "b.toml:2:13: cluster.web.backends[0]: found ${BACKEND}, which is not set in the environment";
    assert!(complaints.contains(expected), "{complaints}");

    let variables = [("BACKEND", "192.0.2.9:53")];
    let (code, printed, complaints) = flowgate(&["check", path], &variables);
    assert_eq!((code, complaints.as_str()), (Some(0), ""));
    assert!(printed.contains("cluster \"web\": rendezvous, 1 backend"), "{printed}");
    let (_, printed, _) = flowgate(&["explain", path, "198.51.100.7"], &variables);
    assert!(printed.contains("backend 192.0.2.9:53"), "{printed}");
}
