//! A stop that loses nothing, and telling routers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use flowgate_tests::e2e::{PATIENCE, Peer, eventually, simple_config};
use flowgate_tests::process::{ConfigFile, Process};
use flowgate_tests::scratch::Scratch;
use nix::sys::signal::Signal;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn config(top: &str, backend: &Peer, more: &str) -> String {
    format!("{top}\n{}\n{more}", simple_config("127.0.0.1:0", &[backend], ""))
}

/// Whether a process says that it is ready, and why not.
fn readiness(process: &Process) -> (bool, String) {
    let output = process.ask(&["ready"]);
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_lame_duck_is_not_ready_and_serves_new_flows() {
    let backend = Peer::v4();
    let mut flowgate = Process::run(FLOWGATE, &config("lame_duck = \"1h\"", &backend, ""));
    let address = flowgate.address();
    assert_eq!(readiness(&flowgate), (true, String::new()));

    flowgate.signal(Signal::SIGTERM);
    flowgate.line("lame duck");
    let (is_ready, why) = readiness(&flowgate);
    assert!(!is_ready && why.contains("stopping"), "{why}");
    Peer::v4().is_served_by(address, &backend);
    let status = flowgate.ask_json(&["status"]);
    assert_eq!((&status["stopping"], &status["draining"]), (&true.into(), &false.into()));
    for refused in [&["reload"][..], &["upgrade"]] {
        let output = flowgate.ask(refused);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && complaints.contains("stopping"), "{complaints}");
    }
    // Anyone who asks for the same once more does not shorten it; a second signal does.
    assert!(flowgate.ask(&["stop"]).status.success());
    Peer::v4().is_served_by(address, &backend);
    flowgate.signal(Signal::SIGTERM);
    assert_eq!(flowgate.wait().code(), Some(0));
}

#[test]
fn a_lame_duck_drains_in_the_end() {
    let backend = Peer::v4();
    let top = "lame_duck = \"100ms\"\ndrain_timeout = \"1h\"";
    let mut flowgate = Process::run(FLOWGATE, &config(top, &backend, ""));
    let address = flowgate.address();
    Peer::v4().is_served_by(address, &backend);
    flowgate.signal(Signal::SIGTERM);
    flowgate.line("lame duck");
    flowgate.line("draining");
    let (_, why) = readiness(&flowgate);
    assert!(why.contains("draining"), "{why}");
    flowgate.signal(Signal::SIGTERM);
    assert_eq!(flowgate.wait().code(), Some(0));
}

#[test]
fn the_service_manager_hears_at_the_beginning_how_long_the_stop_takes() {
    let (backend, scratch) = (Peer::v4(), Scratch::new("notify"));
    let path = scratch.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let next = || {
        let mut message = [0; 1024];
        let length = manager.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let top = "lame_duck = \"1h\"\ndrain_timeout = \"30s\"";
    let path = path.to_str().expect("a plain path");
    let mut flowgate =
        Process::run_with(FLOWGATE, &config(top, &backend, ""), &[("NOTIFY_SOCKET", path)]);
    flowgate.address();
    while !next().contains("READY=1") {}
    flowgate.signal(Signal::SIGTERM);
    // An hour, half a minute, and ten seconds to end.
    assert_eq!(next(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=3640000000\n");
    flowgate.signal(Signal::SIGTERM);
    assert_eq!(flowgate.wait().code(), Some(0));
}

/// A program that notes how it is run.
struct Program {
    scratch: Scratch,
}

impl Program {
    fn new() -> Self {
        Self { scratch: Scratch::new("announce") }
    }

    fn notes(&self) -> PathBuf {
        self.scratch.path().join("notes")
    }

    /// What to configure, looking often.
    fn table(&self, more: &str) -> String {
        let script = format!("echo \"$1\" >>{:?}", self.notes());
        format!(
            "[announce]\nrise = 2\nfall = 2\ninterval = \"100ms\"\n\
             command = [\"/bin/sh\", \"-c\", {script:?}, \"sh\"]\n{more}"
        )
    }

    /// The same for the listener whose table is the last one.
    fn table_of_listener(&self, more: &str) -> String {
        self.table(more).replace("[announce]", "[listener.announce]")
    }

    #[track_caller]
    fn eventually_noted(&self, expected: &[&str]) {
        let notes = || std::fs::read_to_string(self.notes()).unwrap_or_default();
        eventually("the program is run", || {
            (notes().lines().count() >= expected.len()).then_some(())
        });
        assert_eq!(notes().lines().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_program_hears_when_the_instance_rises_falls_and_stops() {
    let (backend, program) = (Peer::v4(), Program::new());
    let toml = config("lame_duck = \"1h\"", &backend, &program.table(""));
    let mut flowgate = Process::run(FLOWGATE, &toml);
    let address = flowgate.address();
    program.eventually_noted(&["announce"]);
    let announced = |flowgate: &Process| {
        let status = flowgate.ask_json(&["status"]);
        (status["announce"]["announced"].clone(), status["announce"]["wanted"].clone())
    };
    eventually("the status says so", || {
        (announced(&flowgate) == (true.into(), true.into())).then_some(())
    });

    let name = format!("cluster/{}", backend.address());
    let cluster = flowgate.ask_json(&["status"])["clusters"][0]["name"].clone();
    let name = name.replace("cluster", cluster.as_str().expect("a name"));
    assert!(flowgate.ask(&["drain", &name]).status.success());
    program.eventually_noted(&["announce", "withdraw"]);
    assert!(flowgate.ask(&["undrain", &name]).status.success());
    program.eventually_noted(&["announce", "withdraw", "announce"]);

    flowgate.signal(Signal::SIGTERM);
    program.eventually_noted(&["announce", "withdraw", "announce", "withdraw"]);
    // It stays withdrawn, though all backends are up.
    Peer::v4().is_served_by(address, &backend);
    assert!(!readiness(&flowgate).0);
    flowgate.signal(Signal::SIGTERM);
    assert_eq!(flowgate.wait().code(), Some(0));
    program.eventually_noted(&["announce", "withdraw", "announce", "withdraw"]);
}

#[test]
fn fewer_backends_than_asked_for_announce_nothing_and_are_not_ready() {
    let (backend, program) = (Peer::v4(), Program::new());
    let table = program.table("min_backends_up = 2");
    let mut flowgate = Process::run(FLOWGATE, &config("", &backend, &table));
    flowgate.address();
    let (is_ready, why) = readiness(&flowgate);
    assert!(!is_ready && why.contains("1 backends are up, of at least 2"), "{why}");
    program.eventually_noted(&["withdraw"]);

    // A reload may ask for less.
    flowgate.reload(&config("", &backend, &program.table("min_backends_up = 1")));
    program.eventually_noted(&["withdraw", "announce"]);
    assert!(readiness(&flowgate).0);
    // An immediate stop withdraws too.
    assert!(flowgate.ask(&["stop", "--now"]).status.success());
    assert_eq!(flowgate.wait().code(), Some(0));
    program.eventually_noted(&["withdraw", "announce", "withdraw"]);
}

#[test]
fn a_listener_is_announced_by_what_its_own_clusters_have() {
    let (backends, programs) =
        ([Peer::v4(), Peer::v4(), Peer::v4()], [Program::new(), Program::new()]);
    let [one, two, three] = backends.each_ref().map(|backend| backend.address());
    let listener = |name: &str, cluster: &str, table: &str| {
        format!(
            "[[listener]]\nname = {name:?}\naddress = \"127.0.0.1:0\"\ncluster = {cluster:?}\n\
             {table}\n"
        )
    };
    let (own, others) =
        (programs[0].table_of_listener(""), programs[1].table_of_listener("min_backends_up = 2"));
    let route = "[[listener.route]]\nfrom = [\"127.0.0.9\"]\ncluster = \"web\"\n";
    let clusters = format!(
        "[cluster.dns]\nbackends = [\"{one}\"]\n[cluster.web]\nbackends = [\"{two}\", \"{three}\"]\n"
    );
    let dns = listener("dns", "dns", &format!("{route}{own}"));
    let web = listener("web", "web", &others);
    let toml = format!("lame_duck = \"1h\"\n{dns}{web}{clusters}");
    let mut flowgate = Process::run(FLOWGATE, &toml);
    flowgate.address();
    programs.iter().for_each(|program| program.eventually_noted(&["announce"]));
    let announced = |flowgate: &Process, name: &str| {
        let status = flowgate.ask_json(&["status"]);
        let listeners = status["listeners"].as_array().expect("listeners").clone();
        let its = listeners.into_iter().find(|listener| listener["name"] == name);
        its.expect("it is there")["announce"]["announced"].clone()
    };
    let said = |flowgate: &Process| {
        String::from_utf8_lossy(&flowgate.ask(&["status"]).stdout).into_owned()
    };

    // One of two is enough for a listener that a route leads there, but not for the other one.
    assert!(flowgate.ask(&["drain", &format!("web/{two}")]).status.success());
    programs[1].eventually_noted(&["announce", "withdraw"]);
    eventually("the status says so", || (announced(&flowgate, "web") == false).then_some(()));
    assert_eq!(announced(&flowgate, "dns"), true);
    let text = said(&flowgate);
    assert!(text.contains("listener dns: announced\n"), "{text}");
    assert!(text.contains("listener web: withdrawn\n"), "{text}");
    assert!(flowgate.ask(&["drain", &format!("web/{three}")]).status.success());
    programs[0].eventually_noted(&["announce", "withdraw"]);
    for backend in [two, three] {
        assert!(flowgate.ask(&["undrain", &format!("web/{backend}")]).status.success());
    }
    let again = ["announce", "withdraw", "announce"];
    programs.iter().for_each(|program| program.eventually_noted(&again));

    // Whoever is told of another name hears nothing; where the listener goes, it is withdrawn.
    let renamed = dns.replace("name = \"dns\"", "name = \"resolvers\"");
    flowgate.reload(&format!("lame_duck = \"1h\"\n{renamed}{clusters}"));
    programs[1].eventually_noted(&["announce", "withdraw", "announce", "withdraw"]);
    assert_eq!(announced(&flowgate, "resolvers"), true);
    programs[0].eventually_noted(&again);
    flowgate.signal(Signal::SIGTERM);
    programs[0].eventually_noted(&["announce", "withdraw", "announce", "withdraw"]);
    flowgate.signal(Signal::SIGTERM);
    assert_eq!(flowgate.wait().code(), Some(0));
}

#[test]
fn an_upgrade_withdraws_nothing() {
    let (backend, program) = (Peer::v4(), Program::new());
    let mut flowgate = Process::run(FLOWGATE, &config("", &backend, &program.table("")));
    flowgate.address();
    program.eventually_noted(&["announce"]);
    flowgate.upgrade(&[]);
    program.eventually_noted(&["announce", "announce"]);
}

/// Answers as bird does, and notes the commands.
fn fake_bird(path: &Path, answers: &'static [&'static str]) -> Receiver<String> {
    let listener = UnixListener::bind(path).expect("a socket");
    let (sender, commands) = channel();
    std::thread::spawn(move || {
        for answer in answers {
            let Ok((mut stream, _)) = listener.accept() else { return };
            stream.write_all(b"0001 BIRD 2.0.12 ready.\n").expect("written");
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a command");
            stream.write_all(answer.as_bytes()).expect("written");
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    commands
}

#[test]
fn bird_is_told_by_its_socket_and_told_again_when_it_refuses() {
    let (backend, scratch) = (Peer::v4(), Scratch::new("bird"));
    let path = scratch.path().join("bird.ctl");
    let answers = &[
        "8003 No protocols match\n",
        "0011-anycast: enabled\n0000 \n",
        "0009-anycast: disabled\n0000 \n",
    ];
    let commands = fake_bird(&path, answers);
    let table = format!(
        "[announce]\nrise = 1\ninterval = \"100ms\"\n\
         bird = {{ socket = {path:?}, protocol = \"anycast\" }}"
    );
    let mut flowgate = Process::run(FLOWGATE, &config("lame_duck = \"1h\"", &backend, &table));
    flowgate.address();
    let next = || commands.recv_timeout(PATIENCE).expect("a command");
    assert_eq!(next(), "enable \"anycast\"\n");
    flowgate.line("cannot be announced yet: bird says \"No protocols match\"");
    assert_eq!(next(), "enable \"anycast\"\n");
    eventually("it is announced", || {
        let status = flowgate.ask_json(&["status"]);
        (status["announce"]["announced"] == true).then_some(())
    });
    flowgate.signal(Signal::SIGTERM);
    assert_eq!(next(), "disable \"anycast\"\n");
}

#[test]
fn exabgp_reads_its_commands_from_standard_output() {
    let backend = Peer::v4();
    let routes = "exabgp = { routes = [\"192.0.2.53\", \"2001:db8::/48\"] }";
    let scratch = Scratch::new("exabgp");
    let toml = config(
        "lame_duck = \"50ms\"\ndrain_timeout = \"0s\"",
        &backend,
        &format!(
            "[admin]\nsocket = {:?}\n[announce]\nrise = 1\n{routes}",
            scratch.path().join("socket")
        ),
    );
    let file = ConfigFile::new(&toml);
    let mut child = Command::new(FLOWGATE)
        .args(["run", file.path()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child process");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = || lines.next().expect("a line").expect("a line");
    assert_eq!(next(), "announce route 192.0.2.53/32 next-hop self");
    assert_eq!(next(), "announce route 2001:db8::/48 next-hop self");
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, Signal::SIGTERM).expect("it runs");
    assert_eq!(next(), "withdraw route 192.0.2.53/32 next-hop self");
    assert_eq!(next(), "withdraw route 2001:db8::/48 next-hop self");
    assert_eq!(child.wait().expect("a child").code(), Some(0));
}

#[test]
fn instances_that_place_clients_alike_have_one_fingerprint() {
    let (one, two) = (Peer::v4(), Peer::v4());
    let fingerprint = |backends: &[&Peer], more: &str| {
        let toml = simple_config("127.0.0.1:0", backends, more);
        let mut flowgate = Process::run(FLOWGATE, &toml);
        flowgate.address();
        let status = flowgate.ask_json(&["status"]);
        status["clusters"][0]["fingerprint"].as_str().expect("a fingerprint").to_owned()
    };
    let reference = fingerprint(&[&one, &two], "");
    assert_eq!(reference.len(), 13);
    assert_eq!(fingerprint(&[&two, &one], "idle_timeout = \"7s\""), reference);
    assert_ne!(fingerprint(&[&one], ""), reference);
    assert_ne!(fingerprint(&[&one, &two], "balance = \"maglev\""), reference);
}
