//! The kernel path under load, while all that may happen to it happens again and again: reloads,
//! backends that go and come, routes that change, upgrades, kills.

use std::net::{SocketAddr, TcpListener};

use flowgate_core::random::Random;
use flowgate_tests::e2e::eventually;
use flowgate_tests::process::{Process, runs};
use nix::sys::signal::Signal;

use super::load::{ANSWERS, ANYTHING, Control, Load, NOTHING};
use super::{Network, by_kernel, listener, number};

const CLIENTS: usize = 12;

/// How many things happen in each test. `FLOWGATE_CYCLES=1000` makes more of them.
fn cycles() -> usize {
    std::env::var("FLOWGATE_CYCLES").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

struct Scene<'a> {
    network: &'a Network,
    process: Option<Process>,
    control: &'a Control,
    listen: &'a str,
    backends: [&'a str; 2],
    /// What tells whether a backend is up.
    probes: [Option<TcpListener>; 2],
    /// Which backends the configuration has, and whether the kernel may forward.
    has: [bool; 2],
    is_on: bool,
    version: u32,
    /// What had arrived when this process began.
    base: [u64; 2],
    /// How often a datagram may have been overtaken, as former processes counted.
    overtaken: u64,
}

impl Scene<'_> {
    fn toml(&self) -> String {
        let (listen, mode) = (self.listen, if self.is_on { "tc" } else { "off" });
        let backends: Vec<_> =
            self.backends.iter().zip(self.has).filter_map(|(b, has)| has.then_some(b)).collect();
        let timeout = 60 + self.version;
        format!(
            "workers = 2\n[[listener]]\nname = \"it\"\naddress = {listen:?}\ncluster = \"test\"\n\
             fast_path = \"{mode}\"\n[cluster.test]\nbackends = {backends:?}\n\
             idle_timeout = \"{timeout}s\"\n[cluster.test.health]\nprobe = \"tcp\"\n\
             interval = \"100ms\"\ntimeout = \"100ms\"\nfall = 1\nrise = 1\n"
        )
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("a process")
    }

    fn reload(&mut self) {
        self.version += 1;
        self.process().reload(&self.toml());
    }

    /// Goes over to other backends. What they owe their clients then may be lost.
    fn change_backends(&mut self, has: [bool; 2]) {
        self.control.excuse(ANSWERS);
        self.has = has;
        self.reload();
        self.control.excuse(NOTHING);
    }

    fn probe(&self, place: usize) -> TcpListener {
        let address: SocketAddr = self.backends[place].parse().expect("an address");
        self.network
            .backend
            .inside(|| eventually("the port is free", || TcpListener::bind(address).ok()))
    }

    fn until_state(&self, place: usize, state: &str) {
        eventually("its probes tell", || {
            let status = self.process().ask_json(&["status"]);
            let all = status["clusters"][0]["backends"].as_array().cloned().unwrap_or_default();
            let its = all.iter().find(|backend| backend["address"] == self.backends[place])?;
            (its["state"] == state).then_some(())
        });
    }

    fn let_one_die(&mut self, place: usize) {
        self.control.excuse(ANSWERS);
        self.probes[place] = None;
        self.until_state(place, "down");
        self.control.excuse(NOTHING);
        self.until_offloaded();
        self.probes[place] = Some(self.probe(place));
        self.until_state(place, "up");
    }

    /// How often a datagram may have been overtaken, as this process counts.
    fn note_overtaken(&mut self) {
        self.overtaken += number(&listener(self.process())["fast_path"]["overtaken"]);
    }

    fn kill(&mut self) {
        self.note_overtaken();
        self.control.excuse(ANYTHING);
        let mut process = self.process.take().expect("a process");
        let pid = process.pid();
        process.signal(Signal::SIGKILL);
        process.wait();
        eventually("it has ended", || (!runs(pid)).then_some(()));
        self.control.pause();
        self.base = self.control.arrived();
        self.process = Some(self.network.run(&self.toml()));
        self.until_state(0, "up");
        self.until_state(1, "up");
        self.control.excuse(NOTHING);
        self.control.resume();
    }

    /// What concerns no flow.
    fn change_routes(&self) {
        let balancer = &self.network.balancer;
        balancer.ip("route add 10.77.0.0/16 via 10.9.0.2");
        balancer.ip("route delete 10.77.0.0/16");
    }

    fn happen(&mut self, what: u64, random: &mut Random) {
        match what {
            0 => self.reload(),
            1 => {
                let one = random.below(2) as usize;
                self.change_backends([one == 0, one == 1]);
                self.until_offloaded();
                self.change_backends([true; 2]);
            }
            2 => self.let_one_die(random.below(2) as usize),
            3 => {
                self.is_on = false;
                self.reload();
                self.is_on = true;
                self.reload();
            }
            4 => self.change_routes(),
            5 => {
                self.note_overtaken();
                self.process.as_mut().expect("a process").upgrade(&[]);
            }
            _ => self.kill(),
        }
    }

    /// Waits until the kernel forwards some datagrams more, both ways.
    fn until_offloaded(&self) {
        let before = by_kernel(&listener(self.process()));
        eventually("the kernel forwards", || {
            let now = by_kernel(&listener(self.process()));
            (now.0 > before.0 + 100 && now.1 > before.1 + 100).then_some(())
        });
    }

    /// All that was counted has arrived, and all that has arrived was counted.
    fn assert_ledger(&self) {
        self.control.pause();
        let counts = || {
            let listener = listener(self.process());
            let of = |direction: &str| {
                let ledger = &listener[direction];
                ["received", "forwarded"].map(|part| number(&ledger[part]["datagrams"]))
            };
            (of("to_backend"), of("to_client")[1])
        };
        let arrived = || {
            let now = self.control.arrived();
            (now[0] - self.base[0], now[1] - self.base[1])
        };
        let is_exact = || {
            let (to_backend, to_client) = counts();
            (to_backend == [arrived().0; 2] && to_client == arrived().1).then_some(())
        };
        eventually(&format!("{:?} counted, {:?} arrived", counts(), arrived()), is_exact);
        self.control.resume();
    }
}

fn churn(listen: &str, client: &str, backends: [&str; 2], seed: u64) {
    let Some(network) = Network::new() else { return };
    let peers = backends.map(|address| network.backend(address)).into();
    let clients = (0..CLIENTS).map(|_| network.client(client)).collect();
    let load = Load::new(clients, peers, listen.parse().expect("an address"), seed);
    let control = Control::default();
    std::thread::scope(|scope| {
        let mut scene = Scene {
            network: &network,
            process: None,
            control: &control,
            listen,
            backends,
            probes: [None, None],
            has: [true; 2],
            is_on: true,
            version: 0,
            base: [0; 2],
            overtaken: 0,
        };
        scene.probes = [0, 1].map(|place| Some(scene.probe(place)));
        scene.process = Some(network.run(&scene.toml()));
        let load = scope.spawn(|| load.run(&control));
        let mut random = Random::new(seed);
        // Each once, then as it comes.
        let chosen = (0..7).chain(std::iter::from_fn(|| Some(random.below(6))));
        let chosen: Vec<u64> = chosen.take(cycles()).collect();
        for (cycle, what) in chosen.into_iter().enumerate() {
            assert!(!load.is_finished(), "the load has failed before {cycle}, {what}");
            scene.until_offloaded();
            scene.happen(what, &mut Random::new(seed + cycle as u64));
            scene.assert_ledger();
        }
        scene.note_overtaken();
        control.stop();
        load.join().expect("nothing is lost");
        let reordered = control.reordered.load(std::sync::atomic::Ordering::SeqCst);
        assert!(reordered <= scene.overtaken, "{reordered} late, {} counted", scene.overtaken);
    });
}

#[test]
fn whatever_happens_every_datagram_arrives_once_and_in_order() {
    churn("10.8.0.1:7000", "10.8.0.2:0", ["10.9.0.2:9001", "10.9.0.2:9002"], 1);
}

#[test]
fn so_do_those_of_ipv6() {
    churn("[fd08::1]:7000", "[fd08::2]:0", ["[fd09::2]:9001", "[fd09::2]:9002"], 2);
}
