//! What is said about text that is not TOML, and what is still checked in it.

use crate::messages;

const LISTENER: &str = "[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n";

#[test]
fn syntax_errors_come_all_at_once_with_the_others() {
    let text = format!(
        "workers = abc\ndrain_timeout = 5\n{LISTENER}[cluster.web]\nbackends = []\nresponses = -\n"
    );
    assert_eq!(
        messages(&text),
        [
            "1:11: not TOML: string values must be quoted, expected literal string",
            "2:17: drain_timeout: found 5; allowed: a duration from 0s to 1day, such as \"5s\"; did you mean \"5s\"?",
            "8:13: not TOML: string values must be quoted, expected literal string",
        ]
    );
}

#[test]
fn a_key_that_is_twice_there_is_reported_at_the_second() {
    let text = format!("workers = 1\nworkers = 2\n{LISTENER}[cluster.web]\nbackends = []\n");
    assert_eq!(messages(&text), ["2:1: not TOML: duplicate key"]);
}

#[test]
fn a_table_that_is_twice_there_is_reported_at_the_second() {
    let text = format!("{LISTENER}[cluster.web]\nbackends = []\n[cluster.web]\nresponses = 1\n");
    assert_eq!(messages(&text), ["6:10: not TOML: duplicate key"]);
}

#[test]
fn what_a_broken_line_hides_is_not_called_missing_or_unknown() {
    for text in [
        format!("{LISTENER}[cluster.web\nbackends = []\n"),
        format!("{LISTENER}[cluster.web]\nbackends [\"10.0.0.1:53\"]\n"),
        format!("wor kers = 1\n{LISTENER}[cluster.web]\nbackends = []\n"),
        format!("{LISTENER}[cluster.web]\nbackends = [\n  \"10.0.0.1:53\",\n  \"10.0.0.2:53\n]\n"),
        format!("{LISTENER}address = \"[::1\n"),
    ] {
        let messages = messages(&text);
        assert!(messages.iter().all(|m| m.contains(": not TOML: ")), "{text}\n{messages:#?}");
    }
}

#[test]
fn an_unclosed_list_is_reported_without_an_avalanche() {
    let text = format!("[cluster.web]\nbackends = [\n  \"10.0.0.1:53\",\n\n{LISTENER}");
    let messages = messages(&text);
    assert!(messages.iter().all(|m| m.contains(": not TOML: ")), "{messages:#?}");
}

#[test]
fn a_raw_control_character_is_refused_and_not_shown() {
    let messages = messages(&format!("workers = \"\u{1b}[2J\"\n{LISTENER}"));
    assert!(messages[0].starts_with("1:12: not TOML: invalid basic string"), "{messages:#?}");
    assert!(messages.iter().all(|m| !m.contains('\u{1b}')));
}
