//! `mirror` over real sockets: some flows are copied, and nobody but the mirror notices.

use std::collections::BTreeSet;

use flowgate_tests::e2e::{Balancer, Peer, eventually, passing_tos};
use flowgate_tests::process::Process;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");

fn toml(backend: &Peer, mirrors: &[&Peer], sample: &str, more: &str) -> String {
    let mirrors: Vec<_> = mirrors.iter().map(|peer| peer.address().to_string()).collect();
    let mirror = match sample {
        "" => String::new(),
        sample => format!("mirror = {{ cluster = \"shadow\", sample = {sample} }}"),
    };
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"main\"\n\
         [cluster.main]\nbackends = [\"{}\"]\n{mirror}\n\
         [cluster.shadow]\nbackends = {mirrors:?}\n{more}\n",
        backend.address()
    )
}

#[test]
fn a_mirrored_flow_is_copied_whole_and_the_mirrors_answers_reach_nobody() {
    let (backend, mirror, client) = (Peer::v4(), Peer::v4(), Peer::v4());
    let balancer = Balancer::start(&toml(&backend, &[&mirror], "1.0", ""));
    client.set_tos(0x28);
    for number in 0..100_u32 {
        client.send_to(&number.to_be_bytes(), balancer.address());
        let copy = mirror.answer(b"from the mirror");
        let expected = (&number.to_be_bytes()[..], passing_tos(0x28));
        assert_eq!((copy.bytes.as_slice(), copy.tos), expected);
        assert_eq!(backend.answer(b"answer").bytes, number.to_be_bytes());
        assert_eq!(client.receive().bytes, b"answer");
    }
    assert_eq!(client.receive_soon(), None);
    balancer.assert_lossless(100, 100);
    let copied = balancer.figures().mirror.expect("a mirror").counters.to_backend;
    assert_eq!((copied.received.datagrams, copied.forwarded.datagrams), (100, 100));
}

#[test]
fn a_share_of_flows_is_copied_each_of_them_to_one_backend_of_the_mirror() {
    let (backend, mirrors) = (Peer::v4(), [Peer::v4(), Peer::v4()]);
    // A session's cluster serves as a mirror as well; its flows are kept whole.
    let config = toml(&backend, &[&mirrors[0], &mirrors[1]], "0.5", "balance = \"round-robin\"");
    let balancer = Balancer::start(&config);
    let clients: Vec<_> = (0..100_u8).map(|number| (number, Peer::v4())).collect();
    for round in 0..3_u8 {
        for (number, client) in &clients {
            client.send_to(&[*number, round], balancer.address());
        }
    }
    (0..300).for_each(|_| drop(backend.receive()));
    balancer.assert_lossless(300, 0);
    let figures = balancer.figures().mirror.expect("a mirror");
    let copied = figures.counters.to_backend.forwarded.datagrams;
    let mut homes = [BTreeSet::new(), BTreeSet::new()];
    for (mirror, home) in mirrors.iter().zip(&mut homes) {
        while let Some(copy) = mirror.receive_soon() {
            assert!(home.insert((copy.bytes[0], copy.bytes[1])), "twice");
        }
    }
    assert_eq!(copied, (homes[0].len() + homes[1].len()) as u64);
    assert!((90..=210).contains(&copied), "{copied} of 300");
    for home in &homes {
        let flows: BTreeSet<_> = home.iter().map(|(client, _)| *client).collect();
        assert_eq!(home.len(), 3 * flows.len(), "a flow is copied in full or not at all");
    }
}

#[test]
fn a_mirror_that_is_dead_or_cannot_be_reached_harms_nobody() {
    let (backend, mirror) = (Peer::v4(), Peer::v4());
    let config = toml(&backend, &[&mirror], "1", "");
    // No host has this address on the loopback.
    let unreachable = mirror.address().to_string();
    for config in [config.clone(), config.replace(&unreachable, "[fe80::1%1]:9")] {
        let (balancer, client) = (Balancer::start(&config), Peer::v4());
        let answered = Peer::v4();
        drop(answered);
        for number in 0..200_u32 {
            client.send_to(&number.to_be_bytes(), balancer.address());
            assert_eq!(backend.answer(b"!").bytes, number.to_be_bytes());
            assert_eq!(client.receive().bytes, b"!");
        }
        balancer.assert_lossless(200, 200);
        let copied = balancer.figures().mirror.expect("a mirror").counters.to_backend;
        let accounted = copied.forwarded.plus(copied.dropped_total());
        assert_eq!((copied.received.datagrams, copied.received), (200, accounted));
    }
}

#[test]
fn a_mirror_comes_goes_and_fans_out_by_reload() {
    let (backend, mirrors, client) = (Peer::v4(), [Peer::v4(), Peer::v4()], Peer::v4());
    let both = [&mirrors[0], &mirrors[1]];
    let mut flowgate = Process::run(FLOWGATE, &toml(&backend, &both, "", ""));
    let address = flowgate.address();
    let ask = |client: &Peer, what: &[u8]| {
        client.send_to(what, address);
        assert_eq!(backend.answer(b"!").bytes, what);
        assert_eq!(client.receive().bytes, b"!");
    };
    ask(&client, b"alone");
    flowgate.reload(&toml(&backend, &both, "1", "mode = \"fan-out\""));
    // Whether it is copied was decided when it opened.
    ask(&client, b"still alone");
    let second = Peer::v4();
    ask(&second, b"copied");
    for mirror in &mirrors {
        assert_eq!(mirror.receive().bytes, b"copied");
    }
    let status = eventually("the copies are counted", || {
        let status = flowgate.ask_json(&["status"]);
        let mirror = &status["listeners"][0]["mirror"];
        (mirror["to_backend"]["forwarded"]["datagrams"] == 1).then(|| status.clone())
    });
    assert_eq!(status["listeners"][0]["mirror"]["cluster"], "shadow");
    assert_eq!(status["clusters"][1]["backends"][1]["datagrams_to"], 1);

    assert!(flowgate.ask(&["drain", &format!("shadow/{}", mirrors[0].address())]).status.success());
    ask(&second, b"drained");
    assert_eq!(mirrors[1].receive().bytes, b"drained");
    flowgate.reload(&toml(&backend, &both, "", ""));
    ask(&second, b"alone again");
    ask(&Peer::v4(), b"alone too");
    assert!(mirrors.iter().all(|mirror| mirror.receive_soon().is_none()));
    assert!(flowgate.ask_json(&["status"])["listeners"][0].get("mirror").is_none());
}
