//! More new clients than can be served: what is left for those that are known. In virtual time, with
//! the costs that were measured, so that it is the same on every machine.

use std::collections::VecDeque;

use super::*;

/// What a worker takes for a datagram of a known flow, for one that is refused, for a new flow, and
/// for each read of the listener, in nanoseconds.
const KNOWN: u64 = 1_500;
const REFUSED: u64 = 1_100;
const OPENED: u64 = 12_000;
const READ: u64 = 20_000;

/// How many datagrams one read takes, and how many the listener's buffer holds.
const BATCH: usize = 256;
const BUFFER: usize = 4_096;

const CLIENTS: u16 = 100;

struct Outcome {
    /// Of a thousand datagrams of known clients this many were lost.
    lost_per_mille: u64,
    opened_per_second: u64,
    refused: u64,
}

/// Two seconds with this many forged clients a second, beside known ones that send 10,000 datagrams.
fn flood(forged_per_second: u64, tells: bool) -> Outcome {
    let mut harness = Harness::new(|c| c.max_flows = 50_000);
    for number in 0..CLIENTS {
        let flow = harness.open(client(number), at(0));
        harness.reply(flow, b"y", at(1));
    }
    let begin = 2_000_000_000_u64;
    let (end, every_forged, every_known) =
        (begin + 2_000_000_000, 1_000_000_000 / forged_per_second, 100_000);
    let (mut clock, mut next_forged, mut next_known) = (begin, begin, begin);
    let (mut forged, mut known, mut lost, mut refused) = (0_u32, 0_u64, 0_u64, 0_u64);
    let mut buffer: VecDeque<SocketAddr> = VecDeque::new();
    let opened_before = harness.manager.counters().flows_opened;
    let mut is_behind = false;
    while clock < end {
        while next_forged.min(next_known) <= clock {
            let is_known = next_known <= next_forged;
            let source = if is_known {
                known += 1;
                next_known += every_known;
                client((known % u64::from(CLIENTS)) as u16)
            } else {
                forged += 1;
                next_forged += every_forged;
                SocketAddr::from((forged.to_be_bytes(), 7))
            };
            if buffer.len() < BUFFER {
                buffer.push_back(source);
            } else {
                lost += u64::from(is_known);
            }
        }
        let now = Instant::from_nanos(clock);
        if tells {
            harness.manager_only(ManagerInput::Reading { is_behind }, now);
        }
        clock += READ;
        for _ in 0..BATCH.min(buffer.len()) {
            let source = buffer.pop_front().expect("it is not empty");
            let outputs = harness.manager_only(from_client(source, b"x"), now);
            let is_refused = matches!(outputs[..], [Output::Drop { .. }]);
            refused += u64::from(is_refused);
            clock += if is_refused {
                REFUSED
            } else if outputs.len() > 1 {
                OPENED
            } else {
                KNOWN
            };
        }
        is_behind = buffer.len() > BUFFER / 2;
    }
    harness.manager.assert_invariants();
    let opened = harness.manager.counters().flows_opened - opened_before;
    Outcome { lost_per_mille: lost * 1_000 / known, opened_per_second: opened / 2, refused }
}

/// Row 43 of the scenarios.
#[test]
fn at_four_times_the_rate_that_can_be_opened_known_clients_lose_less_than_one_percent() {
    let rate = 4 * 1_000_000_000 / OPENED;
    let outcome = flood(rate, true);
    assert!(outcome.lost_per_mille < 10, "{} of 1000 were lost", outcome.lost_per_mille);
    assert!(outcome.opened_per_second > 10_000, "{} a second", outcome.opened_per_second);
    assert!(outcome.refused > 0);
    let overload = DropReason::Overload;
    let without = flood(rate, false);
    assert!(without.lost_per_mille > 200, "the flood is none: {}", without.lost_per_mille);
    assert_eq!(overload.as_str(), "overload");
}

#[test]
fn what_can_be_opened_is_opened() {
    let outcome = flood(20_000, true);
    assert_eq!((outcome.lost_per_mille, outcome.refused), (0, 0));
    assert!(outcome.opened_per_second > 19_900);
}
