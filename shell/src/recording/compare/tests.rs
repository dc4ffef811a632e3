use flowgate_core::{
    BackendEvent, BackendId, Burst, Instant, ManagerInput, Output, PreparedConfig, UdpManager,
};
use proptest::prelude::*;

use super::*;
use crate::control::server::assign_indices;
use crate::recording::codec::InputEncoder;
use crate::recording::file::{
    RecordingBlock, RecordingReader, RecordingStart, StartState, preamble,
};
use crate::recording::player::Player;

fn config(backends: &[(u8, u32)], cluster: &str) -> Config {
    let backends: Vec<_> = backends
        .iter()
        .map(|(number, weight)| {
            format!("{{ address = \"10.0.0.{number}:53\", weight = {weight} }}")
        })
        .collect();
    parse(&format!(
        "[[listener]]\nname = \"dns\"\naddress = \"192.0.2.1:53\"\ncluster = \"c\"\n\
         [cluster.c]\nbackends = [{}]\n{cluster}\n",
        backends.join(", ")
    ))
}

fn parse(toml: &str) -> Config {
    flowgate_config::parse(toml, "test.toml").unwrap_or_else(|e| panic!("{e}"))
}

fn client(number: u8) -> SocketAddr {
    ([198, 51, 100, number], 4_000).into()
}

fn question(number: u8) -> ManagerInput<'static> {
    let (source, burst) = (client(number), Burst::single(b"question").unwrap());
    ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst }
}

/// Where the datagrams of clients go.
fn destinations(mut manager: UdpManager, clients: u8) -> BTreeMap<SocketAddr, Option<SocketAddr>> {
    let mut all = BTreeMap::new();
    for number in 0..clients {
        let mut outputs = Vec::new();
        manager.handle_input(question(number), at(number), &mut outputs);
        let sent = outputs.iter().find_map(|output| match output {
            Output::Send { flow, .. } => manager.flow(*flow),
            _ => None,
        });
        let backend = sent.and_then(|flow| manager.backends().get(flow.backend()));
        all.insert(client(number), backend.map(|backend| backend.address()));
    }
    all
}

fn at(number: u8) -> Instant {
    Instant::from_millis(1_000 + u64::from(number))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_clients_that_are_named_are_those_that_a_reload_moves(
        old in proptest::collection::btree_map(1..8_u8, 1..4_u32, 1..6),
        new in proptest::collection::btree_map(1..8_u8, 1..4_u32, 1..6),
        balance in prop_oneof![
            Just("rendezvous"), Just("maglev"), Just("round-robin"), Just("random"),
            Just("least-flows"), Just("power-of-two"),
        ],
        on_down in prop_oneof![Just("pin"), Just("rehash"), Just("close")],
        down in 0..8_usize,
    ) {
        let cluster = format!("balance = \"{balance}\"\non_backend_down = \"{on_down}\"");
        let pairs = |map: &BTreeMap<u8, u32>| map.iter().map(|(n, w)| (*n, *w)).collect::<Vec<_>>();
        let (old, new) = (config(&pairs(&old), &cluster), config(&pairs(&new), &cluster));
        let listener = &old.listeners[0];
        let backends = listener.cluster.backends(|_| Vec::new());
        let told =
            listener.manager_config(listener.address, 100, Vec::new(), false, backends.clone());
        let mut manager = UdpManager::new(told, 3, Instant::ORIGIN);
        let mut outputs = Vec::new();
        for number in 0..30 {
            let now = Instant::from_millis(number.into());
            manager.handle_input(question(number), now, &mut outputs);
        }
        if down < backends.len() {
            let (backend, event) = (BackendId::new(down), BackendEvent::Down);
            let input = ManagerInput::BackendChanged { backend, event };
            manager.handle_input(input, Instant::from_millis(50), &mut outputs);
        }

        // What the core really does: once without a reload, once with one.
        let stays = destinations(manager.clone(), 40);
        let mut reloaded = manager.clone();
        let listener = &new.listeners[0];
        let wanted = listener.cluster.backends(|_| Vec::new());
        let backend_list = assign_indices(&backends, &wanted, |_| false);
        let told = listener.manager_config(listener.address, 100, Vec::new(), false, backend_list);
        let prepared = PreparedConfig::new(told);
        reloaded.handle_input(ManagerInput::Configured(&prepared), at(0), &mut outputs);
        let closed = |outputs: &[Output<'_>]| {
            outputs.iter().filter(|output| matches!(output, Output::CloseFlow { .. })).count()
        };
        prop_assert_eq!(closed(&outputs), 0, "it sweeps by and by");
        let goes = destinations(reloaded, 40);
        let moves: Vec<_> = stays.iter().filter(|(client, to)| goes[*client] != **to).collect();

        // What is said of it.
        let mut bytes = preamble();
        let state = StartState::Whole(manager.snapshot());
        let start = RecordingStart { listener: "dns".into(), cluster: "c".into(), state };
        bytes.extend(RecordingBlock::Start(0, Box::new(start)).to_bytes());
        let mut encoder = InputEncoder::new(0);
        (0..40).for_each(|number| encoder.input(&question(number), None, at(number)));
        let inputs = RecordingBlock::Inputs { shard: 0, piece: encoder.take(), outputs: 0 };
        bytes.extend(inputs.to_bytes());
        let played = |config| {
            let mut player = Player::with(Some(config));
            let mut reader = RecordingReader::new(&bytes[..]).unwrap();
            while let Some(block) = reader.next_block().unwrap() {
                player.play(block).unwrap();
            }
            (player.destinations(), player.report())
        };
        let ((before, old_report), (after, new_report)) = (played(&old), played(&new));
        let diff = ConfigDiff::between(&old, &new)
            .with_traffic((&old_report, &before), (&new_report, &after));
        let traffic = diff.traffic.unwrap();
        let named: Vec<_> = traffic.moved.iter().map(|moved| (moved.client, moved.from)).collect();
        let expected: Vec<_> = moves.iter().map(|(client, from)| (**client, **from)).collect();
        prop_assert_eq!(named, expected);
        prop_assert_eq!(traffic.clients, 40);
    }
}

#[test]
fn the_settings_that_differ_are_named_with_both_values() {
    let old = config(&[(1, 1), (2, 1)], "idle_timeout = \"30s\"");
    let new = config(
        &[(1, 3), (3, 1)],
        "idle_timeout = \"1m\"\n[cluster.c.limits]\nflows_per_source = 20",
    );
    let diff = ConfigDiff::between(&old, &new);
    let shown = |change: &SettingChange| {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        format!("{}: {} -> {}", change.key, value(&change.old), value(&change.new))
    };
    let shown: Vec<_> = diff.settings.iter().map(shown).collect();
    assert_eq!(
        shown,
        [
            "cluster.c.backends.10.0.0.1:53: weight 1 -> weight 3",
            "cluster.c.backends.10.0.0.2:53: weight 1 -> -",
            "cluster.c.backends.10.0.0.3:53: - -> weight 1",
            "cluster.c.idle_timeout: 30s -> 1m",
            "cluster.c.limits.flows_per_source: 0 -> 20",
        ]
    );
    assert!(!diff.flows_lost && diff.refused.is_empty());
}

#[test]
fn whether_flows_are_lost_is_said() {
    let two = [(1, 1), (2, 1)];
    let base = config(&two, "");
    let becomes = |new: &Config| {
        let diff = ConfigDiff::between(&base, new);
        (diff.flows_lost, diff.reload.iter().map(|e| (e.becomes, e.flows)).collect::<Vec<_>>())
    };
    let kept = (Becomes::Kept, FlowsBecome::Kept);
    assert_eq!(becomes(&base), (false, vec![kept]));
    let removed = |flows| vec![kept, (Becomes::Removed, flows)];
    assert_eq!(becomes(&config(&two[..1], "")), (false, removed(FlowsBecome::Moved)));
    let closing = config(&two[..1], "on_backend_down = \"close\"");
    assert_eq!(becomes(&closing), (true, removed(FlowsBecome::Closed)));
    let one_way = config(&two, "mode = \"one-way\"");
    assert_eq!(becomes(&one_way), (true, vec![(Becomes::Changed, FlowsBecome::Closed)]));
    let elsewhere = parse(
        "[[listener]]\naddress = \"192.0.2.2:53\"\ncluster = \"c\"\n\
         [cluster.c]\nbackends = [\"10.0.0.1:53\"]",
    );
    let moved = vec![(Becomes::Removed, FlowsBecome::Closed), (Becomes::Added, FlowsBecome::None)];
    assert_eq!(becomes(&elsewhere), (true, moved));
    let more = parse(
        "workers = 2\n[[listener]]\naddress = \"192.0.2.1:53\"\ncluster = \"c\"\n\
                      [cluster.c]\nbackends = [\"10.0.0.1:53\"]",
    );
    assert_eq!(ConfigDiff::between(&base, &more).refused.len(), 1);
}

#[test]
fn no_setting_that_differs_is_passed_over() {
    let listener = "[[listener]]\nname = \"dns\"\naddress = \"192.0.2.1:53\"\ncluster = \"c\"\n";
    let cluster = "[cluster.c]\nbackends = [\"10.0.0.1:53\", \"10.0.0.2:53\"]\n";
    let base = parse(&format!("{listener}{cluster}"));
    assert!(ConfigDiff::between(&base, &base).is_same);
    let d = "[cluster.d]\nbackends = [\"10.0.0.3:53\"]\n";
    let bird = "[announce]\nbird = { socket = \"/run/bird.ctl\", protocol = \"a\" }\n";
    let own = bird.replace("[announce]", "[listener.announce]");
    let ports = listener.replace("192.0.2.1:53", "192.0.2.1:53-60");
    for (toml, key, value) in [
        (format!("lame_duck = \"5s\"\n{listener}{cluster}"), "lame_duck", "5s"),
        (format!("{bird}{listener}{cluster}"), "announce.bird.protocol", "a"),
        (format!("{listener}{own}{cluster}"), "listener.dns.announce.bird.protocol", "a"),
        (format!("[log]\nlevel = \"debug\"\n{listener}{cluster}"), "log.level", "debug"),
        (format!("{ports}{cluster}"), "listener.dns.address", "192.0.2.1:53-60"),
        (format!("{ports}backend_port = \"same\"\n{cluster}"), "listener.dns.backend_port", "same"),
        (format!("{listener}fast_path = \"auto\"\n{cluster}"), "listener.dns.fast_path", "auto"),
        (
            format!(
                "{listener}[[listener.route]]\nfrom = [\"10.0.0.0/8\"]\ncluster = \"d\"\n{cluster}{d}"
            ),
            "listener.dns.route.1",
            "10.0.0.0/8 -> d",
        ),
        (format!("{listener}{cluster}hold = \"1m\"\n"), "cluster.c.hold", "1m"),
        (
            format!("{listener}{cluster}return = \"direct\"\nsource = \"client\"\n"),
            "cluster.c.return",
            "direct",
        ),
        (
            format!("{listener}{cluster}balance = \"power-of-two\"\n"),
            "cluster.c.balance",
            "power-of-two",
        ),
        (
            format!(
                "{listener}{cluster}affinity = \"quic\"\n[[cluster.c.quic_lb]]\nrotation = 0\n\
                 server_id_length = 8\nnonce_length = 8\n"
            ),
            "cluster.c.quic_lb.0",
            "server_id_length 8, nonce_length 8, key_file none",
        ),
        (
            format!("{listener}{cluster}mode = \"fan-out\"\nreply_from = \"10.0.0.1:53\"\n"),
            "cluster.c.backends.10.0.0.2:53",
            "weight 1, gets copies only",
        ),
        (
            format!("{listener}{cluster}[cluster.c.health]\nprobe = \"udp\"\nsend = \"dns\"\n"),
            "cluster.c.health.send",
            "dns",
        ),
    ] {
        let diff = ConfigDiff::between(&base, &parse(&toml));
        assert!(!diff.is_same, "{toml}");
        let change = diff.settings.iter().find(|change| change.key == key);
        assert_eq!(change.and_then(|change| change.new.as_deref()), Some(value), "{toml}");
    }
}

#[test]
fn a_listener_whose_sockets_are_others_is_another() {
    let becomes = |old: &str, new: &str| {
        let of = |ports: &str| {
            parse(&format!(
                "[[listener]]\nname = \"dns\"\naddress = \"192.0.2.1:{ports}\n\
                 cluster = \"c\"\n[cluster.c]\nbackends = [\"10.0.0.1:53\"]\n"
            ))
        };
        let diff = ConfigDiff::between(&of(old), &of(new));
        (diff.flows_lost, diff.reload.iter().map(|effect| effect.becomes).collect::<Vec<_>>())
    };
    let (one, more, same) = ("53-54\"", "53-55\"", "53-54\"\nbackend_port = \"same\"");
    assert_eq!(becomes(one, one), (false, vec![Becomes::Kept]));
    assert_eq!(becomes(one, more), (true, vec![Becomes::Removed, Becomes::Added]));
    assert_eq!(becomes(one, same), (true, vec![Becomes::Removed, Becomes::Added]));
}
