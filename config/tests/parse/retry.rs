//! `retry`: when another backend is asked.

use std::time::Duration;

use flowgate_config::parse;
use flowgate_core::config::Retry;

fn with(lines: &str) -> Result<Option<Retry>, String> {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:53\"\ncluster = \"dns\"\n[cluster.dns]\n\
         backends = [\"10.0.0.1:53\", \"10.0.0.2:53\"]\n{lines}\n"
    );
    match parse(&text, "flowgate.toml") {
        Ok(config) => Ok(config.listeners[0].cluster.policy.retry),
        Err(errors) => Err(errors.to_string()),
    }
}

#[test]
fn another_backend_is_asked_after_a_time_and_a_number_of_times() {
    let retry = |millis, times| Some(Retry { after: Duration::from_millis(millis), times });
    let dns = |retry: &str| with(&format!("transactions = \"dns\"\n{retry}"));
    assert_eq!(dns(""), Ok(None));
    assert_eq!(dns("retry = \"off\""), Ok(None));
    assert_eq!(dns("retry = { after = \"1s\", times = 3 }"), Ok(retry(1_000, 3)));
    assert_eq!(dns("retry = { after = \"20ms\" }"), Ok(retry(20, 1)));
    assert_eq!(dns("retry = {}"), Ok(retry(300, 1)));
    assert_eq!(with("retry = \"off\""), Ok(None));
}

#[test]
fn what_cannot_work_is_refused_with_the_reason() {
    for (lines, says) in [
        ("retry = { after = \"300ms\" }", "only where each question is a flow"),
        ("transactions = \"dns\"\nretry = { after = \"0s\" }", "retry.after: "),
        ("transactions = \"dns\"\nretry = { after = 300 }", "retry.after: "),
        ("transactions = \"dns\"\nretry = { times = 4 }", "from 1 to 3"),
        ("transactions = \"dns\"\nretry = { before = \"1s\" }", "unknown key"),
        ("transactions = \"dns\"\nretry = true", "off, or a table"),
        (
            "transactions = \"dns\"\nretry = { after = \"1s\" }\nidle_timeout = \"1s\"",
            "shorter than",
        ),
        (
            "transactions = \"dns\"\nretry = { after = \"1s\" }\n\
             [cluster.dns.limits]\nunanswered_timeout = \"500ms\"",
            "shorter than",
        ),
        (
            "transactions = \"dns\"\nretry = { after = \"1s\" }\nupstream_quarantine = \"0s\"",
            "an upstream_quarantine above 0s",
        ),
    ] {
        let refused = with(lines).expect_err(lines);
        assert!(refused.contains(says), "{lines}: {refused}");
    }
}
