//! Which clients get sockets of their own, and when.

use super::*;

fn accepting(accept: Accept) -> Harness {
    Harness::new(|config| config.accept = accept)
}

fn opens_client(outputs: &[Output<'_>]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::OpenClient { .. }))
}

#[test]
fn a_connected_client_gets_its_socket_when_it_is_admitted_and_no_other_later() {
    let mut harness = accepting(Accept::Connected);
    let first = harness.request(client(1), b"first", at(0));
    let [
        Output::OpenFlow { flow, .. },
        Output::OpenClient { flow: served, client: who },
        Output::Send { .. },
    ] = first[..]
    else {
        panic!("{first:?}")
    };
    assert_eq!((served, who), (flow, client(1)));
    harness.reply(flow, b"answer", at(1));
    let second = harness.request(client(1), b"second", at(2));
    assert!(matches!(second[..], [Output::Send { .. }]), "{second:?}");
}

#[test]
fn a_confirmed_client_gets_its_socket_with_its_first_datagram_after_an_answer() {
    let mut harness = accepting(Accept::Confirmed);
    let flow = harness.open(client(1), at(0));
    assert!(!opens_client(&harness.request(client(1), b"no answer yet", at(1))));
    harness.reply(flow, b"answer", at(2));
    let confirms = harness.request(client(1), b"heard it", at(3));
    assert!(matches!(confirms[..], [Output::OpenClient { .. }, Output::Send { .. }]));
    harness.reply(flow, b"answer", at(4));
    assert!(!opens_client(&harness.request(client(1), b"and again", at(5))));
}

#[test]
fn a_shared_client_never_gets_a_socket() {
    let mut harness = accepting(Accept::Shared);
    let flow = harness.open(client(1), at(0));
    harness.reply(flow, b"answer", at(1));
    assert!(!opens_client(&harness.request(client(1), b"heard it", at(2))));
}

#[test]
fn each_flow_of_a_client_asks_for_its_socket() {
    let mut harness = Harness::new(|config| {
        config.accept = Accept::Connected;
        config.cluster.requests = 1;
    });
    assert!(opens_client(&harness.request(client(1), b"first", at(0))));
    assert!(opens_client(&harness.request(client(1), b"next", at(1))));
}
