//! `lame_duck` and `[announce]`.

use std::time::Duration;

use flowgate_config::{Announce, AnnounceBy};

use crate::{MINIMAL, at_top, valid};

fn announce(lines: &str) -> Announce {
    valid(&format!("{MINIMAL}\n[announce]\n{lines}")).announce.expect("announcing")
}

#[test]
fn whoever_announces_is_a_lame_duck_for_a_while_and_nobody_else_is() {
    let lame_duck = |top: &str, rest: &str| valid(&format!("{top}\n{MINIMAL}\n{rest}")).lame_duck;
    let by = "[announce]\ncommand = [\"true\"]";
    assert_eq!(lame_duck("", ""), Duration::ZERO);
    assert_eq!(lame_duck("", by), Duration::from_secs(5));
    assert_eq!(lame_duck("lame_duck = \"0s\"", by), Duration::ZERO);
    assert_eq!(lame_duck("lame_duck = \"7s\"", ""), Duration::from_secs(7));
}

#[test]
fn each_way_to_announce_is_read_with_its_defaults() {
    assert_eq!(
        announce("command = [\"/bin/sh\", \"-c\", \"true\"]"),
        Announce {
            min_backends_up: 1,
            rise: 2,
            fall: 3,
            interval: Duration::from_secs(1),
            by: AnnounceBy::Command(vec!["/bin/sh".into(), "-c".into(), "true".into()]),
        }
    );
    let lines = "min_backends_up = 3\nrise = 4\nfall = 5\ninterval = \"200ms\"\n\
                 bird = { socket = \"/run/bird.ctl\", protocol = \"any_cast*\" }";
    assert_eq!(
        announce(lines),
        Announce {
            min_backends_up: 3,
            rise: 4,
            fall: 5,
            interval: Duration::from_millis(200),
            by: AnnounceBy::Bird { socket: "/run/bird.ctl".into(), protocol: "any_cast*".into() },
        }
    );
    let routes = vec!["192.0.2.53/32".parse().unwrap(), "2001:db8::/48".parse().unwrap()];
    let lines = "exabgp = { routes = [\"192.0.2.53\", \"2001:db8::/48\"] }";
    assert_eq!(announce(lines).by, AnnounceBy::ExaBgp { routes, next_hop: "self".into() });
}

#[test]
fn what_announces_nothing_is_refused() {
    let of = |lines: &str| at_top(&format!("[announce]\n{lines}"));
    let by = "announce: found [announce]";
    for lines in ["", "rise = 2", "command = [\"a\"]\nexabgp = { routes = [\"192.0.2.1\"] }"] {
        let said = of(lines);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with(by) && said[0].contains("one of command, bird"), "{said:?}");
    }
    for (lines, key) in [
        ("command = []", "announce.command: "),
        ("command = [\"\"]", "announce.command: "),
        ("command = \"true\"", "announce.command: "),
        ("command = [\"a\"]\nrise = 0", "announce.rise: "),
        ("command = [\"a\"]\nfall = 0", "announce.fall: "),
        ("bird = { socket = \"/a\" }", "announce.bird.protocol: missing"),
        ("bird = { socket = \"/a\", protocol = \"a\\\" ; down\" }", "announce.bird.protocol: "),
        ("exabgp = { routes = [] }", "announce.exabgp.routes: "),
        ("exabgp = { routes = [\"192.0.2.1\"], next_hop = \"x\" }", "announce.exabgp.next_hop: "),
    ] {
        let said = of(lines);
        assert!(said.len() == 1 && said[0].starts_with(key), "{lines}: {said:?}");
    }
    assert_eq!(at_top("lame_duck = \"2days\"").len(), 1);
}
