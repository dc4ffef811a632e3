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
fn an_exchange_that_seems_over_makes_room_after_five_seconds() {
    let (mut harness, [first, _]) = full();
    assert!(is_refused(&mut harness, at(4_999)));
    let outputs = harness.request(client(9), b"x", at(5_000));
    let reason = CloseReason::Evicted;
    assert_eq!(outputs[0], Output::CloseFlow { flow: first, reason, keep_socket: false });
    assert!(matches!(outputs[1], Output::OpenUpstream { .. }));
}

#[test]
fn a_flow_whose_client_has_shown_itself_makes_no_room() {
    let (mut harness, flows) = full();
    for number in [1, 2] {
        harness.request(client(number), b"and now?", at(1));
    }
    assert!(is_refused(&mut harness, at(59_000)));
    assert!(flows.iter().all(|&flow| harness.manager.flow(flow).is_some()));
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
    harness.reply(first, b"more", at(4_000));
    let outputs = harness.request(client(9), b"x", at(6_000));
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
fn a_flow_that_was_never_answered_goes_first() {
    let mut harness = Harness::new(|c| c.max_flows = 2);
    let answered = harness.open(client(1), at(0));
    harness.reply(answered, b"answer", at(0));
    let unanswered = harness.open(client(2), at(1));
    let outputs = harness.request(client(9), b"x", at(50_000));
    assert!(matches!(outputs[0], Output::CloseFlow { flow, .. } if flow == unanswered));
}

/// What is known of a flow from outside.
#[derive(Clone, Copy, Debug)]
struct Seen {
    is_answered: bool,
    is_confirmed: bool,
    last: Instant,
}

proptest! {
    /// Whatever floods the listener: who ends for it was never answered, or has sent nothing since
    /// and heard nothing for five seconds.
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
                    Output::OpenUpstream { flow, .. } => {
                        flows.insert(number, flow);
                        let new = Seen { is_answered: false, is_confirmed: false, last: now };
                        seen.insert(flow, new);
                    }
                    Output::SendToBackend { flow, .. } => {
                        seen.entry(flow).and_modify(|seen| seen.is_confirmed = seen.is_answered);
                    }
                    Output::SendToClient { flow, .. } => {
                        seen.entry(flow).and_modify(|seen| {
                            (seen.is_answered, seen.last) = (true, now);
                        });
                    }
                    Output::CloseFlow { flow, reason: CloseReason::Evicted, .. } => {
                        let Seen { is_answered, is_confirmed, last } = seen[&flow];
                        let is_silent = last + Duration::from_secs(5) <= now;
                        prop_assert!(!is_answered || (!is_confirmed && is_silent));
                    }
                    _ => {}
                }
            }
        }
    }
}
