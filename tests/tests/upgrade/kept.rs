//! The service manager keeps the sockets while no process runs.

use std::net::SocketAddr;

use flowgate_tests::e2e::{Peer, own_address};
use flowgate_tests::process::{ConfigFile, output};
use flowgate_tests::service_manager::{Service, ServiceManager};
use nix::sys::signal::Signal;

use super::FLOWGATE;

const ACTIVATOR: &str = env!("CARGO_BIN_EXE_flowgate-activator");

struct Scene {
    manager: ServiceManager,
    config: ConfigFile,
    backends: [Peer; 3],
    clients: Vec<Peer>,
    address: Option<SocketAddr>,
}

impl Scene {
    fn new(workers: usize, room: usize) -> Self {
        let backends = [(); 3].map(|()| Peer::v4());
        let addresses = backends.each_ref().map(|backend| backend.address().to_string());
        // A listener that is kept is found by its address, so that the kernel cannot choose one again.
        let free = own_address();
        let config = ConfigFile::new("");
        config.rewrite(&format!(
            "workers = {workers}\n[admin]\nsocket = \"{}.sock\"\n\
             [[listener]]\naddress = \"{free}\"\ncluster = \"test\"\n\
             [cluster.test]\nbackends = {addresses:?}\nbalance = \"rendezvous\"\n\
             affinity = \"source-ip-port\"\n",
            config.path()
        ));
        let manager = ServiceManager::new(ACTIVATOR, room);
        let clients = (0..8).map(|_| Peer::v4()).collect();
        Self { manager, config, backends, clients, address: Some(free) }
    }

    fn start(&mut self) -> Service {
        let service = self.manager.start(FLOWGATE, &["run", self.config.path()]);
        self.manager.hear_until("READY=1");
        service
    }

    fn send(&self) {
        let address = self.address.expect("an address");
        self.clients.iter().for_each(|client| client.send_to(b"question", address));
    }

    /// Has the backends answer what every client has asked, and says which was asked from where.
    fn answer(&self) -> Vec<(usize, SocketAddr)> {
        let answer = |client: &Peer| {
            let (index, question) = flowgate_tests::e2e::eventually("a backend is asked", || {
                let heard =
                    |(index, backend): (usize, &Peer)| Some((index, backend.receive_soon()?));
                self.backends.iter().enumerate().find_map(heard)
            });
            self.backends[index].send_to(b"answer", question.from);
            let _ = client;
            (index, question.from)
        };
        let mut asked: Vec<_> = self.clients.iter().map(answer).collect();
        for client in &self.clients {
            assert_eq!(client.receive().bytes, b"answer");
        }
        asked.sort_unstable();
        asked
    }

    fn figures(&self) -> serde_json::Value {
        let socket = format!("{}.sock", self.config.path());
        let answer = output(FLOWGATE, &["status", "--json", "--socket", &socket]);
        serde_json::from_slice(&answer.stdout).expect("JSON")
    }
}

#[test]
fn a_restart_keeps_flows_their_ports_and_what_came_meanwhile() {
    for workers in [1, 2] {
        let mut scene = Scene::new(workers, 1_000);
        let mut first = scene.start();
        scene.manager.hear_until("FDNAME=f");
        assert_eq!(scene.manager.keeps("listener"), workers);
        scene.send();
        let before = scene.answer();
        first.signal(Signal::SIGTERM);
        scene.manager.hear_until("BARRIER=1");
        assert!(first.wait().success());
        assert_eq!((scene.manager.keeps("f"), scene.manager.keeps("snapshot")), (8, 1));

        // Nobody runs.
        scene.send();
        let _second = scene.start();
        assert_eq!(scene.answer(), before);
        let figures = scene.figures();
        assert_eq!(figures["counters"]["flows_opened"], 8);
        assert_eq!(figures["counters"]["datagrams_forwarded"]["to_client"], 16);
        scene.manager.hear_until("FDNAME=f");
        assert_eq!((scene.manager.keeps("f"), scene.manager.keeps("snapshot")), (0, 0));
        assert_eq!(scene.manager.keeps("listener"), workers);
    }
}

#[test]
fn a_crash_keeps_the_listeners_and_hashing_finds_the_backends_again() {
    let mut scene = Scene::new(2, 1_000);
    let mut first = scene.start();
    scene.manager.hear_until("FDNAME=f");
    scene.send();
    let before = scene.answer();
    first.signal(Signal::SIGKILL);
    first.wait();

    scene.send();
    let _second = scene.start();
    let indices = |asked: &[(usize, SocketAddr)]| asked.iter().map(|(p, _)| *p).collect::<Vec<_>>();
    assert_eq!(indices(&scene.answer()), indices(&before));
}

#[test]
fn where_the_service_manager_has_no_room_for_all_a_stop_drains() {
    let mut scene = Scene::new(1, 5);
    let mut first = scene.start();
    scene.send();
    scene.answer();
    first.signal(Signal::SIGTERM);
    scene.manager.hear_until("STOPPING=1");
    first.signal(Signal::SIGTERM);
    assert!(first.wait().success());
    assert_eq!(scene.manager.keeps("f"), 0);
}
