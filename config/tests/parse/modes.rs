//! `mode`, `reply_from` and `mirror`, and what goes with them.

use flowgate_config::{Cluster, Config, Fault, Target, parse};
use flowgate_core::config::{Affinity, Balance, Mode, ReplyFrom};

use super::valid;

fn text(lines: &str) -> String {
    format!(
        "[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n\
         [cluster.shadow]\nbackends = [\"10.0.9.1:53\", \"10.0.9.2:53\"]\n\
         [cluster.web]\nbackends = [\"10.0.0.1:53\", \"Logs.internal:514\"]\n{lines}\n"
    )
}

fn web(config: &Config) -> &Cluster {
    config.cluster("web").expect("the cluster")
}

/// The one thing wrong: its key, and what is allowed.
#[track_caller]
fn refusal(lines: &str) -> (String, String) {
    let errors = parse(&text(lines), "f").expect_err(lines);
    let all: Vec<_> = errors.iter().collect();
    let [problem] = all[..] else { panic!("{lines}: {errors}") };
    (problem.key.clone(), problem.allowed.clone().unwrap_or_default())
}

#[test]
fn every_mode_has_its_policy() {
    for (lines, mode) in [
        ("", Mode::SESSION),
        ("mode = \"session\"", Mode::SESSION),
        ("mode = \"one-way\"", Mode::OneWay),
        ("mode = \"fan-out\"", Mode::FanOut { reply_from: ReplyFrom::Nobody }),
        (
            "mode = \"fan-out\"\nreply_from = \"none\"",
            Mode::FanOut { reply_from: ReplyFrom::Nobody },
        ),
        (
            "mode = \"fan-out\"\nreply_from = \"first\"",
            Mode::FanOut { reply_from: ReplyFrom::First },
        ),
        (
            "mirror = { cluster = \"shadow\", sample = 0.01 }",
            Mode::Session { mirrored_per_million: 10_000 },
        ),
        ("mirror = { cluster = \"shadow\" }", Mode::Session { mirrored_per_million: 1_000_000 }),
        (
            "mirror = { cluster = \"shadow\", sample = 1 }",
            Mode::Session { mirrored_per_million: 1_000_000 },
        ),
        (
            "mirror = { cluster = \"shadow\", sample = 1e-9 }",
            Mode::Session { mirrored_per_million: 1 },
        ),
    ] {
        let config = valid(&text(lines));
        assert_eq!(web(&config).policy.mode, mode, "{lines}");
        let is_mirrored = web(&config).mirror.as_deref() == Some("shadow");
        assert_eq!(is_mirrored, lines.contains("mirror"), "{lines}");
        // A cluster that only mirrors is of use.
        let unused = config.warnings.iter().filter(|w| w.fault == Fault::Unused).count();
        assert_eq!(unused, usize::from(!is_mirrored), "{lines}");
    }
}

#[test]
fn the_backend_that_answers_is_named_as_in_the_list() {
    for (written, place) in [
        ("10.0.0.1:53", 0),
        ("[::ffff:10.0.0.1]:53", 0),
        ("logs.internal:514", 1),
        ("LOGS.internal", 1),
    ] {
        let lines = format!("mode = \"fan-out\"\nreply_from = {written:?}");
        let config = valid(&text(&lines));
        let mode = Mode::FanOut { reply_from: ReplyFrom::Chosen };
        assert_eq!(web(&config).policy.mode, mode);
        let answers: Vec<_> = web(&config).members.iter().map(|member| member.answers).collect();
        assert_eq!(answers, [place == 0, place == 1], "{written}");
        let backends = web(&config).backends(|_| vec!["10.0.0.3".parse().unwrap()]);
        let answers: Vec<_> = backends.iter().map(|backend| backend.answers).collect();
        assert_eq!(answers, [place == 0, place == 1], "{written}");
    }
    let (key, _) = refusal("mode = \"fan-out\"\nreply_from = \"10.0.0.2:53\"");
    assert_eq!(key, "cluster.web.reply_from");
}

#[test]
fn what_needs_flows_or_answers_is_refused_where_there_are_none() {
    for (lines, key) in [
        ("responses = 1", "responses"),
        ("requests = 1", "requests"),
        ("send_proxy_protocol = \"first\"", "send_proxy_protocol"),
        ("limits.flows_per_source = 1", "limits.flows_per_source"),
        ("limits.flows_per_subnet = 1", "limits.flows_per_subnet"),
        ("limits.amplification = 1", "limits.amplification"),
        ("limits.unanswered_flows = 1", "limits.unanswered_flows"),
        ("limits.new_flows_per_second_per_source = 1", "limits.new_flows_per_second_per_source"),
        ("health.passive = true", "health.passive"),
        ("mirror = { cluster = \"shadow\" }", "mirror"),
    ] {
        for mode in ["one-way", "fan-out"] {
            let (found, allowed) = refusal(&format!("mode = {mode:?}\n{lines}"));
            assert_eq!(found, format!("cluster.web.{key}"), "{mode}: {allowed}");
            valid(&text(lines));
        }
    }
    for lines in ["responses = 0", "send_proxy_protocol = \"every\""] {
        valid(&text(&format!("mode = \"one-way\"\n{lines}")));
    }
}

#[test]
fn one_way_balances_by_what_needs_no_flows() {
    for balance in ["round-robin", "random", "rendezvous", "maglev"] {
        valid(&text(&format!("mode = \"one-way\"\nbalance = {balance:?}")));
    }
    for balance in ["least-flows", "power-of-two"] {
        let (key, allowed) = refusal(&format!("mode = \"one-way\"\nbalance = {balance:?}"));
        assert_eq!(key, "cluster.web.balance");
        assert!(allowed.starts_with("round-robin, random, rendezvous or maglev"), "{allowed}");
    }
}

#[test]
fn a_race_has_no_limits_that_count_over_several_flows() {
    for key in ["requests", "limits.amplification"] {
        let lines = format!("mode = \"fan-out\"\nreply_from = \"first\"\n{key} = 2");
        assert_eq!(refusal(&lines).0, format!("cluster.web.{key}"));
    }
    valid(&text(
        "mode = \"fan-out\"\nreply_from = \"first\"\nresponses = 1\nlimits.flows_per_source = 9",
    ));
}

#[test]
fn keys_of_one_mode_are_refused_in_another() {
    for (lines, key) in [
        ("reply_from = \"first\"", "reply_from"),
        ("mode = \"one-way\"\nreply_from = \"first\"", "reply_from"),
        ("mirror = { cluster = \"web\" }", "mirror.cluster"),
        ("mirror = { cluster = \"shadows\" }", "mirror.cluster"),
        ("mirror = { sample = 0.5 }", "mirror.cluster"),
        ("mirror = { cluster = \"shadow\", sample = 1.5 }", "mirror.sample"),
        ("mirror = { cluster = \"shadow\", sample = -0.5 }", "mirror.sample"),
        ("mirror = { cluster = \"shadow\", sample = nan }", "mirror.sample"),
        ("mirror = { cluster = \"shadow\", sample = \"all\" }", "mirror.sample"),
        ("mirror = \"shadow\"", "mirror"),
        ("mode = \"oneway\"", "mode"),
    ] {
        assert_eq!(refusal(lines).0, format!("cluster.web.{key}"), "{lines}");
    }
    let with_limit = "[[listener]]\naddress = \"[::1]:53\"\ncluster = \"a\"\n[cluster.a]\n\
                      mode = \"fan-out\"\nbackends = [{ address = \"10.0.0.1:53\", max_flows = 3 }]";
    assert!(parse(with_limit, "f").unwrap_err().to_string().contains("max_flows"));
}

#[test]
fn keys_without_effect_are_noted() {
    for (lines, key) in [
        ("mode = \"one-way\"\nidle_timeout = \"5s\"", "idle_timeout"),
        ("mode = \"fan-out\"\non_backend_down = \"pin\"", "on_backend_down"),
        ("mode = \"one-way\"\nfailback = \"all\"", "failback"),
        ("mode = \"fan-out\"\nbalance = \"random\"", "balance"),
    ] {
        let config = valid(&text(lines));
        let noted = |w: &&flowgate_config::Problem| {
            matches!(w.fault, Fault::NoEffect { .. }) && w.key == format!("cluster.web.{key}")
        };
        assert_eq!(config.warnings.iter().filter(noted).count(), 1, "{lines}");
    }
}

#[test]
fn a_mirror_sends_one_way_and_keeps_flows_whole() {
    let shadow = |lines: &str| {
        let text = format!(
            "[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n[cluster.web]\n\
             backends = [\"10.0.0.1:53\"]\nmirror = {{ cluster = \"shadow\" }}\n\
             [cluster.shadow]\nbackends = [\"10.0.0.2:53\"]\n{lines}\n"
        );
        let config = valid(&text);
        let shadow = config.cluster("shadow").expect("the mirror");
        let address = "[::1]:53".parse().unwrap();
        let listener = &config.listeners[0];
        let told = listener.mirror_config(
            shadow,
            address,
            vec![address.into()],
            shadow.backends(|_| vec![]),
        );
        assert_eq!(told.cluster.backends.len(), 1);
        let Target::Address(_) = shadow.members[0].target else { panic!("{shadow:?}") };
        (told.cluster.mode, told.cluster.balance, told.cluster.affinity)
    };
    let whole = (Mode::OneWay, Balance::Rendezvous, Affinity::SourceIpPort);
    assert_eq!(shadow("balance = \"least-flows\""), whole);
    assert_eq!(shadow("balance = \"round-robin\""), whole);
    let by_source = (Mode::OneWay, Balance::Maglev, Affinity::SourceIp);
    assert_eq!(shadow("balance = \"maglev\""), by_source);
    let each = (Mode::OneWay, Balance::RoundRobin, Affinity::SourceIp);
    assert_eq!(shadow("mode = \"one-way\"\nbalance = \"round-robin\""), each);
    let all = Mode::FanOut { reply_from: ReplyFrom::Nobody };
    assert_eq!(shadow("mode = \"fan-out\"\nreply_from = \"first\"").0, all);
}
