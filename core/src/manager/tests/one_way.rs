//! Datagrams without answers, copies to all backends, races and mirrors.

use super::proxied::{proxy, with_header};
use super::*;
use std::collections::BTreeMap;

fn one_way(balance: Balance) -> Harness {
    Harness::new(|c| {
        c.cluster.mode = Mode::OneWay;
        c.cluster.balance = balance;
    })
}

fn fan_out(reply_from: ReplyFrom) -> Harness {
    Harness::new(|c| {
        c.cluster.mode = Mode::FanOut { reply_from };
        c.cluster.backends = (1..=3).map(|n| BackendConfig::new(backend(n))).collect();
    })
}

fn id(index: usize) -> BackendId {
    BackendId::new(index)
}

/// The backends that outputs send to, and the bytes for each, in order.
fn sent(outputs: &[Output<'_>]) -> BTreeMap<usize, Vec<Vec<u8>>> {
    let mut sent = BTreeMap::<_, Vec<_>>::new();
    for output in outputs {
        if let Output::SendOneWay { send_id, address, burst, .. } = output {
            let (SendId::OneWay(to) | SendId::Copy(to)) = send_id else { panic!("{output:?}") };
            assert_eq!(*address, backend(to.index() as u8 + 1));
            sent.entry(to.index()).or_default().extend(burst.datagrams().map(<[u8]>::to_vec));
        }
    }
    sent
}

fn undelivered(send_id: SendId, datagrams: u32) -> ManagerInput<'static> {
    let (direction, reason) = (Direction::ToBackend, DropReason::QueueFull);
    let bytes = u64::from(datagrams);
    let backend = match send_id {
        SendId::Flow { .. } => None,
        SendId::OneWay(backend) | SendId::Copy(backend) => Some(backend),
    };
    ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes }
}

#[test]
fn one_way_datagrams_make_no_flow_and_alternate_between_backends() {
    let mut harness = one_way(Balance::RoundRobin);
    let sent = sent(&harness.requests(client(1), b"abcdef", 1));
    let singly = |bytes: &[u8]| bytes.iter().map(|&b| vec![b]).collect::<Vec<_>>();
    assert_eq!(sent, BTreeMap::from([(0, singly(b"ace")), (1, singly(b"bdf"))]));
    assert_eq!(harness.manager.flow_count(), 0);
    assert_eq!(harness.manager.poll_timeout(), None);
    assert_eq!(harness.manager.counters().to_backend.queued.datagrams, 6);
}

#[test]
fn what_a_source_sends_has_its_rate_in_every_mode() {
    let modes = [
        Mode::OneWay,
        Mode::FanOut { reply_from: ReplyFrom::Nobody },
        Mode::FanOut { reply_from: ReplyFrom::Chosen },
        Mode::FanOut { reply_from: ReplyFrom::First },
        Mode::SESSION,
    ];
    for mode in modes {
        let mut harness = Harness::new(|c| {
            c.cluster.mode = mode;
            c.cluster.limits.datagrams_per_second_per_source = 4;
            c.cluster.limits.bytes_per_second_per_source = 6;
        });
        harness.requests(client(1), b"abc", 1);
        let outputs = harness.requests(client(1), b"xyz", 1);
        let (direction, reason) = (Direction::ToBackend, DropReason::SourceDatagrams);
        let last = outputs.last();
        assert_eq!(last, Some(&Output::Drop { direction, reason, datagrams: 2 }), "{mode:?}");
        let other = SocketAddr::from(([192, 0, 2, 2], 1_000));
        harness.requests(other, b"abcdefgh", 4);
        let ledger = &harness.manager.counters().to_backend;
        assert_eq!(ledger.forwarded.plus(ledger.queued).datagrams, 5, "{mode:?}");
        assert_eq!(ledger.dropped_for(DropReason::SourceDatagrams).datagrams, 2, "{mode:?}");
        assert_eq!(ledger.dropped_for(DropReason::SourceBytes).bytes, 4, "{mode:?}");
    }
}

#[test]
fn a_burst_stays_whole_where_its_client_decides() {
    for balance in [Balance::Rendezvous, Balance::Maglev] {
        let mut harness = one_way(balance);
        let bytes = [7; 64];
        let first = harness.requests(client(1), &bytes, 1);
        assert!(matches!(first[..], [Output::SendOneWay { burst, .. }] if burst.count() == 64));
        assert_eq!(first, harness.requests(client(1), &bytes, 1), "the same backend again");
    }
}

#[test]
fn one_way_is_refused_to_whom_a_session_is() {
    let mut harness = Harness::new(|c| {
        c.cluster.mode = Mode::OneWay;
        c.deny = vec!["198.51.100.0/24".parse().unwrap()];
        c.max_datagram_size = 4;
    });
    let mut dropped = |source: &str, bytes: &'static [u8], ttl| {
        let (source, burst) = (source.parse().unwrap(), Burst::single(bytes).unwrap());
        let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl, burst };
        match harness.input(input, at(0))[..] {
            [Output::Drop { reason, .. }] => reason,
            ref other => panic!("{other:?}"),
        }
    };
    assert_eq!(dropped("192.0.2.1:0", b"x", 64), DropReason::PortZero);
    assert_eq!(dropped("192.0.2.1:9", b"12345", 64), DropReason::TooLarge);
    assert_eq!(dropped("192.0.2.1:9", b"x", 130), DropReason::TtlExpired);
    assert_eq!(dropped("198.51.100.9:9", b"x", 64), DropReason::Denied);
    assert_eq!(dropped("192.0.2.53:53", b"x", 64), DropReason::OwnAddress);
    harness.input(ManagerInput::Drain { deadline: at(9) }, at(0));
    assert!(harness.manager.is_drained());
    let refused = harness.request(client(1), b"x", at(0));
    assert!(matches!(refused[..], [Output::Drop { reason: DropReason::Draining, .. }]));
}

#[test]
fn a_backend_that_is_down_draining_or_removed_gets_nothing_one_way() {
    for event in [BackendEvent::Down, BackendEvent::Drain { deadline: None }] {
        let mut harness = one_way(Balance::RoundRobin);
        harness.event(id(0), event, at(0));
        let sent = sent(&harness.requests(client(1), b"abcd", 1));
        assert_eq!(sent.keys().copied().collect::<Vec<_>>(), [1], "{event:?}");
    }
    let mut harness = one_way(Balance::RoundRobin);
    harness.configure(at(0), |c| c.cluster.backends[0].removed = true);
    assert!(!sent(&harness.requests(client(1), b"abcd", 1)).contains_key(&0));
    harness.configure(at(0), |c| c.cluster.backends[1].removed = true);
    let none = harness.requests(client(1), b"abcd", 1);
    let expected = DropReason::NoBackend;
    assert!(matches!(none[..], [Output::Drop { reason, datagrams: 4, .. }] if reason == expected));
}

/// Whom backends are to see, of each output that sends something.
fn sources(outputs: &[Output<'_>]) -> Vec<Option<SocketAddr>> {
    let source = |output: &Output<'_>| match output {
        Output::SendOneWay { source, .. } => Some(*source),
        _ => None,
    };
    outputs.iter().filter_map(source).collect()
}

#[test]
fn what_nobody_answers_is_sent_from_the_client_if_that_is_the_source() {
    let mut harness = one_way(Balance::Rendezvous);
    assert_eq!(sources(&harness.requests(client(1), b"ab", 1)), [None]);
    harness.configure(at(0), |c| c.cluster.source = Source::Client);
    assert_eq!(sources(&harness.requests(client(1), b"ab", 1)), [Some(client(1))]);

    let mut harness = fan_out(ReplyFrom::Nobody);
    harness.configure(at(0), |c| c.cluster.source = Source::Client);
    assert_eq!(sources(&harness.request(client(1), b"a", at(0))), [Some(client(1)); 3]);
}

#[test]
fn nothing_is_sent_from_an_address_that_no_host_has_or_that_is_of_another_family() {
    let mut harness = Harness::new(|c| {
        c.cluster.mode = Mode::OneWay;
        c.cluster.source = Source::Client;
        c.accept_proxy_protocol = vec!["10.9.0.0/16".parse().unwrap()];
    });
    for nobody in
        ["0.0.0.0:7", "192.0.2.8:0", "255.255.255.255:7", "224.0.0.1:7", "[2001:db8::7]:7"]
    {
        let datagram = with_header(nobody.parse().unwrap(), &[], b"x");
        let outputs = harness.request(proxy(1), &datagram, at(0));
        let expected = DropReason::NoSource;
        assert!(
            matches!(outputs[..], [Output::Drop { reason, .. }] if reason == expected),
            "{nobody}: {outputs:?}"
        );
    }
    let datagram = with_header(client(9), &[], b"x");
    assert_eq!(sources(&harness.request(proxy(1), &datagram, at(0))), [Some(client(9))]);
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::NoSource), 5);
}

#[test]
fn a_copy_that_no_backend_can_have_from_its_client_is_not_forwarded() {
    let mut harness = fan_out(ReplyFrom::Nobody);
    harness.configure(at(0), |c| c.cluster.source = Source::Client);
    let other_family = "[2001:db8::7]:7".parse().unwrap();
    let reason = |outputs: &[Output<'_>]| match outputs {
        [Output::Drop { reason, datagrams: 2, .. }] => *reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(&harness.requests(other_family, b"ab", 1)), DropReason::NoSource);
    assert_eq!(harness.manager.counters().to_backend.forwarded.datagrams, 0);
    // One is enough.
    harness
        .configure(at(0), |c| c.cluster.backends[2].address = "[2001:db8::3]:53".parse().unwrap());
    assert_eq!(sources(&harness.requests(other_family, b"ab", 1)), [Some(other_family)]);
    assert_eq!(harness.manager.counters().to_backend.forwarded.datagrams, 2);
    harness.configure(at(0), |c| c.cluster.backends.iter_mut().for_each(|b| b.removed = true));
    assert_eq!(reason(&harness.requests(other_family, b"ab", 1)), DropReason::NoBackend);
}

#[test]
fn transactions_mean_nothing_but_in_a_session() {
    let mut harness = Harness::new(|config| {
        config.cluster.mode = Mode::FanOut { reply_from: ReplyFrom::Chosen };
        config.cluster.transactions = Some(Transactions::Dns);
        config.cluster.upstream = UpstreamMode::Shared;
    });
    // Neither is a DNS message.
    let flow = opened(&harness.request(client(1), b"hello", at(0))).unwrap();
    let answer = harness.reply(flow, b"there", at(1));
    assert!(matches!(answer[..], [Output::SendToClient { .. }]), "{answer:?}");
    let changed = harness.configure(at(2), |config| config.cluster.transactions = None);
    assert_eq!(changed, [], "the flow goes on");
}

#[test]
fn one_way_shares_follow_the_weights() {
    for balance in [Balance::RoundRobin, Balance::Random] {
        let mut harness = one_way(balance);
        harness.configure(at(0), |c| c.cluster.backends[1].weight = 3);
        for _ in 0..100 {
            let outputs = harness.requests(client(1), &[0; 40], 1);
            harness.deliver(&outputs, at(0));
        }
        let to = |index| harness.manager.backends().get(id(index)).unwrap().to.datagrams;
        assert_eq!(to(0) + to(1), 4_000);
        assert!((2_900..=3_100).contains(&to(1)), "{balance}: {}", to(1));
    }
}

#[test]
fn what_was_not_sent_one_way_is_counted_against_its_backend() {
    let mut harness = one_way(Balance::RoundRobin);
    harness.requests(client(1), b"abcd", 1);
    harness.input(undelivered(SendId::OneWay(id(0)), 2), at(1));
    assert_eq!(harness.drops(Direction::ToBackend, DropReason::QueueFull), 2);
    let first = harness.manager.backends().get(id(0)).unwrap();
    assert_eq!((first.to.datagrams, first.dropped.datagrams), (0, 2));
}

#[test]
fn one_way_datagrams_say_who_sent_them_where_that_is_wanted() {
    let mut harness = one_way(Balance::Rendezvous);
    harness.configure(at(0), |c| c.cluster.send_proxy_protocol = SendProxyProtocol::Every);
    let header = ProxyHeader::new(client(1), "192.0.2.53:53".parse().unwrap());
    let outputs = harness.requests(client(1), b"abcd", 1);
    let [Output::SendOneWay { prefix, ttl: 63, .. }] = outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(prefix, Some(header));
}

#[test]
fn copies_go_to_every_backend_in_service_and_count_as_forwarded_once() {
    let mut harness = fan_out(ReplyFrom::Nobody);
    harness.configure(at(0), |c| {
        c.cluster.backends.push(BackendConfig { weight: 0, ..BackendConfig::new(backend(4)) });
        c.cluster.backends.push(BackendConfig { backup: true, ..BackendConfig::new(backend(5)) });
    });
    harness.event(id(1), BackendEvent::Down, at(0));
    let outputs = harness.requests(client(1), b"aabb", 2);
    let both = vec![b"aa".to_vec(), b"bb".to_vec()];
    assert_eq!(sent(&outputs), BTreeMap::from([(0, both.clone()), (2, both)]));
    assert_eq!(harness.manager.counters().to_backend.forwarded.datagrams, 2);
    harness.input(undelivered(SendId::Copy(id(2)), 2), at(1));
    assert_eq!(harness.manager.counters().to_backend.forwarded.datagrams, 2);
    let third = harness.manager.backends().get(id(2)).unwrap();
    assert_eq!((third.to.datagrams, third.dropped.datagrams), (0, 2));
}

#[test]
fn backups_get_copies_only_while_nobody_else_does() {
    let mut harness = fan_out(ReplyFrom::Nobody);
    harness.configure(at(0), |c| c.cluster.backends[1].backup = true);
    let to = |harness: &mut Harness| -> Vec<usize> {
        sent(&harness.request(client(1), b"x", at(1))).into_keys().collect()
    };
    assert_eq!(to(&mut harness), [0, 2]);
    harness.event(id(0), BackendEvent::Down, at(1));
    harness.event(id(2), BackendEvent::Down, at(1));
    assert_eq!(to(&mut harness), [1]);
    harness.event(id(1), BackendEvent::Down, at(1));
    let nobody = harness.request(client(1), b"x", at(2));
    assert!(matches!(nobody[..], [Output::Drop { reason: DropReason::NoBackend, .. }]));
    harness.event(id(2), BackendEvent::Up, at(3));
    assert_eq!(to(&mut harness), [2]);
}

#[test]
fn the_chosen_backend_answers_and_the_others_get_copies() {
    let mut harness = fan_out(ReplyFrom::Chosen);
    harness.configure(at(0), |c| {
        c.cluster.backends[0].answers = false;
        c.cluster.backends[2].answers = false;
    });
    let outputs = harness.request(client(1), b"?", at(1));
    let [Output::OpenFlow { flow, backend, .. }, Output::Send { .. }, ..] = outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(backend, id(1));
    assert_eq!(sent(&outputs).into_keys().collect::<Vec<_>>(), [0, 2]);
    assert_eq!(harness.manager.counters().to_backend.queued.datagrams, 1);
    harness.deliver(&outputs, at(1));
    assert_eq!(harness.manager.counters().to_backend.forwarded.datagrams, 1);
    assert!(matches!(harness.reply(flow, b"!", at(2))[..], [Output::SendToClient { .. }]));
    // The others do not miss anything while it is down.
    harness.configure(at(3), |c| c.cluster.health.on_backend_down = OnBackendDown::Rehash);
    harness.event(id(1), BackendEvent::Down, at(3));
    let outputs = harness.request(client(1), b"?", at(4));
    assert_eq!(sent(&outputs).into_keys().collect::<Vec<_>>(), [0, 2]);
    assert_eq!(harness.manager.counters().to_backend.forwarded.datagrams, 2);
}

/// Opens a race of three, and returns its branches by backend.
fn race() -> (Harness, Vec<FlowId>) {
    let mut harness = fan_out(ReplyFrom::First);
    let outputs = harness.request(client(1), b"?", at(0));
    let mut branches: Vec<_> = outputs
        .iter()
        .filter_map(|output| match output {
            Output::OpenFlow { flow, backend, .. } => Some((*backend, *flow)),
            _ => None,
        })
        .collect();
    let sends = outputs.iter().filter(|o| matches!(o, Output::Send { .. })).count();
    assert_eq!((branches.len(), sends), (3, 3), "{outputs:?}");
    assert_eq!(harness.manager.counters().to_backend.forwarded.datagrams, 1);
    branches.sort_unstable();
    (harness, branches.into_iter().map(|branch| branch.1).collect())
}

fn is_passed_on(outputs: &[Output<'_>]) -> bool {
    match outputs[0] {
        Output::SendToClient { .. } => true,
        Output::Drop { reason: DropReason::NotFirst, .. } => false,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_answer_goes_to_the_client_and_no_other() {
    let (mut harness, branches) = race();
    assert!(is_passed_on(&harness.reply(branches[1], b"!", at(1))));
    assert!(!is_passed_on(&harness.reply(branches[0], b"!", at(2))));
    assert!(is_passed_on(&harness.reply(branches[1], b"!", at(3))));
    harness.request(client(1), b"?", at(4));
    assert!(!is_passed_on(&harness.reply(branches[0], b"!", at(5))), "the prompt one goes on");
    // It lets one datagram pass: the next answer may come from anyone.
    harness.request(client(1), b"?", at(6));
    assert!(is_passed_on(&harness.reply(branches[2], b"!", at(7))));
    assert!(!is_passed_on(&harness.reply(branches[1], b"!", at(8))));
}

#[test]
fn the_last_answer_ends_the_race_for_all() {
    let (mut harness, branches) = race();
    harness.configure(at(1), |c| c.cluster.responses = 1);
    let outputs = harness.reply(branches[2], b"!", at(2));
    let ended = outputs.iter().filter(|o| matches!(o, Output::CloseFlow { .. })).count();
    assert_eq!((ended, harness.manager.flow_count()), (3, 0));
    let late = harness.reply(branches[0], b"!", at(3));
    assert!(matches!(late[..], [Output::Drop { reason: DropReason::UnknownFlow, .. }]));
}

#[test]
fn a_race_goes_on_when_a_leg_ends_and_a_backend_that_returns_gets_another() {
    for index in 0..3 {
        let (mut harness, branches) = race();
        harness.input(harness.open_failed(branches[index]), at(1));
        assert_eq!(harness.manager.flow_count(), 2);
        harness.event(id(index), BackendEvent::Down, at(1));
        let outputs = harness.request(client(1), b"?", at(2));
        assert_eq!(outputs.len(), 2, "{outputs:?}");
        harness.event(id(index), BackendEvent::Up, at(3));
        let outputs = harness.request(client(1), b"?", at(4));
        assert!(matches!(outputs[0], Output::OpenFlow { backend, .. } if backend == id(index)));
        assert_eq!(outputs.len(), 4, "{outputs:?}");
        assert_eq!(harness.manager.flow_count(), 3);
    }
}

#[test]
fn what_one_leg_could_not_send_is_still_forwarded() {
    let (mut harness, branches) = race();
    let ManagerInput::Undelivered { send_id, direction, reason, datagrams, bytes, .. } =
        undelivered(harness.send_id(branches[0]), 1)
    else {
        unreachable!()
    };
    let backend = Some(id(0));
    let lost = ManagerInput::Undelivered { send_id, backend, direction, reason, datagrams, bytes };
    harness.input(lost, at(1));
    assert_eq!(harness.manager.counters().to_backend.forwarded.datagrams, 1);
    assert_eq!(harness.manager.backends().get(id(0)).unwrap().dropped.datagrams, 1);
}

#[test]
fn a_race_among_more_backends_than_flows_are_allowed_runs_with_some() {
    let mut harness = fan_out(ReplyFrom::First);
    harness.configure(at(0), |c| c.max_flows = 2);
    for now in 1..20 {
        let outputs = harness.request(client(now as u16 % 3), b"?", at(now * 1_000));
        let is_sent = outputs.iter().any(|o| matches!(o, Output::Send { .. }));
        assert!(is_sent && harness.manager.flow_count() <= 2);
    }
}

#[test]
fn a_share_of_flows_is_mirrored_for_good() {
    let mut harness = Harness::new(|c| {
        c.max_flows = 4_000;
        c.cluster.mode = Mode::Session { mirrored_per_million: 250_000 };
    });
    let mirrored = |harness: &mut Harness, port, now| {
        let outputs = harness.request(client(port), b"x", at(now));
        let copies: Vec<_> =
            outputs.iter().filter(|o| matches!(o, Output::Mirror { ttl: 64, .. })).collect();
        copies.len()
    };
    let first: Vec<_> = (0..2_000).map(|port| mirrored(&mut harness, port, 0)).collect();
    let share: usize = first.iter().sum();
    assert!((400..600).contains(&share), "{share}");
    let again: Vec<_> = (0..2_000).map(|port| mirrored(&mut harness, port, 1)).collect();
    assert_eq!(first, again);
    assert_eq!(harness.manager.counters().to_backend.received.datagrams, 4_000);
}

/// Who is heard, as the rule says it and nothing else.
#[derive(Default)]
struct Heard {
    speaker: Option<usize>,
    has_answered_since: bool,
}

impl Heard {
    fn asked(&mut self) {
        if !std::mem::take(&mut self.has_answered_since) {
            self.speaker = None;
        }
    }

    fn answered(&mut self, index: usize) -> bool {
        let is_heard = *self.speaker.get_or_insert(index) == index;
        self.has_answered_since |= is_heard;
        is_heard
    }
}

proptest! {
    /// `None` is a question of the client, a number an answer of that backend.
    #[test]
    fn whoever_is_heard_in_a_race_is_who_the_rule_says(
        events in prop::collection::vec(prop::option::of(0usize..3), 0..60),
    ) {
        let (mut harness, branches) = race();
        let mut rule = Heard::default();
        for (now, event) in events.into_iter().enumerate() {
            let now = at(now as u64);
            match event {
                None => {
                    rule.asked();
                    let outputs = harness.request(client(1), b"?", now);
                    let is_send = |o: &&Output<'_>| matches!(o, Output::Send { .. });
                    prop_assert_eq!(outputs.iter().filter(is_send).count(), 3);
                }
                Some(index) => {
                    let passed_on = is_passed_on(&harness.reply(branches[index], b"!", now));
                    prop_assert_eq!(passed_on, rule.answered(index));
                }
            }
        }
    }
}

fn modes() -> impl Strategy<Value = Mode> {
    use ReplyFrom::*;
    prop_oneof![
        Just(Mode::SESSION),
        Just(Mode::Session { mirrored_per_million: 500_000 }),
        Just(Mode::OneWay),
        prop_oneof![Just(Nobody), Just(Chosen), Just(First)]
            .prop_map(|reply_from| Mode::FanOut { reply_from }),
    ]
}

/// Something that happens to a manager.
#[derive(Clone, Debug)]
enum Event {
    Request { client: u16, datagrams: usize },
    Relayed { client: u16 },
    Reply { flow: usize },
    Lost { order: usize },
    Failed { flow: usize },
    News { backend: usize, up: bool },
    Mode(Mode),
    Responses(u32),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0u16..6, 1usize..5)
            .prop_map(|(client, datagrams)| Event::Request { client, datagrams }),
        4 => (0u16..6).prop_map(|client| Event::Relayed { client }),
        4 => any::<usize>().prop_map(|flow| Event::Reply { flow }),
        2 => any::<usize>().prop_map(|order| Event::Lost { order }),
        1 => any::<usize>().prop_map(|flow| Event::Failed { flow }),
        2 => (0usize..4, any::<bool>()).prop_map(|(backend, up)| Event::News { backend, up }),
        1 => modes().prop_map(Event::Mode),
        1 => (0u32..3).prop_map(Event::Responses),
        1 => (1u64..90_000).prop_map(Event::Wait),
    ]
}

proptest! {
    /// Whatever the mode, and however it changes: the books balance (the harness looks after each
    /// input), and no backend is sent more than once what a client sent once.
    #[test]
    fn the_books_balance_in_every_mode(
        mode in modes(),
        events in prop::collection::vec(events(), 1..80),
    ) {
        let mut harness = Harness::new(|c| {
            c.max_flows = 9;
            c.cluster.mode = mode;
            c.accept_proxy_protocol = vec!["10.9.0.0/16".parse().unwrap()];
            c.cluster.health.on_backend_down = OnBackendDown::Rehash;
            c.cluster.backends = (1..=4).map(|n| BackendConfig::new(backend(n))).collect();
            c.cluster.backends[3].backup = true;
            c.cluster.backends[0].answers = false;
        });
        let (mut now, mut flows, mut orders) = (at(0), vec![], vec![]);
        let bytes = [0; 8];
        let relayed: Vec<_> = (0..6).map(|port| with_header(client(port), b"", b"x")).collect();
        for event in events {
            let outputs = match event {
                Event::Request { .. } | Event::Relayed { .. } => {
                    let (outputs, datagrams) = match event {
                        Event::Request { client: port, datagrams } => {
                            let bytes = &bytes[..datagrams];
                            (harness.requests_at(client(port), bytes, 1, now), datagrams)
                        }
                        Event::Relayed { client } => {
                            (harness.request(proxy(1), &relayed[usize::from(client)], now), 1)
                        }
                        _ => unreachable!(),
                    };
                    let mut per_backend = BTreeMap::<_, u16>::new();
                    for output in &outputs {
                        match *output {
                            Output::Send { flow, burst, .. } => {
                                orders.push((harness.send_id(flow), burst.count()));
                                let to = harness.manager.flow(flow).map(UdpFlow::backend);
                                *per_backend.entry(to).or_default() += burst.count();
                            }
                            Output::SendOneWay { send_id, burst, .. } => {
                                orders.push((send_id, burst.count()));
                                let (SendId::OneWay(to) | SendId::Copy(to)) = send_id else {
                                    panic!("{output:?}");
                                };
                                *per_backend.entry(Some(to)).or_default() += burst.count();
                            }
                            _ => {}
                        }
                    }
                    let most = per_backend.values().copied().max().unwrap_or(0);
                    prop_assert!(usize::from(most) <= datagrams, "{:?}", outputs);
                    outputs
                }
                Event::Reply { flow } if !flows.is_empty() => {
                    harness.reply(flows[flow % flows.len()], b"!", now)
                }
                Event::Failed { flow } if !flows.is_empty() => {
                    let failed = harness.open_failed(flows[flow % flows.len()]);
                    harness.input(failed, now)
                }
                Event::Lost { order } if !orders.is_empty() => {
                    let (send_id, count) = orders.swap_remove(order % orders.len());
                    harness.input(undelivered(send_id, count.into()), now)
                }
                Event::News { backend, up } => {
                    let event = if up { BackendEvent::Up } else { BackendEvent::Down };
                    harness.event(id(backend), event, now);
                    vec![]
                }
                Event::Mode(mode) => {
                    harness.configure(now, |c| c.cluster.mode = mode);
                    vec![]
                }
                Event::Responses(responses) => {
                    harness.configure(now, |c| c.cluster.responses = responses);
                    vec![]
                }
                Event::Wait(millis) => {
                    now += Duration::from_millis(millis);
                    harness.run_until(now)
                }
                _ => vec![],
            };
            flows.extend(outputs.iter().filter_map(|output| match output {
                Output::OpenFlow { flow, .. } => Some(*flow),
                _ => None,
            }));
        }
    }
}

#[test]
fn a_change_of_the_mode_ends_flows_and_no_client_has_two() {
    let modes = [
        Mode::SESSION,
        Mode::FanOut { reply_from: ReplyFrom::First },
        Mode::FanOut { reply_from: ReplyFrom::Chosen },
        Mode::OneWay,
    ];
    for (before, after) in modes.iter().flat_map(|b| modes.iter().map(move |a| (*b, *a))) {
        let mut harness = Harness::new(|c| c.cluster.mode = before);
        (1..4).for_each(|number| drop(harness.request(client(number), b"?", at(0))));
        let flows = harness.manager.flow_count();
        let outputs = harness.configure(at(1), |c| c.cluster.mode = after);
        let ended = if before == after { 0 } else { flows };
        assert_eq!(outputs.len(), ended, "{before:?} to {after:?}");
        let reason = CloseReason::ModeChanged;
        let are_closed = |output: &Output<'_>| matches!(output, Output::CloseFlow { reason: r, .. } if *r == reason);
        assert!(outputs.iter().all(are_closed));
        (1..4).for_each(|number| drop(harness.request(client(number), b"?", at(2))));
        harness.manager.assert_invariants();
    }
}

#[test]
fn every_branch_counts_as_a_flow_of_its_client() {
    let mut harness = fan_out(ReplyFrom::First);
    harness.configure(at(0), |c| c.cluster.limits.flows_per_source = 2);
    let outputs = harness.request(client(1), b"?", at(1));
    let opened = outputs.iter().filter(|o| matches!(o, Output::OpenFlow { .. })).count();
    assert_eq!((opened, harness.manager.flow_count()), (2, 2));
}
