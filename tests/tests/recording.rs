//! `flowgate record` and `flowgate replay`: what a running process was told, and told again.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};

use flowgate_tests::e2e::{Peer, simple_config};
use flowgate_tests::process::{ConfigFile, Process, output};
use flowgate_tests::scratch::unused_path;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

/// A running `flowgate record` that has begun, and its file.
struct Recording {
    child: Child,
    stderr: BufReader<ChildStderr>,
    path: PathBuf,
}

impl Recording {
    fn begin(flowgate: &Process, arguments: &[&str]) -> Self {
        Self::begin_at(unused_path("recording"), flowgate, arguments, "recording to")
    }

    /// The same with a file that there may be already, and what is said first.
    fn begin_at(path: PathBuf, flowgate: &Process, arguments: &[&str], first: &str) -> Self {
        let mut command = Command::new(FLOWGATE);
        command.arg("record").arg(&path).args(arguments);
        command.args(["--socket", &flowgate.control_socket()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("a child process");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut recording = Self { child, stderr, path };
        recording.says(first);
        recording
    }

    /// Waits for the next line that it says.
    fn says(&mut self, expected: &str) {
        let mut line = String::new();
        self.stderr.read_line(&mut line).expect("a pipe");
        assert!(line.starts_with(expected), "{line}");
    }

    fn file(&self) -> &str {
        self.path.to_str().expect("a plain path")
    }

    /// Waits for its end, and returns what it said.
    fn end(&mut self) -> String {
        let mut last = String::new();
        self.stderr.read_to_string(&mut last).expect("a pipe");
        assert_eq!(self.child.wait().expect("a child").code(), Some(0), "{last}");
        last
    }

    fn replay(&self, arguments: &[&str]) -> (Option<i32>, serde_json::Value, String) {
        replay(self.file(), arguments)
    }
}

/// Its exit code, its report, and what it complained of.
fn replay(file: &str, arguments: &[&str]) -> (Option<i32>, serde_json::Value, String) {
    let output = output(FLOWGATE, &[&["replay", file, "--json"], arguments].concat());
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null);
    (output.status.code(), report, complaints)
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// So many clients ask, and are answered.
fn exchanges(clients: &[Peer], backend: &Peer, flowgate: std::net::SocketAddr) {
    for client in clients {
        client.send_to(b"question", flowgate);
        backend.answer(b"answer");
        assert_eq!(client.receive().bytes, b"answer");
    }
}

#[test]
fn what_was_recorded_is_decided_again_also_across_an_upgrade() {
    let backend = Peer::v4();
    let clients: Vec<_> = (0..20).map(|_| Peer::v4()).collect();
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], ""));
    let address = flowgate.address();
    // It begins with flows that are there.
    exchanges(&clients[..5], &backend, address);
    let mut recording = Recording::begin(&flowgate, &[]);
    exchanges(&clients[..10], &backend, address);
    flowgate.upgrade(&[]);
    exchanges(&clients, &backend, address);
    flowgate.signal(Signal::SIGINT);
    let said = recording.end();
    assert!(said.contains("recorded"), "{said}");
    let (code, report, complaints) = recording.replay(&["--verify"]);
    assert_eq!(code, Some(0), "{complaints}");
    assert!(report["blocks_compared"].as_u64() > Some(0), "{report}");
    assert_eq!(report["whole"], true, "{report}");
    // What went on while the one process handed over to the other is not in it.
    let opened = report["flows_opened"].as_u64().expect("a number");
    assert!((5..=15).contains(&opened), "{report}");
    let first = &report["backends"][backend.address().to_string()];
    assert!(first["datagrams"].as_u64() >= Some(10), "{report}");
}

#[test]
fn it_ends_in_time_and_a_cut_file_is_read_up_to_the_cut() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let config = simple_config("127.0.0.1:0", &[&backend], "responses = 1");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();
    let mut recording = Recording::begin(&flowgate, &["--for", "2s"]);
    exchanges(&[client], &backend, address);
    recording.end();
    let (code, report, complaints) = recording.replay(&["--verify"]);
    assert_eq!(code, Some(0), "{complaints}");
    assert_eq!(
        (&report["flows_opened"], &report["flows_closed"]["complete"]),
        (&1.into(), &1.into())
    );
    let bytes = std::fs::read(&recording.path).expect("the recording");
    std::fs::write(&recording.path, &bytes[..bytes.len() - 5]).expect("a shorter one");
    let (code, report, _) = recording.replay(&["--verify"]);
    assert_eq!((code, &report["whole"]), (Some(0), &false.into()), "{report}");
    assert!(report["notes"][0].as_str().expect("a note").contains("cut short"), "{report}");
}

#[test]
fn a_pipe_is_waited_for_until_somebody_reads_it() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let config = simple_config("127.0.0.1:0", &[&backend], "");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();
    let pipe = unused_path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut recording = Recording::begin_at(pipe, &flowgate, &[], "waiting for a reader of");
    let reader = std::thread::spawn({
        let pipe = recording.path.clone();
        move || std::fs::read(pipe).expect("the recording")
    });
    recording.says("recording to");
    exchanges(&[client], &backend, address);
    flowgate.signal(Signal::SIGINT);
    let said = recording.end();
    assert!(said.contains("recorded"), "{said}");
    let copy = unused_path("recording");
    std::fs::write(&copy, reader.join().expect("what was recorded")).expect("a file");
    let (code, report, complaints) = replay(copy.to_str().expect("a plain path"), &["--verify"]);
    assert_eq!((code, &report["flows_opened"]), (Some(0), &1.into()), "{complaints}");
    std::fs::remove_file(copy).expect("it is there");
}

#[test]
fn ctrl_c_leaves_a_recording_that_can_be_played_by_another_configuration() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let config = simple_config("127.0.0.1:0", &[&backend], "");
    let mut flowgate = Process::run(FLOWGATE, &config);
    let address = flowgate.address();
    let mut recording = Recording::begin(&flowgate, &["--sample", "1"]);
    exchanges(&[client], &backend, address);
    flowgate_tests::e2e::eventually("it is in the file", || {
        let (_, report, _) = recording.replay(&[]);
        (report["datagrams"] == 2).then_some(())
    });
    kill(Pid::from_raw(recording.child.id() as i32), Signal::SIGINT).expect("it runs");
    recording.child.wait().expect("a child");
    let elsewhere = Peer::v4();
    let other = ConfigFile::new(&simple_config("127.0.0.1:0", &[&elsewhere], ""));
    let (code, report, complaints) = recording.replay(&["--config", other.path()]);
    assert_eq!(code, Some(0), "{complaints}");
    assert_eq!(report["backends"][elsewhere.address().to_string()]["datagrams"], 1, "{report}");
}

#[test]
fn what_does_not_hold_all_clients_cannot_be_verified() {
    let (client, backend) = (Peer::v4(), Peer::v4());
    let mut flowgate = Process::run(FLOWGATE, &simple_config("127.0.0.1:0", &[&backend], ""));
    let address = flowgate.address();
    let mut recording = Recording::begin(&flowgate, &["--anonymise", "--for", "1s"]);
    let source = client.address();
    exchanges(&[client], &backend, address);
    recording.end();
    let bytes = std::fs::read(&recording.path).expect("the recording");
    let ip = std::net::Ipv4Addr::LOCALHOST.octets();
    let known = [&ip[..], &source.port().to_le_bytes()].concat();
    assert!(!bytes.windows(known.len()).any(|window| window == known), "the client is in it");
    let (code, _, complaints) = recording.replay(&["--verify"]);
    assert_eq!(code, Some(1));
    assert!(complaints.contains("does not hold all clients"), "{complaints}");
    let (code, report, complaints) = recording.replay(&[]);
    assert_eq!((code, &report["flows_opened"]), (Some(0), &1.into()), "{complaints}");
}

#[test]
fn a_capture_is_played_to_any_configuration() {
    let config = ConfigFile::new(
        "[[listener]]\nname = \"dns\"\naddress = \"192.0.2.1:53\"\ncluster = \"c\"\n\
         [cluster.c]\nbackends = [\"10.0.0.1:53\"]\n",
    );
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/capture/");
    for name in ["pcap-little", "pcap-big", "pcapng"] {
        let (code, report, complaints) =
            replay(&format!("{folder}{name}"), &["--config", config.path(), "--listener", "dns"]);
        assert_eq!(code, Some(0), "{name}: {complaints}");
        assert_eq!(report["backends"]["10.0.0.1:53"]["datagrams"], 1, "{name}: {report}");
    }
    let (code, _, complaints) = replay(&format!("{folder}pcapng"), &[]);
    assert_eq!(code, Some(1));
    assert!(complaints.contains("say with --config"), "{complaints}");
    let (code, _, complaints) = replay(config.path(), &["--config", config.path()]);
    assert_eq!(code, Some(1));
    assert!(complaints.contains("neither a recording"), "{complaints}");
}

#[test]
fn diff_says_what_a_reload_does_and_which_clients_go_elsewhere() {
    let (one, two) = (Peer::v4(), Peer::v4());
    let clients: Vec<_> = (0..10).map(|_| Peer::v4()).collect();
    let config = |address: &str, backends: &[&Peer], more: &str| {
        let more = format!("affinity = \"source-ip-port\"\n{more}");
        let config = simple_config(address, backends, &more);
        config.replacen("[[listener]]", "[[listener]]\nname = \"l\"", 1)
    };
    let both = config("127.0.0.1:0", &[&one, &two], "");
    let mut flowgate = Process::run(FLOWGATE, &both);
    let address = flowgate.address();
    let mut recording = Recording::begin(&flowgate, &["--for", "2s"]);
    clients.iter().for_each(|client| client.send_to(b"question", address));
    recording.end();
    let (_, report, _) = recording.replay(&[]);
    let flows = |peer: &Peer| report["backends"][peer.address().to_string()]["flows"].as_u64();
    let of_two = flows(&two).expect("a number");
    assert_eq!(flows(&one).expect("a number") + of_two, 10, "{report}");

    let old = ConfigFile::new(&both);
    let fewer = |more: &str| ConfigFile::new(&config("127.0.0.1:0", &[&one], more));
    let diff = |new: &ConfigFile| {
        let output =
            output(FLOWGATE, &["diff", old.path(), new.path(), recording.file(), "--json"]);
        let diff: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), diff, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, moves, complaints) = diff(&fewer(""));
    assert_eq!(code, Some(0), "{complaints}");
    let moved = moves["traffic"]["moved"].as_array().expect("clients");
    assert_eq!(moved.len() as u64, of_two, "{moves}");
    assert!(moved.iter().all(|client| client["to"] == one.address().to_string()), "{moves}");
    let (code, closes, complaints) = diff(&fewer("on_backend_down = \"close\""));
    assert_eq!((code, &closes["flows_lost"]), (Some(1), &true.into()));
    assert!(complaints.contains("flows would be lost"), "{complaints}");
    // Who sends to a listener that moves is served no more, whatever it is called.
    let elsewhere = ConfigFile::new(&config("127.0.0.2:0", &[&one, &two], ""));
    let (code, gone, _) = diff(&elsewhere);
    assert_eq!((code, &gone["traffic"]["flows_lost"]), (Some(1), &10.into()), "{gone}");
    let moved = gone["traffic"]["moved"].as_array().expect("clients");
    assert!(moved.len() == 10 && moved.iter().all(|client| client["to"].is_null()), "{gone}");
    let (code, same, _) = diff(&old);
    assert_eq!((code, same["settings"].as_array().map(Vec::len)), (Some(0), Some(0)), "{same}");
    let shown = output(FLOWGATE, &["diff", old.path(), fewer("").path()]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("is removed: its flows go on with others"), "{shown}");
}

/// `tests/fixtures` has what `tcpdump` saw of `dig` and `dnsperf` asking `dnsmasq`, and of three QUIC clients,
/// one of which goes on from another port, as behind a NAT.
#[test]
fn captures_of_real_dns_and_quic_are_played_by_any_configuration() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/");
    let played = |name: &str, port: u16, more: &str| {
        let config = ConfigFile::new(&format!(
            "[[listener]]\nname = \"l\"\naddress = \"0.0.0.0:{port}\"\ncluster = \"c\"\n\
             [cluster.c]\nbackends = [\"10.0.0.1:53\", \"10.0.0.2:53\", \"10.0.0.3:53\"]\n{more}\n"
        ));
        let (code, report, complaints) =
            replay(&format!("{folder}{name}"), &["--config", config.path()]);
        assert_eq!(code, Some(0), "{more}: {complaints}");
        assert_eq!(report["whole"], true, "{more}: {report}");
        assert_eq!(report["dropped"], serde_json::json!({}), "{more}: {report}");
        assert_eq!(report["answers_without_flow"], 0, "{more}: {report}");
        let backends = report["backends"].as_object().expect("backends");
        let sent =
            backends.values().map(|backend| backend["datagrams"].as_u64().expect("a number"));
        let sent: u64 = sent.sum();
        (report["flows_opened"].as_u64().expect("a number"), sent, report)
    };
    let questions = "transactions = \"dns\"\nresponses = 1";
    let (flows, sent, report) = played("dns.pcap", 5353, questions);
    assert_eq!((flows, sent, &report["flows_closed"]["complete"]), (26, 26, &26.into()));
    for balance in ["round-robin", "random", "least-flows", "power-of-two", "maglev", "rendezvous"]
    {
        let more = format!("balance = \"{balance}\"\naffinity = \"source-ip-port\"");
        assert_eq!(played("dns.pcap", 5353, &more).1, 26, "{balance}");
        let (flows, sent, _) = played("quic.pcap", 4433, &more);
        assert_eq!((flows, sent), (4, 26), "a flow for each address of a client");
    }
    for more in ["affinity = \"quic\"", "balance = \"maglev\"\naffinity = \"quic\""] {
        let (flows, sent, _) = played("quic.pcap", 4433, more);
        assert_eq!((flows, sent), (4, 26), "{more}");
    }
}
