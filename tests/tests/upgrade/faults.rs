//! Either side dies, hangs, lies or refuses at every step: one process serves afterwards, and the
//! flows are as they were.

use std::net::SocketAddr;

use flowgate_tests::e2e::{Peer, eventually};
use flowgate_tests::process::{Process, output, runs};
use nix::unistd::Pid;

use super::FLOWGATE;

const SABOTEUR: &str = env!("CARGO_BIN_EXE_flowgate-saboteur");

/// How many clients there are.
const CLIENTS: usize = 8;

/// A process that has flows, and a process that takes over from it and plays false.
struct Scene {
    flowgate: Process,
    address: SocketAddr,
    backends: [Peer; 3],
    clients: Vec<Peer>,
}

/// Which backend answered a client, and who asked it.
type Paths = Vec<(usize, SocketAddr)>;

impl Scene {
    fn new(sabotage: &str) -> Self {
        let backends = [(); 3].map(|()| Peer::v4());
        let addresses = backends.each_ref().map(|backend| backend.address().to_string());
        let toml = format!(
            "[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\ncluster = \"test\"\n\
             [cluster.test]\nbackends = {addresses:?}\nbalance = \"rendezvous\"\n\
             affinity = \"source-ip-port\"\n"
        );
        let environment = [("SABOTAGE", sabotage), ("SABOTAGE_PROGRAM", FLOWGATE)];
        let mut flowgate = Process::run_with(FLOWGATE, &toml, &environment);
        let address = flowgate.address();
        let clients = (0..CLIENTS).map(|_| Peer::v4()).collect();
        Self { flowgate, address, backends, clients }
    }

    /// Has every client ask, and the backend that it finds answer.
    fn ask(&self) -> Paths {
        let ask = |client: &Peer| {
            client.send_to(b"question", self.address);
            let found = eventually("a backend is asked", || {
                let heard =
                    |(index, backend): (usize, &Peer)| Some((index, backend.receive_soon()?));
                self.backends.iter().enumerate().find_map(heard)
            });
            let (index, question) = found;
            assert_eq!(question.bytes, b"question");
            self.backends[index].send_to(b"answer", question.from);
            assert_eq!(client.receive().bytes, b"answer");
            (index, question.from)
        };
        self.clients.iter().map(ask).collect()
    }

    /// Has the saboteur take over, and says what came of it.
    fn upgrade(&self) -> String {
        let output = self.flowgate.ask(&["upgrade", "--binary", SABOTEUR]);
        assert!(!output.status.success(), "it took over");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn indices(paths: &Paths) -> Vec<usize> {
    paths.iter().map(|(index, _)| *index).collect()
}

/// The old process goes on as if nothing had been, and a good successor takes over from it later.
fn the_old_one_goes_on(sabotage: &str, complaint: &str) {
    let mut scene = Scene::new(sabotage);
    let before = scene.ask();
    let said = scene.upgrade();
    assert!(said.contains(complaint), "{sabotage}: {said}");
    assert!(scene.flowgate.is_running(), "{sabotage}");
    assert_eq!(scene.ask(), before, "{sabotage}");

    scene.flowgate.upgrade(&["--binary", FLOWGATE]);
    assert_eq!(scene.ask(), before, "{sabotage}");
    let status = scene.flowgate.ask_json(&["status"]);
    assert_eq!(status["counters"]["flows_opened"], CLIENTS, "{sabotage}");
    assert_eq!(status["counters"]["datagrams_received"]["to_backend"], 3 * CLIENTS);
}

#[test]
fn a_new_process_that_ends_at_any_step_changes_nothing() {
    for word in ["hello", "ready", "read", "holding", "serving"] {
        the_old_one_goes_on(&format!("exit@{word}"), "has ended while it was to");
    }
}

#[test]
fn a_new_process_that_hangs_while_nobody_serves_changes_nothing() {
    for word in ["read", "holding", "serving"] {
        the_old_one_goes_on(&format!("hang@{word}"), "it did not answer in time");
    }
}

#[test]
fn a_new_process_that_talks_nonsense_at_any_step_changes_nothing() {
    for word in ["hello", "ready", "read", "holding", "serving"] {
        the_old_one_goes_on(&format!("garbage@{word}"), "it sent an unexpected message");
    }
}

#[test]
fn a_new_process_that_says_it_serves_before_it_may_changes_nothing() {
    for word in ["hello", "ready", "read", "holding"] {
        the_old_one_goes_on(&format!("lie@{word}"), "it sent an unexpected message");
    }
}

#[test]
fn a_new_process_that_refuses_at_any_step_changes_nothing() {
    for word in ["hello", "ready", "read", "holding", "serving"] {
        the_old_one_goes_on(&format!("refuse@{word}"), "cannot take over: not today");
    }
}

#[test]
fn a_state_that_is_damaged_or_of_a_newer_version_is_refused() {
    the_old_one_goes_on("damage@offer", "damaged");
    the_old_one_goes_on("damage@state", "damaged");
    the_old_one_goes_on("renumber@offer", "this version reads formats up to");
}

#[test]
fn a_stop_during_an_upgrade_stops_the_new_process_too() {
    let mut scene = Scene::new("hang@ready");
    std::thread::scope(|scope| {
        let socket = scene.flowgate.control_socket();
        let upgrade = scope.spawn(move || {
            output(FLOWGATE, &["upgrade", "--binary", SABOTEUR, "--socket", &socket])
        });
        let line = scene.flowgate.line("saboteur: process ");
        let pid = line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a number");
        assert!(scene.flowgate.ask(&["stop", "--now"]).status.success());
        assert!(scene.flowgate.wait().success());
        assert!(!runs(Pid::from_raw(pid)));
        assert!(!upgrade.join().expect("an answer").status.success());
    });
}

/// A script that starts the new process and waits for it, instead of becoming it.
#[test]
fn a_program_between_the_two_leaves_nothing_behind() {
    let mut scene = Scene::new("hang@read");
    let before = scene.ask();
    let wrapper = flowgate_tests::scratch::unused_path("wrapper.sh");
    let path = wrapper.to_str().expect("a plain path");
    // Nobody of this process has it open for writing when it is executed.
    let script = format!(
        "printf '#!/bin/sh\\n%s \"$@\"\\nexit $?\\n' {SABOTEUR} > {path}; chmod 755 {path}"
    );
    let written = std::process::Command::new("sh").args(["-c", &script]).status();
    assert!(written.expect("a shell").success());
    let refused = scene.flowgate.ask(&["upgrade", "--binary", path]);
    assert!(!refused.status.success());
    let line = scene.flowgate.line("saboteur: process ");
    let pid = line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a number");
    eventually("the new process is dead", || (!runs(Pid::from_raw(pid))).then_some(()));
    assert_eq!(scene.ask(), before);
    std::fs::remove_file(wrapper).expect("it is there");
}

/// The old process is killed when a word comes: the new one goes on with what it has by then.
fn the_new_one_goes_on(word: &str, has_sockets: bool) {
    let mut scene = Scene::new(&format!("kill@{word}"));
    let before = scene.ask();
    let former = scene.flowgate.pid();
    scene.upgrade();
    scene.flowgate.wait();
    scene.flowgate.follow();
    // A new process that knows nothing yet has the kernel choose a port again.
    let address = scene.flowgate.ask_json(&["status"])["listeners"][0]["address"].clone();
    scene.address = address.as_str().unwrap().parse().unwrap();
    assert_ne!(scene.flowgate.pid(), former, "{word}");
    let after = scene.ask();
    assert_eq!(indices(&after), indices(&before), "{word}");
    assert_eq!(after == before, has_sockets, "{word}");

    scene.flowgate.upgrade(&["--binary", FLOWGATE]);
    assert_eq!(scene.ask(), after, "{word}");
}

#[test]
fn an_old_process_that_dies_before_it_hands_its_sockets_over_leaves_its_flows_to_the_new_one() {
    for word in ["hello", "offer", "ready", "state", "read", "descriptors"] {
        the_new_one_goes_on(word, false);
    }
}

#[test]
fn an_old_process_that_dies_after_it_handed_its_sockets_over_leaves_all_as_it_was() {
    for word in ["holding", "yours", "serving"] {
        the_new_one_goes_on(word, true);
    }
}
