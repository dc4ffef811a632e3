//! Clients that come by a proxy, where their datagrams make no flow, or several, or are mirrored.

use super::proxied::{CALLED, proxy, trusting, with_header};
use super::*;

const TLVS: &[u8] = b"\x02\0\x03abc";

/// What goes over the network for each order to send, in front and payload.
fn wires(outputs: &[Output<'_>]) -> Vec<Vec<u8>> {
    let sends = outputs.iter().filter_map(|output| match output {
        Output::SendOneWay { prefix, tlvs, burst, .. }
        | Output::Send { prefix, tlvs, burst, .. } => Some((prefix, tlvs, burst)),
        _ => None,
    });
    let wire = |(prefix, tlvs, burst): (&Option<ProxyHeader>, &Tlvs<'_>, &Burst<'_>)| {
        let prefix = prefix.as_ref().map_or(&[][..], ProxyHeader::as_bytes);
        [prefix, &tlvs.parts().concat(), burst.bytes()].concat()
    };
    sends.map(wire).collect()
}

/// The backends that get something by no flow.
fn send_ids(outputs: &[Output<'_>]) -> Vec<SendId> {
    let send_id = |output: &Output<'_>| match output {
        Output::SendOneWay { send_id, .. } => Some(*send_id),
        _ => None,
    };
    outputs.iter().filter_map(send_id).collect()
}

fn every_header(mode: Mode) -> Harness {
    trusting(|c| {
        c.cluster.mode = mode;
        c.cluster.send_proxy_protocol = SendProxyProtocol::Every;
        c.cluster.backends = (1..=3).map(|n| BackendConfig::new(backend(n))).collect();
    })
}

fn fan_out(reply_from: ReplyFrom) -> Mode {
    Mode::FanOut { reply_from }
}

#[test]
fn one_way_is_balanced_by_the_client_that_the_proxy_names() {
    let mut harness = trusting(|c| {
        c.cluster.mode = Mode::OneWay;
        c.cluster.balance = Balance::Rendezvous;
        c.cluster.backends = (1..=3).map(|n| BackendConfig::new(backend(n))).collect();
    });
    for port in 0..50 {
        let direct = send_ids(&harness.request(client(port), b"x", at(0)));
        let datagram = with_header(client(port), b"", b"x");
        let relayed = send_ids(&harness.request(proxy(1), &datagram, at(0)));
        let follows = send_ids(&harness.request(proxy(1), b"without a header", at(1)));
        assert_eq!(direct.len(), 1);
        assert_eq!((&relayed, &follows), (&direct, &direct));
    }
}

#[test]
fn without_flows_what_a_proxy_has_said_holds_for_a_minute() {
    let mut harness = trusting(|c| {
        c.cluster.mode = Mode::OneWay;
        c.cluster.idle_timeout = Duration::from_millis(1);
    });
    harness.request(proxy(1), &with_header(client(1), b"", b"x"), at(0));
    assert_eq!(send_ids(&harness.request(proxy(1), b"x", at(59_999))).len(), 1);
    assert_eq!(send_ids(&harness.request(proxy(1), b"x", at(119_999))).len(), 0);
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::ProxyHeaderMissing), 1);
}

#[test]
fn in_every_mode_the_backends_are_told_what_the_proxy_said() {
    let modes = [
        (Mode::OneWay, 1),
        (fan_out(ReplyFrom::Nobody), 3),
        (fan_out(ReplyFrom::Chosen), 3),
        (fan_out(ReplyFrom::First), 3),
    ];
    for (mode, copies) in modes {
        let mut harness = every_header(mode);
        let datagram = with_header(client(1), TLVS, b"question");
        let wires = wires(&harness.request(proxy(1), &datagram, at(0)));
        assert_eq!(wires, vec![datagram; copies], "what came goes on: {mode:?}");
    }
}

#[test]
fn in_every_mode_it_is_the_client_that_may_be_denied() {
    let modes = [
        Mode::OneWay,
        fan_out(ReplyFrom::Nobody),
        fan_out(ReplyFrom::Chosen),
        fan_out(ReplyFrom::First),
    ];
    for mode in modes {
        let mut harness = every_header(mode);
        harness.configure(at(0), |c| c.deny = vec!["198.51.100.0/24".parse().unwrap()]);
        let denied = with_header("198.51.100.9:7".parse().unwrap(), b"", b"x");
        assert!(wires(&harness.request(proxy(1), &denied, at(0))).is_empty());
        assert_eq!(harness.drops(Direction::ToBackend, DropReason::Denied), 1);
        let allowed = with_header("203.0.113.9:7".parse().unwrap(), b"", b"x");
        assert!(!wires(&harness.request(proxy(1), &allowed, at(0))).is_empty(), "{mode:?}");
    }
}

#[test]
fn the_first_answer_of_a_race_goes_to_the_proxy_and_no_other() {
    let mut harness = every_header(fan_out(ReplyFrom::First));
    let datagram = with_header(client(1), b"", b"?");
    let outputs = harness.request(proxy(1), &datagram, at(0));
    let branches: Vec<_> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::OpenFlow { flow, .. } => Some(*flow),
            _ => None,
        })
        .collect();
    assert_eq!(branches.len(), 3);
    let answers = harness.reply(branches[1], b"!", at(1));
    assert!(matches!(answers[..], [Output::SendToClient { client, .. }] if client == proxy(1)));
    let late = harness.reply(branches[0], b"!", at(2));
    assert!(matches!(late[..], [Output::Drop { reason: DropReason::NotFirst, .. }]));
    let direct = harness.request(client(1), b"?", at(3));
    let opened = direct.iter().filter(|o| matches!(o, Output::OpenFlow { .. })).count();
    assert_eq!(opened, 3, "by itself the client runs a race of its own");
}

#[test]
fn a_leg_that_has_lost_and_been_silent_since_makes_room() {
    let mut harness = Harness::new(|c| {
        c.max_flows = 2;
        c.cluster.mode = fan_out(ReplyFrom::First);
        c.cluster.limits.unanswered_timeout = Duration::from_secs(1);
    });
    let outputs = harness.request(client(1), b"?", at(0));
    let [Output::OpenFlow { flow: first, .. }, Output::OpenFlow { flow: second, .. }, ..] =
        outputs[..]
    else {
        panic!("{outputs:?}")
    };
    harness.reply(first, b"!", at(1));
    harness.reply(second, b"!", at(1));
    let is_sent = |outputs: Vec<Output<'_>>| !wires(&outputs).is_empty();
    assert!(!is_sent(harness.request(client(2), b"?", at(2_000))), "they may go on");
    assert!(is_sent(harness.request(client(2), b"?", at(2_001))), "they are idle");
}

#[test]
fn a_mirror_is_told_what_the_proxy_said() {
    let mut harness =
        trusting(|c| c.cluster.mode = Mode::Session { mirrored_per_million: 1_000_000 });
    let datagram = with_header(client(1), TLVS, b"question");
    let outputs = harness.request(proxy(1), &datagram, at(0));
    let copy = outputs.iter().find_map(|output| match *output {
        Output::Mirror { client, local, proxy_info, tos, ttl, burst } => {
            Some(ManagerInput::Mirrored { client, local, proxy_info, tos, ttl, burst })
        }
        _ => None,
    });
    let mut mirror = every_header(fan_out(ReplyFrom::Nobody));
    assert_eq!(wires(&mirror.input(copy.unwrap(), at(0))), vec![datagram; 3]);

    let outputs = harness.request(proxy(1), b"more", at(1));
    let [.., Output::Mirror { client: of, proxy_info: Some(info), .. }] = outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!((of, info.destination), (client(1), CALLED.parse().unwrap()));
    assert!(info.tlvs.is_empty());
}

#[test]
fn a_mirror_believes_no_header_itself() {
    let mut mirror = every_header(Mode::OneWay);
    let payload = with_header(client(1), b"", b"x");
    let burst = Burst::single(&payload).unwrap();
    let (client, local, proxy_info) = (proxy(1), None, None);
    let copy = ManagerInput::Mirrored { client, local, proxy_info, tos: 0, ttl: 64, burst };
    let header = ProxyHeader::new(proxy(1), config().address);
    assert_eq!(wires(&mirror.input(copy, at(0))), [[header.as_bytes(), &payload].concat()]);
}
