//! Several texts, and what they ask of the environment.

use flowgate_config::{Config, Errors, Text, parse, parse_texts};

fn of(texts: &[(&str, &str)]) -> Result<(Config, String), Errors> {
    let texts: Vec<_> = texts.iter().map(|(file, text)| Text { file, text }).collect();
    parse_texts(&texts, &|name| match name {
        "PORT" => Some("53".to_owned()),
        "BALANCE" => Some("rendezvou".to_owned()),
        "RAW" => Some("${PORT}".to_owned()),
        _ => None,
    })
}

#[track_caller]
fn refused(texts: &[(&str, &str)]) -> Vec<String> {
    let errors = of(texts).expect_err("it is not valid");
    errors.iter().map(ToString::to_string).collect()
}

const BASE: &str =
    "drain_timeout = \"7s\"\n[log]\nlevel = \"warn\"\n[cluster.a]\nbackends = [\"10.0.0.1:53\"]";
const MORE: &str =
    "[log]\nformat = \"json\"\n[[listener]]\naddress = \"0.0.0.0:${PORT}\"\ncluster = \"a\"\n";
const LAST: &str = "[[listener]]\nname = \"$${x}${RAW}\"\naddress = \"0.0.0.0:54\"\ncluster = \"b\"\n\
                    [cluster.b]\nbackends = [\"10.0.0.2:53\"]\nidle_timeout = \"5s\"\nrequests = 0x10\n";

#[test]
fn several_texts_make_one_configuration_in_their_order() {
    let (config, text) = of(&[("a", BASE), ("b", MORE), ("c", LAST)]).expect("valid");
    let names: Vec<_> = config.listeners.iter().map(|listener| &listener.name[..]).collect();
    assert_eq!(names, ["0.0.0.0:53", "${x}${PORT}"]);
    assert_eq!(config.drain_timeout.as_secs(), 7);
    assert_eq!(config.log.level, flowgate_config::LogLevel::Warn);
    assert_eq!(config.log.format, flowgate_config::LogFormat::Json);
    assert_eq!(config.clusters.len(), 2);

    // What is handed on says the same with no environment and no files.
    assert_eq!(parse(&text, "whole").as_ref(), Ok(&config), "{text}");
}

#[test]
fn a_text_that_asks_for_nothing_is_handed_on_as_it_is() {
    let text =
        format!("# a comment\n{}\n[[listener]]\naddress = \"0.0.0.0:1\"\ncluster = \"a\"\n", BASE);
    assert_eq!(of(&[("a", &text)]).expect("valid").1, text);
}

#[test]
fn a_problem_is_told_with_the_file_and_the_line_that_it_is_in() {
    let problems = refused(&[
        ("a.toml", "[cluster.a]\nbackends = [\"10.0.0.1:53\"]\nbalance = \"${BALANCE}\""),
        ("b.toml", "\n[[listener]]\naddress = \"0.0.0.0:53\"\ncluster = \"a\"\n"),
        (
            "c.toml",
            "x = 1\n[[listener]]\nname = \"${NONE}\"\naddress = \"0.0.0.0:53\"\ncluster = \"b\"\n",
        ),
    ]);
    assert_eq!(problems.len(), 5, "{problems:#?}");
    let start =
        |number: usize, text: &str| assert!(problems[number].starts_with(text), "{problems:#?}");
    start(
        0,
        "a.toml:3:11: cluster.a.balance: found \"${BALANCE}\", which is \"rendezvou\"; allowed: ",
    );
    start(1, "c.toml:1:1: x: unknown key; allowed: ");
    start(2, "c.toml:3:8: listener[1].name: found ${NONE}, which is not set in the environment; ");
    start(
        3,
        "c.toml:4:11: listener[1].address: found \"0.0.0.0:53\"; allowed: an address that no other \
              listener receives on (b.toml:3 has it)",
    );
    start(4, "c.toml:5:11: listener[1].cluster: found \"b\"; allowed: \"a\"");
    assert!(problems[0].ends_with("did you mean \"rendezvous\"?"), "{problems:#?}");
}

#[test]
fn a_key_that_two_texts_have_is_refused() {
    let problems = refused(&[
        ("a", BASE),
        ("b", MORE),
        (
            "c",
            "drain_timeout = \"8s\"\nlistener = 5\n[log]\nlevel = \"info\"\n[cluster.a]\nbackends = []\n",
        ),
    ]);
    let expected = [
        "c:1:1: drain_timeout: a:1 has it already; allowed: each key in one file only",
        "c:2:1: listener: b:3 has it already; allowed: each key in one file only",
        "c:4:1: log.level: a:3 has it already; allowed: each key in one file only",
        "c:5:10: cluster.a: a:4 has it already; allowed: each key in one file only",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn text_that_is_no_toml_is_told_with_its_file() {
    let problems = refused(&[("a", "[log]\nlevel = \n"), ("b", MORE)]);
    assert!(problems[0].starts_with("a:2:9: not TOML: "), "{problems:#?}");
    // The cluster may be in the part that is damaged.
    assert_eq!(problems.len(), 1, "{problems:#?}");
}

#[test]
fn what_names_no_variable_is_refused_with_its_key() {
    let problems =
        refused(&[("a", "[cluster.a]\nbackends = [\"10.0.0.1:53\", { address = \"${-}:1\" }]\n")]);
    assert_eq!(
        problems[1],
        "a:2:40: cluster.a.backends[1].address: found \"${\" without a name and \"}\"; allowed: ${NAME} \
         for a variable that is set, $${ for what is to stay \"${\"",
        "{problems:#?}"
    );
    // Without an environment there are no variables.
    assert!(parse("name = \"${HOME}\"", "f").is_err());
}
