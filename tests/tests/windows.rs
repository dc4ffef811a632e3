//! The program for Windows, run by wine: that it starts there, forwards, and is controlled by its own
//! commands. What wine is not, is not shown.
//!
//! `FLOWGATE_WINDOWS_BINARY` names the program, as `dist/targets` builds it.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use flowgate_tests::e2e::{Peer, eventually, simple_config};
use flowgate_tests::process::{ConfigFile, Process, output};
use flowgate_tests::scratch::Scratch;
use flowgate_tests::skip::{skip, skip_test};

/// A Windows of its own, which ends when dropped.
struct Wine {
    directory: Scratch,
    server: PathBuf,
}

impl Wine {
    /// With the program, if both are there.
    fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("FLOWGATE_WINDOWS_BINARY") else {
            return skip("FLOWGATE_WINDOWS_BINARY names no program for Windows: see dist/targets");
        };
        let places = ["/usr/lib/wine", "/usr/bin", "/usr/local/bin"].map(Path::new);
        let find = |name: &str| places.iter().map(|at| at.join(name)).find(|path| path.exists());
        let wine = find("wine64").or_else(|| find("wine"));
        let server = find("wineserver64").or_else(|| find("wineserver"));
        let (Some(wine), Some(server)) = (wine, server) else {
            return skip("wine is not installed");
        };
        let directory = Scratch::new("wine");
        let wine = Self { directory, server }.with(&wine, Path::new(&program));
        Some(wine)
    }

    fn with(self, wine: &Path, program: &Path) -> Self {
        let script = format!(
            "#!/bin/sh\nWINEPREFIX={:?} WINEDEBUG=-all exec {wine:?} {program:?} \"$@\"\n",
            self.prefix()
        );
        std::fs::write(self.flowgate(), script).unwrap();
        std::fs::set_permissions(self.flowgate(), Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn prefix(&self) -> PathBuf {
        self.directory.path().join("prefix")
    }

    /// What runs the program.
    fn flowgate(&self) -> String {
        self.directory.path().join("flowgate").to_str().expect("a plain path").to_owned()
    }

    /// What it prints to standard output and to standard error, and whether it has succeeded.
    fn run(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = output(&self.flowgate(), arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        let mut kill = Command::new(&self.server);
        // It may have ended by itself.
        let _ = kill.arg("-k").env("WINEPREFIX", self.prefix()).status();
        let _ = Command::new(&self.server).arg("-w").env("WINEPREFIX", self.prefix()).status();
    }
}

/// One after another: to set up a Windows takes longer than all of it.
#[test]
fn the_program_for_windows_checks_runs_reloads_and_stops() {
    let Some(wine) = Wine::start() else { return };
    let (_, version, said) = wine.run(&["version"]);
    if !version.starts_with("flowgate ") {
        return skip_test(&format!("wine does not run the program: {version}{said}"));
    }
    check_says_what_windows_lacks(&wine);
    the_demo_runs(&wine);
    datagrams_pass_and_commands_control(&wine);
    it_is_a_service(&wine);
}

fn check_says_what_windows_lacks(wine: &Wine) {
    let (one, other) = (Peer::v4(), Peer::v4());
    let plain = simple_config("127.0.0.1:0", &[&one, &other], "");
    let config = ConfigFile::new(&plain);
    let (is_valid, said, complaints) = wine.run(&["check", config.path()]);
    assert!(is_valid && said.contains("2 backends"), "{said}{complaints}");
    config.rewrite(&format!("workers = 4\n{plain}source = \"client\"\n"));
    let (is_valid, _, complaints) = wine.run(&["check", config.path()]);
    assert!(!is_valid && complaints.contains("on this system this cannot be had"), "{complaints}");
    for lack in ["workers", "source"] {
        assert!(complaints.contains(lack), "{complaints}");
    }
}

fn the_demo_runs(wine: &Wine) {
    let (succeeds, said, complaints) = wine.run(&["demo", "--seconds", "1"]);
    assert!(succeeds && said.contains("Flowgate demo"), "{said}{complaints}");
}

/// Asks as a client, and is answered by the backend that is asked: which one, and whom it saw.
fn ask(client: &Peer, listener: SocketAddr, backends: &[&Peer]) -> (usize, SocketAddr) {
    client.send_to(b"question", listener);
    let (which, question) = eventually("a backend is asked", || {
        let mut asked = backends.iter().map(|backend| backend.receive_now()).enumerate();
        asked.find_map(|(which, question)| Some((which, question?)))
    });
    assert_eq!(question.bytes, b"question");
    backends[which].send_to(b"answer", question.from);
    let answer = client.receive();
    assert_eq!((&answer.bytes[..], answer.from), (&b"answer"[..], listener));
    (which, question.from)
}

fn datagrams_pass_and_commands_control(wine: &Wine) {
    let (one, other) = (Peer::v4(), Peer::v4());
    let both = simple_config("127.0.0.1:0", &[&one, &other], "balance = \"round-robin\"");
    let mut process = Process::run(&wine.flowgate(), &both);
    let listener = process.address();
    let clients = [Peer::v4(), Peer::v4()];
    let first = ask(&clients[0], listener, &[&one, &other]);
    let second = ask(&clients[1], listener, &[&one, &other]);
    assert_ne!(first.0, second.0, "both backends serve");
    // A flow goes on where it has begun, from the port that it has.
    assert_eq!(ask(&clients[0], listener, &[&one, &other]), first);
    let status = process.ask_json(&["status"]);
    assert_eq!(status["process"]["io"], "portable");
    assert_eq!(status["listeners"][0]["flows_active"], 2, "{status:#}");

    let text = String::from_utf8_lossy(&process.ask(&["flows"]).stdout).into_owned();
    assert!(text.contains(&clients[0].address().to_string()), "{text}");

    // What is refused changes nothing.
    process.rewrite_config(&format!("workers = 4\n{both}"));
    assert!(!process.ask(&["reload"]).status.success());
    let health = "[cluster.test.health]\nfall = 1";
    process.reload(&simple_config("127.0.0.1:0", &[&other], health));
    let late = [Peer::v4(), Peer::v4()];
    for client in &late {
        assert_eq!(ask(client, listener, &[&one, &other]).0, 1, "the other is left");
    }
    let upgrade = process.ask(&["upgrade"]);
    let refusal = String::from_utf8_lossy(&upgrade.stderr).into_owned();
    assert!(!upgrade.status.success() && refusal.contains("another process"), "{refusal}");

    // Windows tells of a backend that is gone by a connection that was refused, or reset.
    drop(other);
    eventually("the refusal is held against the backend", || {
        late[0].send_to(b"anybody there?", listener);
        let status = process.ask_json(&["status"]);
        status["clusters"][0]["backends"][0]["ejections"]["network_errors"].as_u64()
    });
    assert!(process.ask(&["stop", "--now", "--wait"]).status.success());
    assert!(process.wait().success());
    assert!(!Path::new(&process.control_socket()).exists(), "it leaves its file");
}

/// By wine's own service manager, which knows no accounts.
fn it_is_a_service(wine: &Wine) {
    let backend = Peer::v4();
    let plain = simple_config("127.0.0.1:0", &[&backend], "");
    // Wine and its services end with the last of its programs.
    let mut other = Process::run(&wine.flowgate(), &plain);
    other.address();

    let config = ConfigFile::new("");
    let socket = format!("{}.token", config.path());
    config.rewrite(&format!("[admin]\nsocket = {socket:?}\n{plain}"));
    let succeeds = |arguments: &[&str]| {
        let (succeeds, said, complaints) = wine.run(arguments);
        assert!(succeeds, "{arguments:?}: {said}{complaints}");
    };
    succeeds(&["service", "install", config.path()]);
    succeeds(&["service", "start"]);
    let status: serde_json::Value = eventually("the service answers", || {
        let (_, status, _) = wine.run(&["status", "--json", "--socket", &socket]);
        serde_json::from_str(&status).ok()
    });
    let address = status["listeners"][0]["address"].as_str().expect("an address");
    let client = Peer::v4();
    client.is_served_by(address.parse().expect("an address"), &backend);
    succeeds(&["reload", "--socket", &socket]);
    // It drains: its flow has to end first, and there is a way to hurry.
    succeeds(&["service", "stop"]);
    succeeds(&["stop", "--now", "--socket", &socket]);
    eventually("the service ends", || (!Path::new(&socket).exists()).then_some(()));
    succeeds(&["service", "uninstall"]);
    assert!(!wine.run(&["service", "start"]).0);
    assert!(other.ask(&["stop", "--now"]).status.success());
    assert!(other.wait().success());
}
