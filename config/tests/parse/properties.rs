//! Whatever the text, an answer comes, and it is fit to be printed.

use std::time::{Duration, Instant};

use flowgate_config::{Workers, parse};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const VALID: &str = r#"workers = 4
drain_timeout = "10s"
[log]
level = "warn"
flows = "/var/log/flows"
[admin]
http = "127.0.0.1:9464"
[[listener]]
name = "dns"
address = "[::]:53"
v6_only = true
cluster = "resolvers"
max_flows = 1000
receive_buffer = "1MiB"
allow = []
[cluster.resolvers]
balance = "maglev"
idle_timeout = "2m 5s"
responses = 1
backends = ["10.0.0.1:53", { address = "10.0.0.2:53", weight = 2, backup = true }, "a.example:53"]
[cluster.resolvers.health]
probe = "udp"
send = "hex:00ff"
expect = "regex:^a+\\\\d"
timeout = "1s"
passive = true
"#;

/// What a slip or an attacker may put into a text.
const SNIPPETS: &[&str] = &[
    "",
    "\"",
    "'",
    "[",
    "]",
    "[[",
    "{",
    "}",
    "=",
    ".",
    ",",
    "\n",
    "\r",
    "#",
    "\\u001b",
    "\u{1b}",
    "\u{202e}",
    "\u{feff}",
    "\0",
    "-1",
    "0",
    "1e400",
    "18446744073709551616",
    "0x",
    "nan",
    "true",
    "\"\"\"",
    "1979-05-27T07:32:00Z",
    "[cluster.resolvers]",
    "[[cluster]]",
    "[listener]",
    "a.b.c",
    "99999999999999999999years",
    "0.1ns 5us",
    "1e9999EiB",
    "cluster = 1",
    "ä",
];

/// Parses, and to errors that are in order and show nothing that acts on a terminal.
fn check(text: &str) -> Result<(), TestCaseError> {
    if let Err(errors) = parse(text, "f") {
        let places: Vec<_> = errors.iter().map(|error| (error.line, error.column)).collect();
        prop_assert!(!places.is_empty());
        prop_assert!(places.is_sorted(), "{places:?}");
        let lines = text.split('\n').count();
        prop_assert!(places.iter().all(|(line, _)| (1..=lines).contains(&(*line as usize))));
        for error in &errors {
            let message = error.to_string();
            prop_assert!(!message.contains(char::is_control), "{message:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_host_is_answered(host in "[a-zA-Z0-9._:%\\[\\]-]{0,80}") {
        check(&format!("[cluster.a]\nbackends = [{host:?}]"))?;
    }

    #[test]
    fn any_text_is_answered(text in "(?s).{0,200}") {
        check(&text)?;
    }

    #[test]
    fn any_text_made_of_toml_is_answered(parts in vec(select(SNIPPETS), 0..40)) {
        check(&parts.concat())?;
    }

    #[test]
    fn a_mutated_valid_text_is_answered(
        mutations in vec((any::<Index>(), 0..8_usize, select(SNIPPETS)), 1..6),
    ) {
        let mut chars: Vec<char> = VALID.chars().collect();
        for (at, removed, inserted) in mutations {
            let start = at.index(chars.len() + 1);
            let end = (start + removed).min(chars.len());
            chars.splice(start..end, inserted.chars());
        }
        check(&String::from_iter(chars))?;
    }

    #[test]
    fn lines_in_any_order_are_answered(lines in vec(select(VALID.lines().collect::<Vec<_>>()), 0..40)) {
        check(&lines.join("\n"))?;
    }

    #[test]
    fn any_value_of_any_key_is_answered(
        key in select(&[
            "idle_timeout", "balance", "backends", "health", "responses", "health.probe",
            "health.send", "health.expect", "health.interval",
        ]),
        scheme in select(&["", "hex:", "text:", "regex:"]),
        value in "(?s).{0,40}",
    ) {
        let value = format!("{scheme}{value}");
        let probe = match key {
            "health.send" | "health.expect" | "health.interval" => "health.probe = \"udp\"\n",
            _ => "",
        };
        check(&format!("[cluster.a]\n{probe}{key} = {value:?}"))?;
        check(&format!("[log]\nflows = {value:?}\n[admin]\nsocket = {value:?}\nhttp = {value:?}"))?;
    }

    #[test]
    fn the_numbers_of_a_valid_text_are_those_of_the_configuration(
        workers in 1..=1024_u16,
        millis in 1..=1_000_000_u64,
        weights in vec(any::<u32>(), 0..50),
    ) {
        let backend = |(i, weight): (usize, &u32)| {
            format!("{{ address = \"10.0.0.1:{}\", weight = {weight} }}", i + 1)
        };
        let backends: Vec<_> = weights.iter().enumerate().map(backend).collect();
        let text = format!(
            "workers = {workers}\n[[listener]]\naddress = \"[::1]:53\"\ncluster = \"a\"\n\
             [cluster.a]\nidle_timeout = \"{millis}ms\"\nbackends = [{}]\n",
            backends.join(", "),
        );
        let config = parse(&text, "f").map_err(|errors| TestCaseError::fail(errors.to_string()))?;
        let Workers::Count(count) = config.workers else {
            return Err(TestCaseError::fail("a number is not auto"));
        };
        prop_assert_eq!(count.get(), workers);
        let policy = &config.clusters[0].policy;
        prop_assert_eq!(policy.idle_timeout, Duration::from_millis(millis));
        prop_assert!(policy.backends.iter().map(|backend| backend.weight).eq(weights));
    }
}

#[test]
fn the_text_to_mutate_is_valid() {
    assert_eq!(parse(VALID, "f").map(|config| config.warnings), Ok(vec![]));
}

#[test]
fn a_hundred_thousand_problems_on_one_line_are_placed_in_a_moment() {
    let text = format!("listener = [{}]", "1, ".repeat(100_000));
    let started = Instant::now();
    let errors = parse(&text, "f").unwrap_err();
    assert_eq!(errors.iter().count(), 100_000);
    assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
}

#[test]
fn deep_nesting_is_refused() {
    let open = "[".repeat(100_000);
    assert!(parse(&format!("listener = {open}"), "f").is_err());
    let path = vec!["a"; 100_000].join(".");
    assert!(parse(&format!("{path} = 1"), "f").is_err());
}
