use super::*;
use crate::parse;

fn found(text: &str) -> Vec<Member> {
    parse_found(text.as_bytes()).unwrap()
}

fn plain(target: &str) -> Member {
    let target = Target::parse(target).unwrap();
    Member { target, weight: 1, backup: false, max_flows: 0, answers: true, server_id: None }
}

#[test]
fn labels_say_what_a_backend_is_and_others_are_not_looked_at() {
    let text = r#"[
        {"targets": ["10.0.0.1:53", "[2001:db8::1]:53"]},
        {"targets": ["dns.internal:53"],
         "labels": {"weight": "3", "backup": "true", "max_flows": "7", "server_id": "0a0b", "__meta_zone": "b"}},
        {"targets": ["10.0.0.2:53"], "labels": {"drain": "true", "weight": "5"}},
        {"targets": ["10.0.0.1:53"], "labels": {"weight": "9"}}
    ]"#;
    let expected = [
        plain("10.0.0.1:53"),
        plain("[2001:db8::1]:53"),
        Member {
            weight: 3,
            backup: true,
            max_flows: 7,
            server_id: ServerId::new(&[0x0a, 0x0b]).ok(),
            ..plain("dns.internal:53")
        },
        Member { weight: 0, ..plain("10.0.0.2:53") },
    ];
    assert_eq!(found(text), expected);
    assert_eq!(found(&write_found(&expected)), expected, "what is written is read as it was");
    assert_eq!(found("[]"), []);
}

#[test]
fn of_a_set_with_a_fault_nothing_is_taken() {
    let refused = |text: &str| parse_found(text.as_bytes()).unwrap_err();
    assert!(refused("[{\"targets\": [\"10.0.0.1:53\"").starts_with("EOF"));
    refused("");
    refused("{}");
    let fault = refused(r#"[{"targets": ["10.0.0.1:53", "10.0.0.2"]}]"#);
    assert!(fault.starts_with("target \"10.0.0.2\"; allowed: an IP address"), "{fault}");
    let fault = refused(r#"[{"targets": [], "labels": {"weight": "-1"}}]"#);
    assert_eq!(fault, "label weight: found \"-1\"; allowed: a whole number up to 4294967295");
    refused(r#"[{"targets": [], "labels": {"server_id": "xyz"}}]"#);
    refused(r#"[{"targets": ["a:1", "b:1"], "labels": {"server_id": "0a"}}]"#);
    let fault = refused(r#"[{"targets": [], "labels": {"drain": "yes"}}]"#);
    assert_eq!(fault, "label drain: found \"yes\"; allowed: true or false");
}

const FROM: &str = r#"
[[listener]]
address = "0.0.0.0:53"
cluster = "dns"
[cluster.dns]
backends_from = { file = "/run/dns.json" }
"#;

#[test]
fn what_is_found_comes_after_what_is_listed() {
    let config =
        parse(&format!("{FROM}backends = [{{ address = \"10.0.0.1:53\", weight = 2 }}]"), "f");
    let config = config.unwrap();
    assert_eq!(config.warnings, []);
    let set = vec![plain("10.0.0.1:53"), plain("10.0.0.2:53")];
    let with = config.with_found(&FoundBackends::from([("dns".to_owned(), set)]));
    let weights: Vec<_> =
        with.listeners[0].cluster.policy.backends.iter().map(|b| b.weight).collect();
    assert_eq!(weights, [2, 1]);
    assert_eq!(with.clusters[0], with.listeners[0].cluster);
    assert_eq!(config.with_found(&FoundBackends::new()), config);
}

#[test]
fn only_a_cluster_that_asks_for_it_gets_what_is_found() {
    let config =
        parse(&FROM.replace("backends_from = { file = \"/run/dns.json\" }", "backends = []"), "f");
    let config = config.unwrap();
    let set = vec![plain("10.0.0.2:53")];
    assert_eq!(config.with_found(&FoundBackends::from([("dns".to_owned(), set)])), config);
}

#[test]
fn what_is_found_is_not_sent_to_from_an_address_of_the_other_family() {
    let config = parse(&format!("{FROM}source = \"10.0.0.9\""), "f").unwrap();
    let set = vec![plain("[2001:db8::1]:53"), plain("10.0.0.2:53")];
    let with = config.with_found(&FoundBackends::from([("dns".to_owned(), set)]));
    assert_eq!(with.clusters[0].policy.backends.len(), 1);
}

fn refused(value: &str) -> String {
    let text = FROM.replace("{ file = \"/run/dns.json\" }", value);
    parse(&text, "f").unwrap_err().to_string()
}

#[test]
fn a_place_is_one_of_three() {
    const PLACES: &str = "one of { file = PATH }, { http = URL } and { srv = NAME }";
    assert!(refused("{}").contains(PLACES), "{}", refused("{}"));
    assert!(refused("{ file = \"/a\", srv = \"_a._udp.b\" }").contains(PLACES));
    let https = refused("{ http = \"https://a/b\" }");
    assert!(https.contains("flowgate-discover"), "{https}");
    assert!(refused("{ srv = \"a b\" }").contains("_dns._udp"));
    assert!(refused("{ file = \"/a\", interval = \"1s\" }").contains("nothing but beside http"));
    let place = |value: &str| {
        let text = FROM.replace("{ file = \"/run/dns.json\" }", value);
        parse(&text, "f").unwrap().clusters[0].from.clone().unwrap()
    };
    let srv = place("{ srv = \"_dns._udp.Example\", allow_empty = true }");
    assert_eq!(
        srv,
        BackendsFrom { place: Place::Srv("_dns._udp.example".into()), allow_empty: true }
    );
    let http =
        Place::Http { url: "http://[::1]:8500/x?y".into(), interval: Duration::from_secs(30) };
    assert_eq!(place("{ http = \"http://[::1]:8500/x?y\" }").place, http);
}
