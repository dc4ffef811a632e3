//! What belongs to the product and is refused until it is built.

use flowgate_config::{Fault, Problem, parse};

/// The problems of a valid text with `lines` added in the listener or in the cluster.
fn problems(section: &str, lines: &str) -> Vec<Problem> {
    let at = |name| if name == section { lines } else { "" };
    let text = format!(
        "[[listener]]\naddress = \"[::1]:53\"\ncluster = \"web\"\n{}\n[cluster.web]\nbackends = []\n{}\n",
        at("listener"),
        at("cluster"),
    );
    parse(&text, "f").map_or_else(|errors| errors.iter().cloned().collect(), |_| Vec::new())
}

/// Each key with a valid value that is not yet supported, and what is.
const NOT_YET: &[(&str, &str, &str, &str)] = &[
    ("cluster", "mode", "\"one-way\"", "\"session\""),
    ("cluster", "mode", "\"fan-out\"", "\"session\""),
];

#[test]
fn what_is_not_built_yet_is_refused_by_key_and_value() {
    for (section, key, value, allowed) in NOT_YET {
        let problems = problems(section, &format!("{key} = {value}"));
        let [problem] = &problems[..] else {
            panic!("{key} = {value}: {problems:?}");
        };
        assert!(problem.key.ends_with(key), "{problem}");
        assert_eq!(problem.fault, Fault::NotYetSupported { found: (*value).into() });
        assert_eq!(problem.allowed.as_deref(), Some(*allowed));
    }
}

#[test]
fn what_is_not_built_yet_is_checked_all_the_same() {
    for (section, line, allowed) in
        [("cluster", "mode = \"sessions\"", "session, one-way, fan-out")]
    {
        let problems = problems(section, line);
        let [problem] = &problems[..] else {
            panic!("{line}: {problems:?}");
        };
        assert!(matches!(problem.fault, Fault::Invalid { .. }), "{problem}");
        assert_eq!(problem.allowed.as_deref(), Some(allowed));
    }
}
