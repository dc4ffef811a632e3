//! The commands: what they ask for, what they print and return.

use std::sync::atomic::Ordering;

use flowgate::admin::request::{FlowFilter, Request, Response};
use flowgate::admin::status::{FlowsDocument, StatusDocument};
use flowgate_tests::process::output;

use crate::FLOWGATE;
use crate::served::{CLUSTER_SHOWN, LISTENER_SHOWN, Served, flow, status};

#[track_caller]
fn assert_harmless(text: &str) {
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
}

#[test]
fn status_and_flows_show_names_escaped() {
    let served = Served::start();
    for (arguments, shown) in [
        (&["status"][..], &[LISTENER_SHOWN, CLUSTER_SHOWN, r"ho\u{1b}st", "12,345"][..]),
        (&["flows", "--limit", "2"], &[LISTENER_SHOWN, "2 flows; there are more"]),
        (&["status", "--json"], &[r"o\u001b[2Jd\nd"]),
        (&["flows", "--json"], &[r"o\u001b[2Jd\nd"]),
    ] {
        let (code, printed, complaints) = served.command(arguments);
        assert_eq!((code, complaints.as_str()), (Some(0), ""), "{arguments:?}");
        for text in shown {
            assert!(printed.contains(text), "{text}: {printed}");
        }
        assert_harmless(&printed);
    }
}

#[test]
fn json_is_the_document_itself() {
    let served = Served::start();
    let (_, printed, _) = served.command(&["status", "--json"]);
    let document: StatusDocument = serde_json::from_str(&printed).expect("the document");
    assert_eq!(document, status());
    let (_, printed, _) = served.command(&["flows", "--json", "--limit", "1"]);
    let document: FlowsDocument = serde_json::from_str(&printed).expect("the document");
    assert_eq!(document, FlowsDocument { flows: vec![flow()], truncated: true });
}

#[test]
fn each_command_asks_for_what_it_says() {
    let served = Served::start();
    let backend = || "a/b/127.0.0.2:53".to_owned();
    let filter = FlowFilter {
        client: Some("127.0.0.0/8".parse().expect("a network")),
        backend: Some("127.0.0.2:53".parse().expect("an address")),
        listener: Some("dns".into()),
        limit: 7,
    };
    for (line, request) in [
        ("status", Request::Status),
        ("flows", Request::Flows { filter: FlowFilter::default() }),
        (
            "flows --client 127.0.0.0/8 --backend 127.0.0.2:53 --listener dns --limit 7",
            Request::Flows { filter },
        ),
        ("reload", Request::Reload),
        ("drain a/b/127.0.0.2:53", Request::Drain { backend: backend(), deadline_ms: None }),
        (
            "drain a/b/127.0.0.2:53 --deadline 1m30s",
            Request::Drain { backend: backend(), deadline_ms: Some(90_000) },
        ),
        ("undrain a/b/127.0.0.2:53", Request::Undrain { backend: backend() }),
    ] {
        let arguments: Vec<_> = line.split(' ').collect();
        let (code, printed, complaints) = served.command(&arguments);
        assert_eq!((code, complaints.as_str()), (Some(0), ""), "{line}");
        assert!(!printed.is_empty(), "{line}");
        assert_eq!(served.asked.lock().expect("no panic").pop(), Some(request), "{line}");
    }
}

#[test]
fn ready_returns_0_while_new_flows_are_served() {
    let served = Served::start();
    assert_eq!(served.command(&["ready"]), (Some(0), "ready\n".into(), String::new()));
    served.is_draining.store(true, Ordering::Relaxed);
    let (code, printed, complaints) = served.command(&["ready"]);
    assert_eq!((code, printed.as_str()), (Some(1), ""));
    assert_eq!(complaints, "not ready:\n  draining: no new flows are taken\n");
}

#[test]
fn a_refusal_returns_1_with_every_reason_escaped() {
    let served = Served::start();
    let (code, printed, complaints) = served.command(&["stop", "--now"]);
    assert_eq!((code, printed.as_str()), (Some(1), ""));
    assert_eq!(complaints, "refused for 2 reasons:\n  not\\u{1b}[2J today\n  nor\\never\n");
    assert_eq!(served.asked.lock().expect("no panic").pop(), Some(Request::Stop { now: true }));

    let (code, printed, complaints) = served.command(&["stop", "--json"]);
    assert_eq!(code, Some(1));
    assert!(complaints.starts_with("refused for 2 reasons"), "{complaints}");
    let answer: Response = serde_json::from_str(&printed).expect("an answer");
    assert!(matches!(answer, Response::Refused { reasons } if reasons.len() == 2));
}

#[test]
fn wrong_usage_returns_2_and_says_what_is_right() {
    let served = Served::start();
    for (line, right) in [
        ("drain 127.0.0.2:53", "such as resolvers/10.0.0.1:53"),
        ("drain a/127.0.0.2:53 --deadline soon", "a duration such as 30s"),
        ("flows --client here", "a network such as 10.0.0.0/8"),
        ("flows --backend 127.0.0.2", "an address and port"),
        ("flows --limit 0", "1..=100000"),
        ("undrain", "CLUSTER/BACKEND"),
    ] {
        let arguments: Vec<_> = line.split(' ').collect();
        let (code, _, complaints) = served.command(&arguments);
        assert_eq!(code, Some(2), "{line}");
        assert!(complaints.contains(right), "{line}: {complaints}");
    }
    assert!(served.asked.lock().expect("no panic").is_empty());
}

#[test]
fn a_socket_on_which_nobody_listens_returns_1_and_says_what_to_do() {
    for command in ["status", "flows", "reload", "stop"] {
        let output = output(FLOWGATE, &[command, "--socket", "/nonexistent/control.sock"]);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        let expected = "no flowgate is listening on /nonexistent/control.sock; start one with";
        assert!(complaint.starts_with(expected), "{complaint}");
    }
}
