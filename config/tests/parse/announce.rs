//! `lame_duck` and `[announce]`.

use std::time::Duration;

use flowgate_config::{Announce, AnnounceBy};

use crate::{MINIMAL, at_top, messages, valid, without_place};

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

/// Two listeners, the first of which routes to another cluster, with these tables of theirs.
fn two(first: &str, second: &str) -> String {
    format!(
        "[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\ncluster = \"c\"\n\
         [[listener.route]]\nfrom = [\"10.0.0.0/8\"]\ncluster = \"d\"\n{first}\n\
         [[listener]]\nname = \"b\"\naddress = \"127.0.0.1:2\"\ncluster = \"d\"\n{second}\n\
         [cluster.c]\nbackends = [\"10.0.0.1:53\"]\n[cluster.d]\nbackends = [\"10.0.0.2:53\"]\n"
    )
}

#[test]
fn a_listener_is_announced_by_itself_with_the_clusters_of_its_routes() {
    let own = "[listener.announce]\nmin_backends_up = 2\nrise = 7\ncommand = [\"a\"]";
    let config = valid(&two(own, ""));
    assert_eq!(config.lame_duck, Duration::from_secs(5));
    let announced: Vec<_> = config.announced().collect();
    let [(Some("a"), Announce { min_backends_up: 2, rise: 7, fall: 3, .. })] = announced[..] else {
        panic!("{announced:?}");
    };
    assert_eq!(config.clusters_of("a"), ["c", "d"].into());
    assert_eq!(config.clusters_of("b"), ["d"].into());
    assert!(config.listeners.iter().all(|l| l.announce.is_some() == (l.name == "a")));
    let both = format!("[announce]\ncommand = [\"b\"]\n{}", two(own, ""));
    assert_eq!(valid(&both).announced().count(), 2);
}

#[test]
fn nobody_is_told_of_two_things() {
    let exabgp = |routes: &str| format!("[listener.announce]\nexabgp = {{ routes = [{routes}] }}");
    let command = "[listener.announce]\ncommand = [\"a\", \"b\"]";
    let other = "[listener.announce]\ncommand = [\"a\", \"c\"]";
    let (one, two_routes) = (exabgp("\"192.0.2.1\""), exabgp("\"192.0.2.2\", \"192.0.2.1\""));
    valid(&two(command, other));
    valid(&two(&one, &exabgp("\"192.0.2.2\"")));
    for (first, second) in [(command, command), (&one[..], &two_routes[..])] {
        let said = without_place(messages(&two(first, second)), "");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("listener[1].announce: found "), "{said:?}");
        assert!(said[0].contains("that no other table announces by (line "), "{said:?}");
    }
}
