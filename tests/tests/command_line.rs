//! The `flowgate` command: what it prints, what it returns, how it stops.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use flowgate_tests::e2e::{Peer, eventually, own_address, simple_config};
use flowgate_tests::process::{ConfigFile, Process, output};
use flowgate_tests::scratch::unused_path;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// Runs the command and returns its exit code, what it printed and what it complained of.
fn flowgate(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = output(FLOWGATE, arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const VALID: &str = r#"
[[listener]]
name = "dns"
address = "127.0.0.1:5300"
cluster = "resolvers"
[cluster.resolvers]
backends = ["10.0.0.1:53", { address = "10.0.0.2:53", weight = 3 }]
"#;

const INVALID: &str = r#"
wrokers = 2
[[listener]]
address = "nowhere"
cluster = "resolver"
[cluster.resolvers]
backends = ["10.0.0.1:53"]
idle_timeout = 5
"#;

#[test]
fn check_says_what_a_valid_configuration_means_and_returns_0() {
    let config = ConfigFile::new(VALID);
    let (code, printed, complaints) = flowgate(&["check", config.path()]);
    assert_eq!((code, complaints.as_str()), (Some(0), ""));
    let summary =
        "listener \"dns\" on 127.0.0.1:5300 -> cluster \"resolvers\": rendezvous, 2 backends";
    assert!(printed.contains(summary), "{printed}");
}

#[test]
fn check_tells_every_error_with_its_line_and_returns_1() {
    let config = ConfigFile::new(INVALID);
    let (code, printed, complaints) = flowgate(&["check", config.path()]);
    assert_eq!((code, printed.as_str()), (Some(1), ""));
    for (line, key) in [(2, "wrokers"), (4, "address"), (5, "cluster"), (8, "idle_timeout")] {
        let place = format!("{}:{line}:", config.path());
        let told = complaints.lines().any(|line| line.starts_with(&place) && line.contains(key));
        assert!(told, "{key} in {complaints}");
    }
}

#[test]
fn run_and_explain_refuse_what_check_refuses() {
    let config = ConfigFile::new(INVALID);
    let (_, _, expected) = flowgate(&["check", config.path()]);
    for arguments in [&["run", config.path()][..], &["explain", config.path(), "192.0.2.1"]] {
        let (code, printed, complaints) = flowgate(arguments);
        assert_eq!((code, printed.as_str()), (Some(1), ""));
        assert_eq!(complaints, expected);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let (code, _, complaints) = flowgate(&["check", "/nonexistent/flowgate.toml"]);
    assert_eq!(code, Some(1));
    assert!(complaints.contains("/nonexistent/flowgate.toml"), "{complaints}");
}

#[test]
fn wrong_usage_returns_2_and_says_what_is_right() {
    for arguments in [&[][..], &["fly"], &["explain"], &["run", "a", "b"], &["explain", "a", "b"]] {
        let (code, _, complaints) = flowgate(arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert!(complaints.contains("Usage: ") || complaints.contains("expected"), "{complaints}");
    }
}

#[test]
fn the_file_that_is_not_named_is_that_of_the_environment_or_the_usual_one() {
    let config = ConfigFile::new(VALID);
    let ask = |arguments: &[&str], variable: Option<&str>| {
        let mut command = Command::new(FLOWGATE);
        command.args(arguments).stdin(Stdio::null()).env_remove("FLOWGATE_CONFIG");
        command.envs(variable.map(|path| ("FLOWGATE_CONFIG", path)));
        command.output().expect("a child process")
    };
    for arguments in [&["check"][..], &["-t"], &["explain", "192.0.2.1"]] {
        let output = ask(arguments, Some(config.path()));
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let output = ask(arguments, None);
        let complaints = String::from_utf8_lossy(&output.stderr);
        // It may be there, on a machine that has Flowgate installed.
        let usual = "/etc/flowgate/flowgate.toml";
        assert!(output.status.success() || complaints.contains(usual), "{complaints}");
    }
    let (code, printed, _) = flowgate(&["-t", config.path()]);
    assert_eq!((code, printed.contains(": valid\n")), (Some(0), true), "{printed}");
    let (code, _, complaints) = flowgate(&["-t", "/nonexistent/flowgate.toml"]);
    assert_eq!((code, complaints.contains("/nonexistent/")), (Some(1), true), "{complaints}");
}

#[test]
fn check_prints_json_and_takes_warnings_for_errors_if_asked_to() {
    let document = |toml: &str, arguments: &[&str]| {
        let config = ConfigFile::new(toml);
        let (code, printed, _) =
            flowgate(&[&["check", "--json", config.path()], arguments].concat());
        let document: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        (code, document)
    };
    let (code, valid) = document(VALID, &["--strict"]);
    assert_eq!((code, &valid["valid"]), (Some(0), &true.into()));
    assert_eq!(valid["listeners"][0]["backends"], 2);

    let (code, invalid) = document(INVALID, &[]);
    assert_eq!((code, &invalid["valid"]), (Some(1), &false.into()));
    let lines = invalid["errors"].as_array().expect("errors");
    let lines: Vec<_> = lines.iter().map(|error| error["line"].as_u64().expect("a line")).collect();
    assert_eq!(lines, [2, 4, 5, 8]);

    let odd = format!("{VALID}[cluster.unused]\nbackends = [\"10.0.0.1:53\"]\n");
    let (code, lenient) = document(&odd, &[]);
    assert_eq!((code, &lenient["valid"]), (Some(0), &true.into()));
    assert_eq!(lenient["warnings"][0]["key"], "cluster.unused");
    let (code, strict) = document(&odd, &["--strict"]);
    assert_eq!((code, &strict["valid"]), (Some(1), &false.into()));

    let (code, _, complaints) = flowgate(&["check", "--json", "/nonexistent/flowgate.toml"]);
    assert_eq!(code, Some(1));
    assert!(complaints.contains("/nonexistent"), "{complaints}");
}

#[test]
fn explain_knows_who_is_refused_and_prints_json() {
    let toml =
        VALID.replace("cluster =", "allow = [\"192.0.2.0/24\"]\ndeny = [\"192.0.2.9\"]\ncluster =");
    let config = ConfigFile::new(&toml);
    let explain = |client: &str| flowgate(&["explain", config.path(), client]);
    let (code, printed, _) = explain("192.0.2.9");
    assert_eq!((code, printed.contains("which `deny` lists")), (Some(0), true), "{printed}");
    let (_, printed, _) = explain("198.51.100.1");
    assert!(printed.contains("no network that `allow` lists"), "{printed}");

    let (_, text, _) = explain("192.0.2.7");
    let (code, printed, _) = flowgate(&["explain", "--json", config.path(), "192.0.2.7"]);
    let document: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    let backend = document["listeners"][0]["backend"].as_str().expect("a backend");
    assert_eq!(code, Some(0));
    assert!(text.contains(&format!("backend {backend}")), "{text}");
}

#[test]
fn stop_waits_for_the_end_if_it_is_asked_to() {
    let backend = Peer::v4();
    let toml = simple_config("127.0.0.1:0", &[&backend], "");
    let mut flowgate = Process::run(FLOWGATE, &toml);
    flowgate.address();
    // By the environment it is found, too.
    let mut stop = Command::new(FLOWGATE);
    stop.args(["stop", "--wait"]).env("FLOWGATE_SOCKET", flowgate.control_socket());
    let mut stop = stop.stdout(Stdio::null()).spawn().expect("a child process");
    assert_eq!(flowgate.wait().code(), Some(0));
    assert!(stop.wait().expect("a child").success());
}

#[test]
fn help_and_version_return_0() {
    for argument in ["--help", "--version", "version"] {
        let (code, printed, _) = flowgate(&[argument]);
        assert_eq!(code, Some(0));
        assert!(printed.contains("flowgate") || printed.contains("Usage"), "{printed}");
    }
}

#[test]
fn explain_names_the_backend_that_a_client_then_gets() {
    let backends = [(); 5].map(|()| Peer::v4());
    let peers: Vec<_> = backends.iter().collect();
    let toml = simple_config("127.0.0.1:0", &peers, "affinity = \"source-ip-port\"");
    let mut running = Process::run(FLOWGATE, &toml);
    let address = running.address();
    let config = ConfigFile::new(&toml);
    for _ in 0..10 {
        let client = Peer::v4();
        let (code, printed, complaints) =
            flowgate(&["explain", config.path(), &client.address().to_string()]);
        assert_eq!((code, complaints.as_str()), (Some(0), ""));
        let is_named = |peer: &&Peer| printed.contains(&format!("backend {}", peer.address()));
        let chosen = backends.iter().find(is_named).unwrap_or_else(|| panic!("{printed}"));
        client.send_to(b"hello", address);
        assert_eq!(chosen.receive().bytes, b"hello");
    }
}

#[test]
fn explain_says_whom_a_listener_refuses_and_by_which_network() {
    let toml = VALID.replacen(
        "cluster = ",
        "allow = [\"192.0.2.0/24\"]\ndeny = [\"::ffff:192.0.2.128/121\"]\ncluster = ",
        1,
    );
    let config = ConfigFile::new(&toml);
    for (client, expected) in [
        ("192.0.2.7", "backend 10.0.0."),
        ("192.0.2.200", "dropped (denied): the client is in 192.0.2.128/25, which `deny` lists"),
        ("198.51.100.1", "dropped (denied): no network that `allow` lists has the client"),
    ] {
        let (code, printed, _) = flowgate(&["explain", config.path(), client]);
        assert_eq!(code, Some(0));
        assert!(printed.contains(expected), "{client}: {printed}");
    }
}

#[test]
fn a_backend_that_is_the_listener_or_a_broadcast_is_refused_before_anything_runs() {
    // An address of the loopback interface that every host has, beside its own wildcard.
    for (listener, backend, complaint) in [
        ("0.0.0.0:5300", "127.0.0.1:5300", "the listener itself"),
        ("127.0.0.1:5300", "127.255.255.255:53", "is a broadcast address"),
    ] {
        let config = ConfigFile::new(&format!(
            "[[listener]]\naddress = \"{listener}\"\ncluster = \"c\"\n[cluster.c]\nbackends = [\"{backend}\"]\n"
        ));
        for arguments in [&["check", config.path()][..], &["run", config.path()]] {
            let (code, _, complaints) = flowgate(arguments);
            assert_eq!(code, Some(1), "{complaints}");
            assert!(complaints.contains(complaint), "{complaints}");
        }
    }
}

#[test]
fn explain_gives_the_shares_where_the_client_does_not_decide() {
    let config = ConfigFile::new(&format!("{VALID}balance = \"random\"\n"));
    let (code, printed, _) = flowgate(&["explain", config.path(), "192.0.2.7"]);
    assert_eq!(code, Some(0));
    assert!(printed.contains("25.0 %  10.0.0.1:53 (weight 1)"), "{printed}");
    assert!(printed.contains("75.0 %  10.0.0.2:53 (weight 3)"), "{printed}");
}

#[test]
fn a_second_instance_is_refused_and_the_first_one_unharmed() {
    for workers in [1, 2] {
        let (client, backend) = (Peer::v4(), Peer::v4());
        let toml = |address: &str| {
            format!("workers = {workers}\n{}", simple_config(address, &[&backend], ""))
        };
        let mut first = Process::run(FLOWGATE, &toml("127.0.0.1:0"));
        let address = first.address();
        let config = ConfigFile::new(&toml(&address.to_string()));
        let (code, _, complaints) = flowgate(&["run", config.path()]);
        assert_eq!(code, Some(1));
        assert!(complaints.contains(&format!("cannot listen on {address}")), "{complaints}");
        assert!(complaints.contains("another process has the port"), "{complaints}");
        for _ in 0..8 {
            client.send_to(b"still there?", address);
            backend.answer(b"yes");
            assert_eq!(client.receive().bytes, b"yes");
        }
    }
}

#[test]
fn of_two_instances_that_start_at_once_one_is_refused() {
    let backend = Peer::v4();
    for _ in 0..10 {
        let address = own_address().to_string();
        let toml = simple_config(&address, &[&backend], "");
        let mut instances = [(); 2].map(|()| Process::run(FLOWGATE, &toml));
        let ended = eventually("one is refused", || {
            instances.iter_mut().position(|instance| !instance.is_running())
        });
        assert_eq!(instances[ended].wait().code(), Some(1));
        let other = &mut instances[1 - ended];
        other.line("started");
        assert!(other.is_running());
    }
}

#[test]
fn sigterm_without_flows_stops_at_once_and_so_does_sigint_with_them() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let toml = simple_config("127.0.0.1:0", &[&backend], "");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut flowgate = Process::run(FLOWGATE, &toml);
        let address = flowgate.address();
        if signal == Signal::SIGINT {
            client.send_to(b"hello", address);
            backend.receive();
        }
        flowgate.signal(signal);
        assert_eq!(flowgate.wait().code(), Some(0), "{signal}");
    }
}

#[test]
fn sigterm_lets_flows_go_on_refuses_new_ones_and_ends_with_the_last() {
    let (old, backend) = (Peer::v4(), Peer::v4());
    let mut flowgate =
        Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], "responses = 1"));
    let address = flowgate.address();
    old.send_to(b"old", address);
    let mut unanswered = vec![backend.receive()];
    flowgate.signal(Signal::SIGTERM);
    flowgate.line("draining");
    // Just after that line the workers are told. What a refused client sends never comes, so what
    // the old one sends after it comes first.
    eventually("new flows are refused", || {
        Peer::v4().send_to(b"new", address);
        old.send_to(b"old", address);
        let first = backend.receive();
        let was_admitted = first.bytes == b"new";
        unanswered.push(first);
        if was_admitted {
            unanswered.push(backend.receive());
        }
        (!was_admitted).then_some(())
    });
    assert!(flowgate.is_running());
    for request in unanswered {
        backend.send_to(b"answer", request.from);
    }
    assert_eq!(old.receive().bytes, b"answer");
    assert_eq!(flowgate.wait().code(), Some(0));
}

#[test]
fn a_second_sigterm_stops_at_once() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], ""));
    let address = flowgate.address();
    client.send_to(b"hello", address);
    backend.receive();
    flowgate.signal(Signal::SIGTERM);
    flowgate.line("draining");
    assert!(flowgate.is_running());
    flowgate.signal(Signal::SIGTERM);
    assert_eq!(flowgate.wait().code(), Some(0));
}

#[test]
fn the_drain_timeout_ends_what_does_not_end_by_itself() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let config = simple_config("127.0.0.1:0", &[&backend], "");
    let mut flowgate = Process::run(FLOWGATE, &format!("drain_timeout = \"200ms\"\n{config}"));
    let address = flowgate.address();
    client.send_to(b"hello", address);
    backend.receive();
    flowgate.signal(Signal::SIGTERM);
    assert_eq!(flowgate.wait().code(), Some(0));
}

/// What a process logs from its start to its end, with these variables in its environment. Its
/// standard error is a socket, as it is under systemd.
fn logged(format: &str, journal: impl Fn(u64, u64) -> String) -> Vec<String> {
    let (mut ours, theirs) = UnixStream::pair().expect("sockets");
    let copy = theirs.as_fd().try_clone_to_owned().expect("a descriptor");
    let seen = std::fs::File::from(copy).metadata().expect("a socket");
    let backend = Peer::v4();
    let config = ConfigFile::new(&format!(
        "[log]\nformat = {format:?}\n[admin]\nsocket = {:?}\n{}",
        unused_path("log.sock"),
        simple_config("127.0.0.1:0", &[&backend], "")
    ));
    let mut command = Command::new(FLOWGATE);
    command.args(["run", config.path()]).stdin(Stdio::null());
    command.stderr(OwnedFd::from(theirs));
    command.env("JOURNAL_STREAM", journal(seen.dev(), seen.ino()));
    let mut child = command.spawn().expect("a child process");
    // It has the other end now, and nobody else.
    drop(command);
    let mut lines = BufReader::new(&mut ours).lines().map_while(Result::ok);
    let mut logged = Vec::new();
    for line in &mut lines {
        let is_up = line.contains("started");
        logged.push(line);
        if is_up {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("it runs");
        }
    }
    assert!(child.wait().expect("a child").success(), "{logged:#?}");
    logged
}

#[test]
fn the_journal_is_told_priorities_and_no_times() {
    let is_journal = |device: u64, inode: u64| format!("{device}:{inode}");
    let lines = logged("text", is_journal);
    let listening = lines.iter().find(|line| line.contains("listening")).expect("a listener");
    assert!(listening.trim_start().starts_with("<6> INFO listening listener=\""), "{listening}");
    assert!(lines.iter().all(|line| line.starts_with("<6>") || line.starts_with("<4>")));

    let lines = logged("json", is_journal);
    for line in lines {
        let (priority, document) = line.split_at(3);
        let document: serde_json::Value = serde_json::from_str(document).expect("JSON");
        let level = document["level"].as_str().expect("a level");
        assert_eq!(priority, if level == "INFO" { "<6>" } else { "<4>" });
        assert!(document["timestamp"].is_null(), "{document}");
    }
}

#[test]
fn json_has_names_as_they_are_and_a_variable_alone_is_no_journal() {
    let lines = logged("json", |device, inode| format!("{device}:{}", inode + 1));
    let documents: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let is_listening = |d: &&serde_json::Value| d["fields"]["message"] == "listening";
    let listening = documents.iter().find(is_listening).expect("a listener");
    assert_eq!(listening["fields"]["cluster"], "test");
    assert!(listening["timestamp"].is_string());
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_operators_nor_the_end() {
    let (reader, mut full) = std::io::pipe().expect("a pipe");
    // No byte more fits into it.
    fcntl(&full, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("our pipe");
    while full.write(&[b'x'; 1 << 16]).is_ok() {}
    while full.write(b"x").is_ok() {}
    fcntl(&full, FcntlArg::F_SETFL(OFlag::empty())).expect("our pipe");

    let config = ConfigFile::new("");
    let socket = format!("{}.sock", config.path());
    let admin = format!("\n[admin]\nsocket = {socket:?}\n[log]\nlevel = \"debug\"\n");
    config.rewrite(&(VALID.replace(":5300", ":0") + &admin));
    let mut child = Command::new(FLOWGATE).args(["run", config.path()]).stderr(full).spawn();
    let child = child.as_mut().expect("a child process");
    let status = || (flowgate(&["status", "--socket", &socket]).0 == Some(0)).then_some(());
    eventually("operators are answered", status);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("our child");
    let code = eventually("it ends", || child.try_wait().expect("our child"));
    assert!(code.success(), "{code}");
    drop(reader);
}
