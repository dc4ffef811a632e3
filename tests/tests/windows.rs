//! The program for Windows, run by wine: that it starts there, forwards, and is controlled by its own
//! commands. What wine is not, is not shown.
//!
//! `FLOWGATE_WINDOWS_BINARY` names the program, as `dist/targets` builds it.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use flowgate_tests::e2e::{Peer, eventually, simple_config};
use flowgate_tests::process::{ConfigFile, Process, output};
use flowgate_tests::scratch::Scratch;
use flowgate_tests::skip::{skip, skip_test};

/// A Windows of its own, which ends when dropped.
struct Wine {
    directory: Scratch,
    wine: PathBuf,
    server: PathBuf,
    /// What follows clusters: beside the program.
    discover: PathBuf,
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
        let discover = Path::new(&program).with_file_name("flowgate-discover.exe");
        Some(Self { directory, wine, server, discover }.with(Path::new(&program)))
    }

    fn with(self, program: &Path) -> Self {
        let script = format!(
            "#!/bin/sh\nWINEPREFIX={:?} WINEDEBUG=-all exec {:?} {program:?} \"$@\"\n",
            self.prefix(),
            self.wine
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
        told(&output(&self.flowgate(), arguments))
    }

    /// The same of another program.
    fn run_another(&self, program: &str, arguments: &[&str]) -> (bool, String, String) {
        let mut command = Command::new(&self.wine);
        command.arg(program).args(arguments).env("WINEPREFIX", self.prefix());
        told(&command.env("WINEDEBUG", "-all").stdin(Stdio::null()).output().expect("a child"))
    }

    /// In which state its service manager has the service, with what it says of how that has ended.
    fn service(&self) -> (String, String) {
        let (_, told, _) = self.run_another("sc.exe", &["query", "flowgate"]);
        let value = |key: &str| {
            let line = told.lines().find(|line| line.trim_start().starts_with(key));
            let value = line.and_then(|line| line.split_once(": "));
            value.unwrap_or_else(|| panic!("no {key}: {told}")).1.trim().to_owned()
        };
        let state = value("STATE");
        let state = state.split_whitespace().nth(1).expect("a name of a state");
        (state.to_owned(), value("SERVICE_EXIT_CODE"))
    }
}

fn told(output: &Output) -> (bool, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace('\r', "");
    (output.status.success(), text(&output.stdout), text(&output.stderr))
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
    operators_see_and_steer(&wine);
    what_follows_clusters_writes_files(&wine);
    it_is_a_service(&wine);
}

fn check_says_what_windows_lacks(wine: &Wine) {
    let (one, other) = (Peer::v4(), Peer::v4());
    let plain = simple_config("127.0.0.1:0", &[&one, &other], "");
    let config = ConfigFile::new(&plain);
    let (is_valid, said, complaints) = wine.run(&["check", config.path()]);
    assert!(is_valid && said.contains("2 backends"), "{said}{complaints}");
    // What works, and is less than on Linux.
    assert!(said.contains("DSCP") && said.contains("time to live"), "{said}");
    config.rewrite(&format!("workers = 4\n{plain}source = \"client\"\n"));
    let (is_valid, _, complaints) = wine.run(&["check", config.path()]);
    assert!(!is_valid && complaints.contains("on this system this cannot be had"), "{complaints}");
    for lack in ["workers", "source"] {
        assert!(complaints.contains(lack), "{complaints}");
    }
}

fn the_demo_runs(wine: &Wine) {
    let (succeeds, said, complaints) = wine.run(&["demo", "--seconds", "5"]);
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

fn operators_see_and_steer(wine: &Wine) {
    let (one, other) = (Peer::v4(), Peer::v4());
    let flows = wine.directory.path().join("flows.json");
    let more = format!("balance = \"round-robin\"\nresponses = 1\n[log]\nflows = {flows:?}\n");
    let mut process =
        Process::run(&wine.flowgate(), &simple_config("127.0.0.1:0", &[&one, &other], &more));
    let listener = process.address();
    let socket = process.control_socket();
    let succeeds = |arguments: &[&str]| {
        let arguments = [arguments, &["--socket", &socket]].concat();
        let (is_done, said, complaints) = wine.run(&arguments);
        assert!(is_done, "{arguments:?}: {said}{complaints}");
        said
    };
    assert_eq!(succeeds(&["ready"]), "ready\n");

    let drained = format!("test/{}", one.address());
    succeeds(&["drain", &drained]);
    let recording = wine.directory.path().join("recording");
    let recording = recording.to_str().expect("a plain path");
    let trace = std::thread::scope(|scope| {
        let trace = scope.spawn(|| succeeds(&["trace", "--for", "6s"]));
        let record = scope.spawn(|| succeeds(&["record", recording, "--for", "6s"]));
        // Both take a moment to begin: asked until they are over, by clients that come and go.
        while !(trace.is_finished() && record.is_finished()) {
            let which = ask(&Peer::v4(), listener, &[&one, &other]).0;
            assert_eq!(which, 1, "the first backend drains");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        record.join().expect("a recording");
        trace.join().expect("a trace")
    });
    assert!(trace.contains("new flow") && trace.contains(&other.address().to_string()), "{trace}");
    let (is_same, said, complaints) = wine.run(&["replay", recording, "--verify"]);
    assert!(is_same && said.contains("verified"), "{said}{complaints}");
    succeeds(&["undrain", &drained]);
    let explained = succeeds(&["explain", "--live", "192.0.2.1"]);
    assert!(explained.contains(&one.address().to_string()), "{explained}");

    // There is no signal to have the log of flows opened again: a reload does it.
    let lines = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| !text.is_empty());
    eventually("flows are logged", || lines(&flows).then_some(()));
    std::fs::rename(&flows, flows.with_extension("old")).expect("renamed");
    succeeds(&["reload"]);
    ask(&Peer::v4(), listener, &[&one, &other]);
    eventually("they are logged in a new file", || lines(&flows).then_some(()));
    succeeds(&["stop", "--now"]);
    assert!(process.wait().success());
}

/// By a Consul that knows one service.
fn what_follows_clusters_writes_files(wine: &Wine) {
    if !wine.discover.exists() {
        return skip_test("flowgate-discover.exe is not beside the program: see dist/targets");
    }
    let consul = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = format!("http://{}", consul.local_addr().expect("an address"));
    std::thread::spawn(move || {
        let health = r#"[{"Node": {"Address": "10.0.0.1"}, "Checks": [],
            "Service": {"Address": "10.0.0.2", "Port": 53, "Weights": {"Passing": 1, "Warning": 1}}}]"#;
        // Ends with the test.
        for mut asking in consul.incoming().map_while(Result::ok) {
            let request = BufReader::new(&asking).lines().map_while(Result::ok);
            let _ = request.take_while(|line| !line.is_empty()).count();
            let _ = write!(
                asking,
                "HTTP/1.1 200 OK\r\nX-Consul-Index: 7\r\nConnection: close\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{health}",
                health.len()
            );
        }
    });
    let file = wine.directory.path().join("dns.json");
    let service = format!("dns={}", file.display());
    let discover = wine.discover.to_str().expect("a plain path");
    let arguments = ["--once", "consul", "--server", &server, &service];
    let (succeeds, said, complaints) = wine.run_another(discover, &arguments);
    assert!(succeeds, "{said}{complaints}");
    let written = std::fs::read_to_string(&file).expect("it was written");
    assert!(written.contains("10.0.0.2:53"), "{written}");
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
    let configuration = std::fs::read_to_string(config.path()).expect("it was written");
    config.rewrite(&format!("workers = 4\n{configuration}"));
    let (succeeds_too, _, complaints) = wine.run(&["service", "install", config.path()]);
    assert!(!succeeds_too && complaints.contains("workers"), "{complaints}");
    config.rewrite(&configuration);
    succeeds(&["service", "install", config.path()]);

    // One that cannot start says so, and so does who has started it.
    config.rewrite(&configuration.replace("127.0.0.1:0", &backend.address().to_string()));
    let (starts, _, complaints) = wine.run(&["service", "start"]);
    assert!(!starts && complaints.contains("flowgate.log"), "{complaints}");
    let (state, code) = wine.service();
    assert!(state == "STOPPED" && code.starts_with('1'), "{state}, {code}");
    config.rewrite(&configuration);

    succeeds(&["service", "start"]);
    assert_eq!(wine.service().0, "RUNNING");
    let (_, status, complaints) = wine.run(&["status", "--json", "--socket", &socket]);
    let status: serde_json::Value = serde_json::from_str(&status).expect(&complaints);
    let address = status["listeners"][0]["address"].as_str().expect("an address");
    let client = Peer::v4();
    client.is_served_by(address.parse().expect("an address"), &backend);
    succeeds(&["reload", "--socket", &socket]);
    // It drains: its flow has to end first, and there is a way to hurry.
    succeeds(&["service", "stop"]);
    assert_eq!(wine.service().0, "STOP_PENDING");
    succeeds(&["stop", "--now", "--socket", &socket]);
    eventually("the service ends", || (wine.service().0 == "STOPPED").then_some(()));
    assert!(wine.service().1.starts_with('0') && !Path::new(&socket).exists());
    succeeds(&["service", "uninstall"]);
    assert!(!wine.run(&["service", "start"]).0);
    assert!(other.ask(&["stop", "--now"]).status.success());
    assert!(other.wait().success());
}
