//! Who may end for a new flow, and who may not.

use std::collections::BTreeMap;

use super::*;

/// A manager whose table is filled by two flows that were answered at 0 s and said nothing since.
fn full() -> (Harness, [FlowId; 2]) {
    let mut harness = Harness::new(|c| c.max_flows = 2);
    let flows = [1, 2].map(|number| {
        let flow = harness.open(client(number), at(0));
        harness.reply(flow, b"answer", at(0));
        flow
    });
    (harness, flows)
}

fn is_refused(harness: &mut Harness, now: Instant) -> bool {
    let outputs = harness.request(client(9), b"x", now);
    matches!(outputs[..], [Output::Drop { reason: DropReason::MaxFlows, .. }])
}

#[test]
fn an_exchange_that_was_idle_for_two_seconds_makes_room_and_a_younger_one_does_not() {
    let (mut harness, [first, _]) = full();
    assert!(is_refused(&mut harness, at(1_999)));
    let outputs = harness.request(client(9), b"x", at(2_000));
    let reason = CloseReason::Evicted;
    assert_eq!(outputs[0], harness.ended(first, reason));
    assert!(matches!(outputs[1], Output::OpenFlow { .. }));
}

#[test]
fn a_second_datagram_keeps_no_flow_that_is_idle() {
    let (mut harness, [first, second]) = full();
    harness.request(client(2), b"and now?", at(1_000));
    harness.request(client(1), b"and now?", at(1_500));
    assert!(is_refused(&mut harness, at(2_999)));
    let outputs = harness.request(client(9), b"x", at(3_500));
    assert!(matches!(outputs[0], Output::CloseFlow { flow, .. } if flow == second), "idle longest");
    assert!(harness.manager.flow(first).is_some());
}

/// As many clients as the table holds, each with one question, at a rate that fills the table
/// within the idle timeout, and answers that take a while.
fn answered_of(clients: u16, millis_apart: u64, round_trip: u64, limits: Limits) -> (u16, u64) {
    let mut harness = Harness::new(|c| {
        c.max_flows = 1_000;
        c.cluster.limits = limits;
    });
    let mut waiting = std::collections::VecDeque::new();
    let mut answered = 0;
    for number in 0..clients {
        let now = u64::from(number) * millis_apart;
        while let Some(&(at_millis, flow)) = waiting.front()
            && at_millis <= now
        {
            waiting.pop_front();
            let outputs = harness
                .manager_only(harness.answer(flow, 0, Burst::single(b"y").unwrap()), at(at_millis));
            answered += u16::from(
                outputs.iter().any(|output| matches!(output, Output::SendToClient { .. })),
            );
        }
        let outputs = harness.manager_only(from_client(client(number), b"x"), at(now));
        waiting.extend(opened(&outputs).map(|flow| (now + round_trip, flow)));
    }
    harness.manager.assert_invariants();
    (answered, harness.manager.counters().to_backend.dropped_total().datagrams)
}

#[test]
fn new_clients_are_served_by_a_table_that_is_full_of_finished_exchanges() {
    for (millis_apart, round_trip) in [(10, 20), (3, 20), (3, 200), (3, 900)] {
        let (answered, _) = answered_of(5_000, millis_apart, round_trip, Limits::default());
        assert!(answered > 4_600, "{answered} of 5000, {millis_apart} ms apart, {round_trip} ms");
    }
}

#[test]
fn where_fewer_may_wait_than_answers_take_as_many_are_served_as_may_wait() {
    // 500 clients a second that wait for 100 ms: 50 would wait, and 10 may.
    let limits = Limits { unanswered_flows: 10, ..Limits::default() };
    let (answered, dropped) = answered_of(5_000, 2, 100, limits);
    assert!(answered >= 600, "{answered} of 5000 were answered");
    assert!(u64::from(answered) + dropped >= 3_000, "{answered} answered, {dropped} dropped");
}

#[test]
fn who_floods_with_forged_addresses_and_is_never_answered_keeps_nobody_out() {
    let mut harness = Harness::new(|c| c.max_flows = 100);
    let known = harness.open(client(9_999), at(0));
    harness.reply(known, b"answer", at(20));
    for number in 0..2_000 {
        let now = at(1_000 + u64::from(number));
        harness.request(client(number), b"forged", now);
        if number % 100 == 99 {
            // Flows come at ten times the rate at which the table would lose those that are late.
            harness.request(client(9_999), b"still here", now);
            assert!(harness.manager.flow(known).is_some());
        }
    }
    let newcomer = opened(&harness.request(client(5_000), b"x", at(3_060))).expect("room");
    harness.reply(newcomer, b"answer", at(3_080));
    assert!(harness.manager.flow(newcomer).is_some());
}

/// A hundred slots for flows alive and in quarantine, and quarantines of a second.
fn with_slots_for_no_more_than_flows() -> Harness {
    Harness::new(|c| {
        (c.max_flows, c.max_slots) = (100, 100);
        c.cluster.upstream_quarantine = Duration::from_secs(1);
    })
}

#[test]
fn where_slots_are_scarce_a_flood_gets_a_quarter_of_them_in_each_quarantine_at_an_even_pace() {
    let mut harness = with_slots_for_no_more_than_flows();
    let mut newcomers = [0; 10];
    for number in 0..10_000 {
        let now = at(u64::from(number));
        newcomers[usize::from(number / 1_000)] +=
            usize::from(opened(&harness.request(client(number), b"forged", now)).is_some());
        assert!(harness.manager.upstreams.counts().0 <= 100, "no more sockets than there are");
        harness.input(ManagerInput::Timeout, now);
    }
    // The quarter that is free at first lasts until flows are old enough to go.
    assert!((75..=125).contains(&newcomers[0]), "{newcomers:?}");
    assert!(newcomers[2..].iter().all(|each| (19..=24).contains(each)), "{newcomers:?}");
}

#[test]
fn while_slots_are_scarce_nobody_waits_for_a_whole_quarantine() {
    let mut harness = with_slots_for_no_more_than_flows();
    for number in 0..75 {
        harness.request(client(number), b"forged", at(0));
    }
    let mut last = 500;
    for number in 75..4_000 {
        let now = u64::from(number) + 425;
        if opened(&harness.request(client(number), b"forged", at(now))).is_some() {
            // Those slots serve one each 45 ms. A turn may be lost.
            assert!(now - last <= 100, "{} ms from one newcomer to the next", now - last);
            last = now;
        }
        harness.input(ManagerInput::Timeout, at(now));
    }
    assert!(last > 4_300, "{last}");
}

#[test]
fn who_was_answered_lately_has_the_next_exchange_beside_a_flood() {
    let mut harness = Harness::new(|c| {
        (c.max_flows, c.max_slots, c.cluster.responses) = (100, 100, 1);
        c.cluster.upstream_quarantine = Duration::from_secs(1);
    });
    let known: SocketAddr = ([192, 0, 2, 200], 1).into();
    let mut served = 0;
    for milli in 0..4_000u16 {
        let now = at(u64::from(milli));
        harness.request(([172, 16, (milli >> 8) as u8, milli as u8], 9).into(), b"forged", now);
        let question = SocketAddr::from((known.ip(), 1_000 + milli));
        if let Some(flow) = opened(&harness.request(question, b"?", now)) {
            harness.reply(flow, b"!", now);
            served += 1;
        }
        harness.input(ManagerInput::Timeout, now);
    }
    // But for a moment at first, until what the flood took at once has been given up.
    assert!(served >= 2_900, "{served} exchanges, each a flow of its own");
}

#[test]
fn a_young_flow_stays_while_a_slot_is_free() {
    let mut harness = with_slots_for_no_more_than_flows();
    let flows: Vec<FlowId> = (0..100).map(|n| harness.open(client(n), at(0))).collect();
    assert!(flows.iter().all(|&flow| harness.manager.flow(flow).is_some()));
    // With no slot left the oldest goes at once, but leaves none before its quarantine is over.
    assert!(opened(&harness.request(client(100), b"x", at(0))).is_none());
    assert!(harness.manager.flow(flows[0]).is_none());
    // Four do, of which three are for clients that were answered lately.
    for millis in (1_001..=2_400).step_by(45) {
        harness.input(ManagerInput::Timeout, at(millis));
        opened(&harness.request(client(100), b"x", at(millis)));
    }
    assert!(harness.manager.flows().any(|(_, flow)| flow.client() == client(100)));
}

#[test]
fn answered_flows_may_take_all_slots() {
    let mut harness = with_slots_for_no_more_than_flows();
    for number in 0..100 {
        let flow = harness.open(client(number), at(10 * u64::from(number)));
        harness.reply(flow, b"answer", at(10 * u64::from(number)));
    }
    assert_eq!(harness.manager.flow_count(), 100);
    assert_eq!(harness.manager.counters().flows_closed[CloseReason::Evicted as usize], 0);
}

#[test]
fn a_flow_whose_backend_goes_on_sending_makes_no_room() {
    let (mut harness, flows) = full();
    for second in 1..100 {
        for flow in flows {
            harness.reply(flow, b"more", at(second * 1_000));
        }
        assert!(is_refused(&mut harness, at(second * 1_000 + 500)));
    }
}

#[test]
fn of_two_the_one_that_is_in_use_stays() {
    let (mut harness, [first, second]) = full();
    harness.reply(first, b"more", at(1_000));
    let outputs = harness.request(client(9), b"x", at(2_500));
    assert!(matches!(outputs[0], Output::CloseFlow { flow, .. } if flow == second));
}

#[test]
fn a_longer_idle_timeout_makes_no_flow_look_silent() {
    let (mut harness, flows) = full();
    let mut longer = harness.manager.config().clone();
    longer.cluster.idle_timeout = 10 * MINUTE;
    harness.reply(flows[0], b"more", at(900));
    harness.input(ManagerInput::Configured(&PreparedConfig::new(longer)), at(1_000));
    assert!(is_refused(&mut harness, at(5_999)));
}

#[test]
fn a_flow_that_waits_in_vain_goes_before_one_that_was_answered_unless_that_is_over() {
    for (millis, is_over) in [(4_000, false), (50_000, true)] {
        let mut harness = Harness::new(|c| c.max_flows = 2);
        let answered = harness.open(client(1), at(0));
        harness.reply(answered, b"answer", at(0));
        let unanswered = harness.open(client(2), at(1));
        let outputs = harness.request(client(9), b"x", at(millis));
        let first = if is_over { answered } else { unanswered };
        assert!(matches!(outputs[0], Output::CloseFlow { flow, .. } if flow == first));
    }
}

#[test]
fn a_flow_whose_answer_may_still_come_makes_no_room() {
    let mut harness = Harness::new(|c| c.max_flows = 2);
    let answered = harness.open(client(1), at(0));
    harness.reply(answered, b"answer", at(100));
    harness.open(client(2), at(1_000));
    // Answers take 100 ms here, and vary.
    assert!(is_refused(&mut harness, at(1_290)));
    let outputs = harness.request(client(9), b"x", at(1_300));
    assert!(matches!(outputs[0], Output::CloseFlow { .. }));
}

/// What is known of a flow from outside.
#[derive(Clone, Copy, Debug)]
struct Seen {
    is_answered: bool,
    last: Instant,
}

proptest! {
    /// Whatever floods the listener: who ends for it was not answered, or has not been used for two
    /// seconds.
    #[test]
    fn no_flow_that_is_in_use_ends_for_a_new_one(
        steps in prop::collection::vec((0u16..40, 0u8..6, 0u64..3_000), 1..200),
        max_flows in 1u32..8,
        responses in 0u32..2,
    ) {
        let mut harness = Harness::new(|c| {
            (c.max_flows, c.cluster.responses) = (max_flows, responses);
        });
        let mut seen: BTreeMap<FlowId, Seen> = BTreeMap::new();
        let mut flows: BTreeMap<u16, FlowId> = BTreeMap::new();
        let mut now = at(0);
        for (number, step, millis) in steps {
            let outputs = match (step, flows.get(&number)) {
                (0, _) => {
                    now += Duration::from_millis(millis);
                    harness.run_until(now)
                }
                (1..=2, Some(&flow)) => harness.reply(flow, b"y", now),
                _ => harness.request(client(number), b"x", now),
            };
            for output in outputs {
                match output {
                    Output::OpenFlow { flow, .. } => {
                        flows.insert(number, flow);
                        let new = Seen { is_answered: false, last: now };
                        seen.insert(flow, new);
                    }
                    Output::Send { flow, .. } => {
                        seen.entry(flow).and_modify(|seen| {
                            seen.last = if seen.is_answered { now } else { seen.last };
                        });
                    }
                    Output::SendToClient { flow, .. } => {
                        seen.entry(flow).and_modify(|seen| {
                            (seen.is_answered, seen.last) = (true, now);
                        });
                    }
                    Output::CloseFlow { flow, reason: CloseReason::Evicted, .. } => {
                        let Seen { is_answered, last } = seen[&flow];
                        let used = is_answered && last + Duration::from_secs(2) > now;
                        prop_assert!(!used);
                    }
                    _ => {}
                }
            }
        }
    }
}
