//! A manager is recorded, and what was recorded is played again.

use std::sync::Arc;
use std::time::Duration;

use flowgate_core::Burst;

use super::*;
use crate::datapath::role::Role;
use crate::observe::record::{RecordFeed, RecordOptions, RecordTap, channel};
use crate::observe::tap::{Tap, Taps};
use crate::recording::file::{RecordingExtent, RecordingReader, preamble};

const BACKENDS: &str = "[\"10.0.0.1:53\", \"10.0.0.2:53\", \"10.0.0.3:53\"]";

fn config(backends: &str, more: &str) -> Config {
    let toml = format!(
        "[[listener]]\nname = \"dns\"\naddress = \"192.0.2.1:53\"\ncluster = \"c\"\n\
         [cluster.c]\nbackends = {backends}\n{more}\n"
    );
    flowgate_config::parse(&toml, "test.toml").unwrap_or_else(|e| panic!("{e}"))
}

fn manager(config: &Config) -> UdpManager {
    let listener = &config.listeners[0];
    let backends = listener.cluster.backends(|_| Vec::new());
    let config = listener.manager_config(listener.address, 60, Vec::new(), true, backends);
    UdpManager::new(config, 7, Instant::ORIGIN)
}

/// A manager that is recorded, and chance.
struct Scene {
    manager: UdpManager,
    taps: Taps,
    feed: RecordFeed,
    now: Instant,
    chance: u64,
    bytes: Vec<u8>,
}

impl Scene {
    fn new(manager: UdpManager, options: RecordOptions, seed: u64) -> Self {
        let head = RecordingHead { sample: options.sample, ..RecordingHead::default() };
        let (sender, feed) = channel(head);
        let mut taps = Taps::default();
        let options = Arc::new(options);
        taps.add(Tap::Record(RecordTap::new(options, sender, 0, "dns".into(), "c".into())));
        let (now, chance) = (Instant::from_millis(5), seed);
        Self { manager, taps, feed, now, chance, bytes: preamble() }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.chance >> 33) % below
    }

    fn tell(&mut self, input: ManagerInput<'_>) {
        let (told, mut sink) = ((input, self.now), Tally::default());
        self.taps.decide(Role::Primary, &mut self.manager, told, &mut sink, |_, _| None);
    }

    /// Something happens.
    fn step(&mut self) {
        let passed = Duration::from_micros(self.draw(300_000));
        self.now += passed;
        let payload = [9; 700];
        match self.draw(10) {
            0..=4 => {
                let client = ([198, 51, 100, self.draw(40) as u8], 4_000 + self.draw(3) as u16);
                let burst = Burst::segmented(&payload[..self.draw(700) as usize], 200).unwrap();
                self.tell(ManagerInput::Reading { is_behind: self.chance.is_multiple_of(7) });
                self.tell(ManagerInput::ClientBurst {
                    source: client.into(),
                    local: None,
                    tos: 0,
                    ttl: 64,
                    burst,
                });
            }
            5..=7 => {
                let flows: Vec<_> = self.manager.flows().map(|(id, _)| id).collect();
                if !flows.is_empty() {
                    let flow = flows[self.draw(flows.len() as u64) as usize];
                    let burst = Burst::single(&payload[..self.draw(700) as usize]).unwrap();
                    let (upstream, sender) = route_of(flow, &self.manager).expect("a flow");
                    self.tell(ManagerInput::UpstreamBurst { upstream, sender, tos: 0, burst });
                }
            }
            8 => self.tell(ManagerInput::Timeout),
            _ => {
                let backend = BackendId::new(self.draw(3) as usize);
                let is_up = self.draw(2) == 0;
                let event = if is_up { BackendEvent::Up } else { BackendEvent::Down };
                self.tell(ManagerInput::BackendChanged { backend, event });
            }
        }
        self.taps.flush();
        if self.draw(20) == 0 {
            self.collect();
        }
    }

    fn collect(&mut self) {
        let more = self.feed.drain();
        self.bytes.extend(more);
    }

    fn end(mut self) -> Vec<u8> {
        let last = self.feed.end();
        self.bytes.extend(last);
        self.bytes
    }
}

const EVERYTHING: RecordOptions = RecordOptions { sample: 1.0, payload: None, anonymise: None };

fn played<'c>(bytes: &[u8], mut player: Player<'c>) -> (Player<'c>, RecordingExtent) {
    let mut reader = RecordingReader::new(bytes).unwrap();
    while let Some(block) = reader.next_block().unwrap() {
        player.play(block).unwrap();
    }
    let extent = reader.extent();
    (player, extent)
}

#[test]
fn what_is_decided_again_is_what_was_decided() {
    for (seed, more) in [
        (1, "responses = 1"),
        (2, "balance = \"round-robin\"\non_backend_down = \"close\"\nidle_timeout = \"2s\""),
        (3, "balance = \"random\"\nrequests = 2\n[cluster.c.limits]\nflows_per_source = 2"),
        (4, "balance = \"least-flows\"\nupstream = \"shared\"\nresponses = 1"),
    ] {
        let mut before = Scene::new(manager(&config(BACKENDS, more)), EVERYTHING, seed);
        (0..300).for_each(|_| before.step());
        // A recording may begin at any time.
        let mut scene = Scene::new(before.manager, EVERYTHING, seed);
        scene.now = before.now;
        let at_start = scene.manager.counters().clone();
        (0..2_000).for_each(|_| scene.step());
        let counters = scene.manager.counters().clone();
        let (player, extent) = played(&scene.end(), Player::as_recorded());
        assert_eq!(extent, RecordingExtent::Whole, "{more}");
        let report = player.report();
        assert_eq!(report.first_difference, None, "{more}");
        assert!(report.blocks_compared > 10 && report.left_out == 0, "{report:?}");
        assert_eq!(report.flows_opened, counters.flows_opened - at_start.flows_opened, "{more}");
        let closed: u64 =
            counters.flows_closed.iter().sum::<u64>() - at_start.flows_closed.iter().sum::<u64>();
        assert_eq!(report.flows_closed.values().sum::<u64>(), closed, "{more}");
        // Second by second, what was dropped and why is as much as in all.
        let mut by_second = BTreeMap::<String, u64>::new();
        for (reason, count) in report.timeline.values().flat_map(|stretch| &stretch.dropped_by) {
            *by_second.entry((*reason).to_owned()).or_default() += count;
        }
        assert_eq!(by_second, report.dropped, "{more}");
        let is_limited = more.contains("flows_per_source");
        assert!(!is_limited || by_second.contains_key("source_flows"), "{by_second:?}");
    }
}

#[test]
fn a_core_that_decides_otherwise_is_found() {
    let mut scene = Scene::new(manager(&config(BACKENDS, "")), EVERYTHING, 5);
    (0..200).for_each(|_| scene.step());
    let bytes = scene.end();
    let mut reader = RecordingReader::new(&bytes[..]).unwrap();
    let mut player = Player::as_recorded();
    while let Some(mut block) = reader.next_block().unwrap() {
        if let RecordingBlock::Inputs { outputs, .. } = &mut block {
            *outputs ^= 1;
        }
        player.play(block).unwrap();
    }
    assert_eq!(player.report().first_difference.as_deref(), Some("dns, block 1"));
}

#[test]
fn a_recording_that_is_cut_is_read_up_to_the_cut() {
    let mut scene = Scene::new(manager(&config(BACKENDS, "")), EVERYTHING, 6);
    (0..60).for_each(|_| scene.step());
    let bytes = scene.end();
    let (whole, _) = played(&bytes, Player::as_recorded());
    let whole = whole.report();
    let mut most = 0;
    for at in (10..bytes.len()).rev().step_by(11).collect::<Vec<_>>().into_iter().rev() {
        let (player, extent) = played(&bytes[..at], Player::as_recorded());
        let report = player.report();
        assert!(report.first_difference.is_none() && report.inputs <= whole.inputs);
        assert!(report.inputs >= most, "more bytes are not less");
        most = report.inputs;
        match extent {
            RecordingExtent::Cut(cut) => assert!(cut < at as u64),
            RecordingExtent::Whole => {}
            RecordingExtent::Damaged(_) => panic!("a cut is no damage"),
        }
    }
    // The last cut leaves out a part of the block that says that it is the end.
    assert_eq!(most, whole.inputs);
}

#[test]
fn damage_is_found_wherever_it_is() {
    let mut scene = Scene::new(manager(&config(BACKENDS, "")), EVERYTHING, 8);
    (0..30).for_each(|_| scene.step());
    let bytes = scene.end();
    for at in (10..bytes.len()).step_by(11) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let (player, extent) = played(&damaged, Player::as_recorded());
        assert_ne!(extent, RecordingExtent::Whole, "byte {at}");
        assert_eq!(player.report().first_difference, None, "what is damaged is not played");
    }
}

#[test]
fn of_a_sample_whole_clients_are_there_and_anonymous_ones_are_others() {
    for options in [
        RecordOptions { sample: 0.4, ..EVERYTHING },
        RecordOptions { anonymise: Some([1, 2]), ..EVERYTHING },
    ] {
        let (is_sample, is_anonymous) = (options.sample < 1.0, options.anonymise.is_some());
        let mut scene = Scene::new(manager(&config(BACKENDS, "")), options, 9);
        (0..1_000).for_each(|_| scene.step());
        let opened = scene.manager.counters().flows_opened;
        let (player, _) = played(&scene.end(), Player::with(None));
        let clients: Vec<_> = player.destinations().into_keys().map(|(_, client)| client).collect();
        let of_ours = |client: &&SocketAddr| client.ip().to_string().starts_with("198.51.100.");
        let ours = clients.iter().filter(of_ours).count();
        assert_eq!(if is_anonymous { 0 } else { clients.len() }, ours);
        let report = player.report();
        assert!(report.flows_opened > 0 && report.blocks_compared == 0, "{report:?}");
        assert!(!is_sample || report.flows_opened < opened * 8 / 10, "{report:?}");
    }
}

#[test]
fn by_another_configuration_clients_of_a_backend_that_is_gone_go_elsewhere() {
    let old = config(BACKENDS, "");
    let new = config("[\"10.0.0.1:53\", \"10.0.0.2:53\"]", "");
    let mut scene = Scene::new(manager(&old), EVERYTHING, 10);
    (0..1_000).for_each(|_| scene.step());
    let bytes = scene.end();
    let (by_old, _) = played(&bytes, Player::with(None));
    let (by_new, _) = played(&bytes, Player::with(Some(&new)));
    let address: SocketAddr = "10.0.0.3:53".parse().unwrap();
    let third = Some(address);
    assert!(by_old.destinations().values().any(|backend| *backend == third));
    assert!(by_new.destinations().values().all(|backend| *backend != third));
    assert_eq!(by_new.report().backends[&address], BackendShare::default());
}

#[test]
fn a_reload_while_a_share_is_recorded_counts_unless_another_configuration_does() {
    let fewer = config("[\"10.0.0.1:53\", \"10.0.0.2:53\"]", "");
    let options = RecordOptions { sample: 0.5, ..EVERYTHING };
    let mut scene = Scene::new(manager(&config(BACKENDS, "")), options, 13);
    (0..300).for_each(|_| scene.step());
    let told = reconfigured(scene.manager.config(), &fewer.listeners[0]);
    scene.tell(ManagerInput::Configured(&PreparedConfig::new(told)));
    (0..1_000).for_each(|_| scene.step());
    let bytes = scene.end();
    let third: SocketAddr = "10.0.0.3:53".parse().unwrap();
    let is_third = |backend: &Option<SocketAddr>| *backend == Some(third);
    let (player, _) = played(&bytes, Player::with(None));
    assert!(!player.destinations().values().any(is_third));
    let all = config(BACKENDS, "");
    let (player, _) = played(&bytes, Player::with(Some(&all)));
    assert!(player.destinations().values().any(is_third));
}

#[test]
fn where_a_shard_sent_is_known_after_it_began_again() {
    let bytes = |steps: u32| {
        let mut scene = Scene::new(manager(&config(BACKENDS, "")), EVERYTHING, 14);
        (0..steps).for_each(|_| scene.step());
        scene.end()
    };
    let (player, _) = played(&bytes(200), Player::with(None));
    let before = player.destinations();
    let (player, _) = played(&bytes(3), player);
    assert!(before.len() > 3);
    assert_eq!(player.destinations().len(), before.len());
}

#[test]
fn a_listener_of_many_ports_is_played_at_each_of_them() {
    let ports = flowgate_config::parse(
        "[[listener]]\naddress = \"192.0.2.1:5000-5009\"\nbackend_port = \"same\"\ncluster = \"c\"\n\
         [cluster.c]\nbackends = [\"10.0.0.1:53\", \"10.0.0.2:53\"]\n",
        "test.toml",
    );
    let ports = ports.unwrap_or_else(|e| panic!("{e}"));
    let listener = &ports.listeners[0];
    let at = |address: &str| address.parse::<SocketAddr>().unwrap();
    let backends = ["10.0.0.1:5007", "10.0.0.2:5007"].map(|b| BackendConfig::new(at(b)));
    let of_port =
        listener.manager_config(at("192.0.2.1:5007"), 9, Vec::new(), false, backends.to_vec());
    assert_eq!(reconfigured(&of_port, listener).cluster.backends, backends);
}

#[test]
fn a_listener_that_another_configuration_lacks_is_left_out_with_one_note() {
    let bytes = || {
        let mut scene = Scene::new(manager(&config(BACKENDS, "")), EVERYTHING, 12);
        (0..100).for_each(|_| scene.step());
        scene.end()
    };
    let new = flowgate_config::parse(
        "[[listener]]\nname = \"other\"\naddress = \"192.0.2.9:53\"\ncluster = \"c\"\n\
         [cluster.c]\nbackends = [\"10.0.0.1:53\"]\n",
        "test.toml",
    );
    let new = new.unwrap_or_else(|e| panic!("{e}"));
    // As often as a shard begins again.
    let (player, _) = played(&bytes(), Player::with(Some(&new)));
    let (player, _) = played(&bytes(), player);
    assert_eq!(player.notes(), ["the configuration has no listener \"dns\": left out"]);
    assert!(player.destinations().is_empty());
    assert_eq!(player.report().inputs, 0);
}
