//! The kernel path under load, while all that may happen to it happens again and again: reloads,
//! backends that go and come, routes that change, upgrades, kills.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use flowgate_core::random::Random;
use flowgate_tests::e2e::eventually;
use flowgate_tests::process::{Process, runs};
use nix::sys::signal::Signal;
use serde_json::Value;

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
    /// What tells whether a backend is up: what connects is taken now and then, so that more can.
    probes: [Option<TcpListener>; 2],
    /// Which backends the configuration has, and whether the kernel may forward.
    has: [bool; 2],
    is_on: bool,
    version: u32,
    /// What had arrived when this process began.
    base: [u64; 2],
    /// How often a datagram may have been overtaken, as processes counted that were killed.
    overtaken: u64,
    /// What was counted before the last thing that happened.
    before: Figures,
}

/// By names.
type Figures = BTreeMap<String, u64>;

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
             interval = \"100ms\"\ntimeout = \"100ms\"\nfall = 5\nrise = 1\n"
        )
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("a process")
    }

    fn reload(&mut self) {
        self.version += 1;
        self.note(format!("a reload: {:?}, {}", self.has, self.is_on));
        self.process().reload(&self.toml());
        self.note("the acknowledgement of a reload");
    }

    fn note(&self, what: impl Into<String>) {
        self.control.note(what.into());
    }

    /// Goes over to other backends. What they owe their clients then may be lost.
    fn change_backends(&mut self, has: [bool; 2]) {
        self.control.excuse(ANSWERS);
        self.has = has;
        for index in (0..has.len()).filter(|&index| has[index]) {
            self.control.set_gone(index, false);
        }
        self.reload();
        for index in (0..has.len()).filter(|&index| !has[index]) {
            self.control.set_gone(index, true);
        }
        self.control.excuse(NOTHING);
    }

    fn probe(&self, index: usize) -> TcpListener {
        let address: SocketAddr = self.backends[index].parse().expect("an address");
        let listener = self
            .network
            .backend
            .inside(|| eventually("the port is free", || TcpListener::bind(address).ok()));
        listener.set_nonblocking(true).expect("a socket that does not block");
        listener
    }

    fn answer_probes(&self) {
        for probe in self.probes.iter().flatten() {
            while probe.accept().is_ok() {}
        }
    }

    fn until_state(&self, index: usize, state: &str) {
        eventually("its probes tell", || {
            self.answer_probes();
            let status = self.process().ask_json(&["status"]);
            let all = status["clusters"][0]["backends"].as_array().cloned().unwrap_or_default();
            let its = all.iter().find(|backend| backend["address"] == self.backends[index])?;
            (its["state"] == state).then_some(())
        });
        self.note(format!("backend {index} is {state}"));
    }

    fn let_one_die(&mut self, index: usize) {
        self.control.excuse(ANSWERS);
        self.note(format!("backend {index} dies"));
        self.probes[index] = None;
        self.until_state(index, "down");
        self.control.set_gone(index, true);
        self.control.excuse(NOTHING);
        self.until_offloaded();
        self.control.set_gone(index, false);
        self.probes[index] = Some(self.probe(index));
        self.until_state(index, "up");
    }

    /// How often a datagram may have been overtaken, as this process and those before it count.
    fn note_overtaken(&mut self) {
        self.overtaken += number(&listener(self.process())["fast_path"]["overtaken"]);
    }

    fn kill(&mut self) {
        self.note_overtaken();
        self.control.excuse(ANYTHING);
        self.note("kill -9");
        let mut process = self.process.take().expect("a process");
        let pid = process.pid();
        process.signal(Signal::SIGKILL);
        process.wait();
        eventually("it has ended", || (!runs(pid)).then_some(()));
        self.pause();
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
        self.note("a change of routes");
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
                self.note("an upgrade");
                self.process.as_mut().expect("a process").upgrade(&[]);
                self.note("the end of an upgrade");
            }
            _ => self.kill(),
        }
    }

    /// Waits until the kernel forwards some datagrams more, both ways.
    fn until_offloaded(&self) {
        let before = by_kernel(&listener(self.process()));
        eventually("the kernel forwards", || {
            self.answer_probes();
            let listener = listener(self.process());
            assert_balance(&listener);
            let now = by_kernel(&listener);
            (now.0 > before.0 + 100 && now.1 > before.1 + 100).then_some(())
        });
        self.note("the kernel forwards");
    }

    /// What has been counted: by the process, and by the kernel in each namespace.
    fn figures(&self) -> Figures {
        let mut all = Figures::new();
        let status = self.process().ask_json(&["status"]);
        numbers("listener", &status["listeners"][0], &mut all);
        numbers("backends", &status["clusters"][0]["backends"], &mut all);
        let Network { client, balancer, backend } = self.network;
        for (name, namespace) in [("client", client), ("balancer", balancer), ("backend", backend)]
        {
            let said = namespace.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp6"));
            for line in said.unwrap_or_default().lines() {
                let mut words = line.split_whitespace();
                if let (Some(key), Some(Ok(number))) = (words.next(), words.next().map(str::parse))
                {
                    all.insert(format!("{name}: {key}"), number);
                }
            }
        }
        all
    }

    /// Nothing more is sent, and all has arrived that must.
    #[track_caller]
    fn pause(&self) {
        let Err(lost) = self.control.pause() else { return };
        let moved = |(name, now): (String, u64)| {
            let before = self.before.get(&name).copied().unwrap_or_default();
            (now != before).then(|| format!("{name}: {before} -> {now}"))
        };
        let moved: Vec<String> = self.figures().into_iter().filter_map(moved).collect();
        panic!("{lost}\nsince the last thing that happened:\n{}", moved.join("\n"));
    }

    /// All that was counted has arrived, and all that has arrived was counted.
    fn assert_ledger(&self) {
        self.pause();
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

/// Whatever has come was sent on, or dropped, or waits, whenever one asks.
fn assert_balance(listener: &Value) {
    for direction in ["to_backend", "to_client"] {
        let ledger = &listener[direction];
        let reasons = ledger["dropped"].as_object().expect("reasons");
        let dropped = reasons.values().map(|dropped| number(&dropped["datagrams"])).sum::<u64>();
        let of = |part: &str| number(&ledger[part]["datagrams"]);
        let sum = of("forwarded") + of("queued") + dropped;
        assert_eq!(of("received"), sum, "{direction}: {ledger:#}");
    }
}

/// All numbers of a document, by their places in it.
fn numbers(name: &str, value: &Value, all: &mut Figures) {
    match value {
        Value::Number(number) => all.extend(number.as_u64().map(|n| (name.to_owned(), n))),
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| numbers(&format!("{name}.{key}"), value, all));
        }
        Value::Array(items) => {
            let numbered = items.iter().enumerate();
            numbered.for_each(|(index, value)| numbers(&format!("{name}.{index}"), value, all));
        }
        _ => {}
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
            before: Figures::new(),
        };
        scene.probes = [0, 1].map(|index| Some(scene.probe(index)));
        scene.process = Some(network.run(&scene.toml()));
        let load = scope.spawn(|| load.run(&control));
        let mut random = Random::new(seed);
        // Each once, then as it comes.
        let chosen = (0..7).chain(std::iter::from_fn(|| Some(random.below(7))));
        let chosen: Vec<u64> = chosen.take(cycles()).collect();
        for (cycle, what) in chosen.into_iter().enumerate() {
            assert!(!load.is_finished(), "the load has failed before {cycle}, {what}");
            scene.until_offloaded();
            scene.before = scene.figures();
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
