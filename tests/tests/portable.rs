//! `FLOWGATE_IO`: by which calls of the system datagrams come and go, what then cannot be had, and
//! who says so. That datagrams pass is shown by the other tests with the variable set.

use flowgate_tests::e2e::{Peer, simple_config};
use flowgate_tests::process::{ConfigFile, Process};
use std::process::{Command, Output};

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");
const PORTABLE: [(&str, &str); 1] = [("FLOWGATE_IO", "portable")];

fn check(io: &str, toml: &str) -> (bool, String) {
    let config = ConfigFile::new(toml);
    let mut command = Command::new(FLOWGATE);
    let Output { status, stderr, .. } =
        command.args(["check", config.path()]).env("FLOWGATE_IO", io).output().unwrap();
    (status.success(), String::from_utf8_lossy(&stderr).into_owned())
}

#[test]
fn the_start_line_and_the_status_say_which_it_is() {
    let backend = Peer::v4();
    let toml = simple_config("127.0.0.1:0", &[&backend], "");
    for io in ["linux", "portable"] {
        let mut process = Process::run_with(FLOWGATE, &toml, &[("FLOWGATE_IO", io)]);
        let started = process.line("started");
        assert!(started.contains(&format!("io=\"{io}\"")), "{started}");
        assert_eq!(process.ask_json(&["status"])["process"]["io"], io);
        let text = String::from_utf8_lossy(&process.ask(&["status"]).stdout).into_owned();
        assert_eq!(text.contains("FLOWGATE_IO=portable"), io == "portable", "{text}");
    }
}

#[test]
fn what_cannot_be_had_is_refused_with_the_reason_by_check_by_start_and_by_reload() {
    let plain = "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"a\"\n\
                 [cluster.a]\nbackends = [\"127.0.0.1:9\"]\n";
    let source = format!("{plain}source = \"client\"\n");
    let accept = plain.replace("cluster = \"a\"", "cluster = \"a\"\naccept = \"connected\"");
    let path = plain.replace("cluster = \"a\"", "cluster = \"a\"\nfast_path = \"tc\"");
    let path = path.replace("127.0.0.1:0", "0.0.0.0:53");
    assert!(check("portable", plain).0);
    let direct = plain.replace("127.0.0.1:0", "127.0.0.1:5300");
    let direct = format!("{direct}return = \"direct\"\n");
    // A cluster that only a route uses.
    let of_route = plain.replace(
        "cluster = \"a\"",
        "cluster = \"a\"\nroute = [{ from = [\"10.0.0.0/8\"], cluster = \"b\" }]",
    );
    let of_route =
        format!("{of_route}[cluster.b]\nbackends = [\"127.0.0.1:9\"]\nsource = \"client\"\n");
    for (toml, key) in [
        (&source, "source"),
        (&accept, "accept"),
        (&path, "fast_path"),
        (&direct, "return"),
        (&of_route, "cluster \"b\": source"),
    ] {
        let (is_valid, said) = check("linux", toml);
        assert!(is_valid, "{said}");
        let (is_valid, said) = check("portable", toml);
        assert!(!is_valid && said.contains("FLOWGATE_IO=portable") && said.contains(key), "{said}");
    }
    let (is_valid, said) = check("swift", plain);
    assert!(!is_valid && said.contains("swift") && said.contains("portable"), "{said}");

    let mut refused = Process::run_with(FLOWGATE, &source, &PORTABLE);
    refused.line("source");
    assert!(!refused.wait().success());

    let mut process = Process::run_with(FLOWGATE, plain, &PORTABLE);
    process.address();
    process.rewrite_config(&source);
    let Output { status, stderr, .. } = process.ask(&["reload"]);
    assert!(!status.success() && String::from_utf8_lossy(&stderr).contains("source"));
    process.reload(plain);
}

/// What has no key of its own is not refused: it is said.
#[test]
fn what_works_and_is_less_is_said_by_check() {
    let plain = "[[listener]]\naddress = \"127.0.0.1:0\"\ncluster = \"a\"\n\
                 [cluster.a]\nbackends = [\"127.0.0.1:9\"]\nupstream = \"shared\"\n";
    let config = ConfigFile::new(plain);
    let said = |io: &str, more: &[&str]| {
        let mut command = Command::new(FLOWGATE);
        command.args(["check", config.path()]).args(more).env("FLOWGATE_IO", io);
        let output = command.output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let less = ["DSCP", "time to live", "health.probe"];
    let (linux, portable) = (said("linux", &[]), said("portable", &[]));
    for what in less {
        assert!(!linux.contains(what) && portable.contains(what), "{linux}{portable}");
    }
    let remarks = |io| -> serde_json::Value {
        let document: serde_json::Value = serde_json::from_str(&said(io, &["--json"])).unwrap();
        document["remarks"].clone()
    };
    assert_eq!(remarks("linux"), serde_json::json!([]));
    assert_eq!(remarks("portable").as_array().unwrap().len(), 2);
}

#[test]
fn flows_are_not_passed_on() {
    let backend = Peer::v4();
    let toml = simple_config("127.0.0.1:0", &[&backend], "");
    let mut process = Process::run_with(FLOWGATE, &toml, &PORTABLE);
    let client = Peer::v4();
    client.send_to(b"there", process.address());
    backend.answer(b"back");
    for question in ["upgrade", "snapshot"] {
        let Output { status, stderr, .. } = process.ask(&[question]);
        let said = String::from_utf8_lossy(&stderr);
        assert!(!status.success() && said.contains("FLOWGATE_IO"), "{question}: {said}");
    }
    assert_eq!(client.receive().bytes, b"back");
}
