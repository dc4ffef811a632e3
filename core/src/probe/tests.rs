use super::*;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Probes every 5 s, each for at most 2 s.
const POLICY: ProbePolicy = ProbePolicy {
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(2),
    rise: 2,
    fall: 3,
};

/// What a checker emits at a timeout.
fn timeout(checker: &mut HealthChecker, now: Instant) -> Vec<HealthOutput> {
    let mut outputs = vec![];
    checker.handle_timeout(now, &mut |output| outputs.push(output));
    outputs
}

/// What it emits when a probe ends.
fn finish(
    checker: &mut HealthChecker,
    (target, attempt): (TargetId, u64),
    outcome: ProbeOutcome,
    now: Instant,
) -> Vec<HealthOutput> {
    let mut outputs = vec![];
    checker.finished(target, attempt, outcome, now, &mut |output| outputs.push(output));
    outputs
}

/// Goes on to the next deadline.
fn next(checker: &mut HealthChecker) -> (Instant, Vec<HealthOutput>) {
    let now = checker.poll_timeout().expect("a deadline");
    (now, timeout(checker, now))
}

/// Lets the next probe of the only target end so, at once; returns when that was, and whether and
/// how the target changed.
fn probe(checker: &mut HealthChecker, outcome: ProbeOutcome) -> (Instant, Option<bool>) {
    let (now, outputs) = next(checker);
    let [HealthOutput::StartProbe { target, attempt }] = outputs[..] else {
        panic!("expected a probe to start, got {outputs:?}");
    };
    let outputs = if outcome == ProbeOutcome::TimedOut {
        let (_, outputs) = next(checker);
        assert_eq!(outputs[0], HealthOutput::CancelProbe { target, attempt });
        outputs[1..].to_vec()
    } else {
        finish(checker, (target, attempt), outcome, now)
    };
    let is_up = match outputs[..] {
        [] => None,
        [HealthOutput::Changed { is_up, outcome: cause, .. }] if cause == outcome => Some(is_up),
        _ => panic!("unexpected {outputs:?}"),
    };
    (now, is_up)
}

/// One result per letter: `+` succeeds, every other letter fails or says nothing in a way of its
/// own. Returns the changes: `D` and `U`, `.` where there was none.
fn changes(policy: ProbePolicy, results: &str) -> std::string::String {
    let mut checker = HealthChecker::new(1);
    checker.add(policy, Instant::ORIGIN);
    let result = |letter| match letter {
        '+' => ProbeOutcome::Answered,
        'w' => ProbeOutcome::WrongAnswer,
        'r' => ProbeOutcome::Refused,
        'u' => ProbeOutcome::Unreachable,
        't' => ProbeOutcome::TimedOut,
        '?' => ProbeOutcome::Inconclusive,
        _ => panic!("{letter}"),
    };
    let change = |letter| match probe(&mut checker, result(letter)).1 {
        None => '.',
        Some(true) => 'U',
        Some(false) => 'D',
    };
    results.chars().map(change).collect()
}

#[test]
fn it_takes_fall_failures_in_a_row_to_go_down_and_rise_successes_to_come_up() {
    for (results, expected) in [
        ("+++++", "U...."),
        ("rr+rr+rr", "..U....."),
        ("rrr", "..D"),
        ("rrrrrr", "..D..."),
        ("rrr+r+r+", "..D....."),
        ("rrr++", "..D.U"),
        ("rrr++rr+rrr", "..D.U.....D"),
        // Every kind of failure counts alike.
        ("wut", "..D"),
        ("trw++", "..D.U"),
        // What was not learned neither counts nor interrupts.
        ("????", "...."),
        ("r?r?r", "....D"),
        ("rrr+?+", "..D..U"),
    ] {
        assert_eq!(changes(POLICY, results), expected, "{results}");
    }
}

#[test]
fn a_rise_or_fall_of_zero_means_one() {
    assert_eq!(changes(ProbePolicy { rise: 0, fall: 0, ..POLICY }, "+r+r"), "UDUD");
    assert_eq!(changes(ProbePolicy { rise: 1, fall: 1, ..POLICY }, "+r+r"), "UDUD");
}

#[test]
fn a_target_that_flaps_at_ten_hertz_is_held_by_rise_and_fall() {
    let often = ProbePolicy { interval: SECOND / 10, timeout: SECOND / 20, ..POLICY };
    for policy in [POLICY, often] {
        // Up or down for 50 ms each; it is down for good at some point, and up for good later.
        let (down_at, up_at) = (Instant::from_millis(600_000), Instant::from_millis(900_000));
        let answers =
            |at: Instant| at >= up_at || (at < down_at && (at.as_millis() / 50).is_multiple_of(2));
        let mut checker = HealthChecker::new(7);
        checker.add(policy, Instant::ORIGIN);
        let mut results = Vec::new();
        let mut changes = Vec::new();
        while checker.poll_timeout().unwrap() < Instant::from_millis(1_200_000) {
            let is_answered = answers(checker.poll_timeout().unwrap());
            let outcome = if is_answered { ProbeOutcome::Answered } else { ProbeOutcome::Refused };
            let (now, change) = probe(&mut checker, outcome);
            results.push(is_answered);
            // The first good result alone says that it is up.
            let is_first_look = change == Some(true) && changes.is_empty();
            if let Some(is_up) = change
                && !is_first_look
            {
                let enough = if is_up { policy.rise } else { policy.fall } as usize;
                let latest = &results[results.len() - enough..];
                assert!(latest.iter().all(|result| *result == is_up), "{latest:?}");
                changes.push((now, is_up));
            }
        }
        let &[.., (down, false), (up, true)] = &changes[..] else { panic!("{changes:?}") };
        assert!(down <= down_at + policy.interval * 4, "{down:?}");
        assert!(up_at <= up && up <= up_at + policy.interval * 3, "{up:?}");
    }
}

#[test]
fn the_late_result_of_a_probe_that_was_given_up_is_ignored() {
    let mut checker = HealthChecker::new(1);
    let target = checker.add(ProbePolicy { fall: 1, rise: 1, ..POLICY }, Instant::ORIGIN);
    assert_eq!(probe(&mut checker, ProbeOutcome::TimedOut).1, Some(false));
    let now = checker.poll_timeout().unwrap();
    assert_eq!(finish(&mut checker, (target, 1), ProbeOutcome::Answered, now), []);
    assert_eq!(timeout(&mut checker, now), [HealthOutput::StartProbe { target, attempt: 2 }]);
    let before = checker.poll_timeout();
    assert_eq!(finish(&mut checker, (target, 1), ProbeOutcome::Answered, now), []);
    assert_eq!(finish(&mut checker, (target, 3), ProbeOutcome::Answered, now), []);
    assert_eq!((checker.is_up(target), checker.poll_timeout()), (Some(false), before));
    assert_eq!(finish(&mut checker, (target, 2), ProbeOutcome::Answered, now).len(), 1);
    assert_eq!(finish(&mut checker, (target, 2), ProbeOutcome::Refused, now), []);
    assert_eq!(checker.is_up(target), Some(true));
}

#[test]
fn a_result_that_is_told_late_but_before_the_timeout_counts() {
    let mut checker = HealthChecker::new(1);
    let target = checker.add(ProbePolicy { fall: 1, ..POLICY }, Instant::ORIGIN);
    next(&mut checker);
    let late = checker.poll_timeout().unwrap() + SECOND;
    assert_eq!(finish(&mut checker, (target, 1), ProbeOutcome::Answered, late).len(), 1);
    assert_eq!(timeout(&mut checker, late), []);
    assert_eq!(checker.is_up(target), Some(true));
}

#[test]
fn a_target_that_is_removed_is_never_heard_of_again() {
    let mut checker = HealthChecker::new(1);
    let gone = checker.add(ProbePolicy { fall: 1, ..POLICY }, Instant::ORIGIN);
    let (now, _) = next(&mut checker);
    checker.remove(gone);
    checker.remove(gone);
    assert_eq!((checker.poll_timeout(), checker.is_up(gone)), (None, None));
    let stays = checker.add(POLICY, now);
    assert_ne!(gone, stays);
    assert_eq!(finish(&mut checker, (gone, 1), ProbeOutcome::Refused, now), []);
    checker.set_policy(gone, POLICY, now);
    checker.restart(gone, now);
    assert_eq!(next(&mut checker).1, [HealthOutput::StartProbe { target: stays, attempt: 1 }]);
}

#[test]
fn another_policy_keeps_state_counts_and_schedule() {
    let mut checker = HealthChecker::new(1);
    let target = checker.add(POLICY, Instant::ORIGIN);
    probe(&mut checker, ProbeOutcome::Refused);
    let (now, _) = probe(&mut checker, ProbeOutcome::Refused);
    let due = checker.poll_timeout().unwrap();
    checker.set_policy(target, ProbePolicy { interval: POLICY.interval * 100, ..POLICY }, now);
    assert_eq!(checker.poll_timeout(), Some(due), "a longer interval begins with the next probe");
    checker.set_policy(target, ProbePolicy { interval: SECOND, ..POLICY }, now);
    assert!(checker.poll_timeout().unwrap() <= now + SECOND * 11 / 10, "a shorter one at once");
    assert_eq!(probe(&mut checker, ProbeOutcome::Refused).1, Some(false), "two still counted");
    let (now, _) = next(&mut checker);
    checker.set_policy(target, ProbePolicy { timeout: SECOND / 2, ..POLICY }, now);
    assert_eq!(checker.poll_timeout(), Some(now + SECOND / 2), "so does a shorter timeout");
    assert_eq!(checker.is_up(target), Some(false));
}

#[test]
fn probes_of_another_kind_begin_anew_with_a_target_as_up_or_down_as_it_is() {
    let mut checker = HealthChecker::new(1);
    let target = checker.add(POLICY, Instant::ORIGIN);
    probe(&mut checker, ProbeOutcome::Refused);
    probe(&mut checker, ProbeOutcome::Refused);
    let (now, _) = next(&mut checker);
    checker.restart(target, now);
    assert!(checker.poll_timeout().unwrap() <= now + FIRST_WITHIN);
    assert_eq!(finish(&mut checker, (target, 3), ProbeOutcome::Refused, now), []);
    assert_eq!(probe(&mut checker, ProbeOutcome::Refused).1, None, "the former two are forgotten");
    assert_eq!(probe(&mut checker, ProbeOutcome::Refused).1, None);
    assert_eq!(probe(&mut checker, ProbeOutcome::Refused).1, Some(false));
    probe(&mut checker, ProbeOutcome::Answered);
    checker.restart(target, checker.poll_timeout().unwrap());
    assert_eq!(checker.is_up(target), Some(false));
    assert_eq!(probe(&mut checker, ProbeOutcome::Answered).1, None, "so is one success");
    assert_eq!(probe(&mut checker, ProbeOutcome::Answered).1, Some(true));
}

/// When each probe starts, of targets that answer at once, until `end`.
fn starts(checker: &mut HealthChecker, end: Instant) -> Vec<(Instant, TargetId)> {
    let mut starts = vec![];
    while checker.poll_timeout().is_some_and(|due| due < end) {
        let (now, outputs) = next(checker);
        for output in outputs {
            let HealthOutput::StartProbe { target, attempt } = output else { continue };
            starts.push((now, target));
            finish(checker, (target, attempt), ProbeOutcome::Answered, now);
        }
    }
    starts
}

/// The most of them that fall into one 50th of the interval.
fn crowd(starts: &[(Instant, TargetId)], from: Instant) -> usize {
    let slot = POLICY.interval.as_nanos() as u64 / 50;
    let end = from + POLICY.interval;
    let mut slots = [0; 50];
    for (at, _) in starts.iter().filter(|(at, _)| (from..end).contains(at)) {
        slots[((*at - from).as_nanos() as u64 / slot) as usize] += 1;
    }
    *slots.iter().max().unwrap()
}

#[test]
fn targets_are_not_probed_in_step() {
    let mut checker = HealthChecker::new(3);
    for _ in 0..1_000 {
        checker.add(POLICY, Instant::ORIGIN);
    }
    let end = Instant::ORIGIN + POLICY.interval * 200;
    let starts = starts(&mut checker, end);
    let first = starts.iter().take(1_000);
    assert!(first.clone().all(|(at, _)| *at <= Instant::ORIGIN + FIRST_WITHIN));
    // In the first second 1,000 probes share 10 slots, later 50.
    let crowds = [0, 50, 150].map(|n| crowd(&starts, Instant::ORIGIN + POLICY.interval * n));
    assert!(crowds[0] < 150 && crowds[1] < 60 && crowds[2] < 60, "{crowds:?}");
    // Each was probed an interval apart, give or take a tenth.
    let mut last = vec![None; 1_000];
    for (at, target) in starts {
        if let Some(before) = last[target.number() as usize].replace(at) {
            let apart = at - before;
            assert!(apart >= POLICY.interval * 9 / 10 && apart <= POLICY.interval * 11 / 10);
        }
    }
}

#[test]
fn a_year_that_passes_at_once_is_not_made_up_for() {
    let mut checker = HealthChecker::new(3);
    for _ in 0..1_000 {
        checker.add(POLICY, Instant::ORIGIN);
    }
    starts(&mut checker, Instant::ORIGIN + POLICY.interval * 10);
    let now = Instant::ORIGIN + YEAR;
    assert_eq!(timeout(&mut checker, now), [], "they have missed their turn");
    let starts = starts(&mut checker, now + POLICY.interval * 100);
    for n in [0, 10, 50] {
        let crowd = crowd(&starts, now + POLICY.interval * n);
        assert!((15..60).contains(&crowd), "{crowd}");
    }
}

#[test]
fn a_caller_that_is_always_late_still_probes() {
    let mut checker = HealthChecker::new(3);
    let target = checker.add(POLICY, Instant::ORIGIN);
    let mut attempts = 0;
    for hour in 1..=100 {
        let now = Instant::ORIGIN + SECOND * 3_600 * hour;
        for output in timeout(&mut checker, now) {
            let HealthOutput::StartProbe { attempt, .. } = output else { panic!("{output:?}") };
            finish(&mut checker, (target, attempt), ProbeOutcome::Answered, now);
            attempts = attempt;
        }
    }
    assert_eq!(attempts, 50);
}

#[test]
fn a_probe_that_outlasts_its_interval_is_not_overtaken() {
    let mut checker = HealthChecker::new(1);
    checker.add(ProbePolicy { timeout: POLICY.interval * 3, ..POLICY }, Instant::ORIGIN);
    let mut last = Instant::ORIGIN;
    for attempt in 1..10 {
        let (started, outputs) = next(&mut checker);
        assert!(
            matches!(outputs[..], [HealthOutput::StartProbe { attempt: n, .. }] if n == attempt)
        );
        assert!(started <= last + POLICY.interval, "it goes on within an interval");
        let (given_up, outputs) = next(&mut checker);
        assert!(matches!(outputs[0], HealthOutput::CancelProbe { attempt: n, .. } if n == attempt));
        assert_eq!(given_up, started + POLICY.interval * 3);
        last = given_up;
    }
}

#[test]
fn durations_beyond_all_measure_do_no_harm() {
    let forever = ProbePolicy { interval: Duration::MAX, timeout: Duration::MAX, ..POLICY };
    let mut checker = HealthChecker::new(1);
    let target = checker.add(forever, Instant::ORIGIN);
    let (now, _) = next(&mut checker);
    assert_eq!(checker.poll_timeout(), None, "never");
    assert_eq!(finish(&mut checker, (target, 1), ProbeOutcome::Answered, now).len(), 1);
    assert!(checker.poll_timeout().is_none_or(|due| due > now + YEAR * 100));
    assert_eq!(timeout(&mut checker, now + YEAR * 100), []);
    timeout(&mut checker, Instant::FAR_FUTURE);

    let none = ProbePolicy { interval: Duration::ZERO, timeout: Duration::ZERO, ..POLICY };
    let mut checker = HealthChecker::new(1);
    checker.add(none, Instant::ORIGIN);
    let probes = starts(&mut checker, Instant::from_millis(1_000)).len();
    assert!((900..=1_200).contains(&probes), "{probes}");
}

mod properties;

#[test]
fn a_target_that_something_else_speaks_against_is_probed_at_once_until_that_is_decided() {
    let mut checker = HealthChecker::new(1);
    let target = checker.add(POLICY, Instant::ORIGIN);
    let (mut now, is_up) = probe(&mut checker, ProbeOutcome::Answered);
    assert_eq!(is_up, Some(true));
    now += Duration::from_millis(100);
    checker.hasten(target, now);
    let (first, is_up) = probe(&mut checker, ProbeOutcome::Refused);
    assert_eq!((first, is_up), (now, None));
    let (second, is_up) = probe(&mut checker, ProbeOutcome::Refused);
    assert!(second - first <= SECOND, "{:?}", second - first);
    assert_eq!(is_up, None);
    let (third, is_up) = probe(&mut checker, ProbeOutcome::Refused);
    assert!(third - second <= SECOND);
    assert_eq!(is_up, Some(false), "it takes as many as ever");
    let (fourth, _) = probe(&mut checker, ProbeOutcome::Answered);
    assert!(fourth - third > SECOND * 4, "then all goes its usual way");
}

#[test]
fn a_probe_that_passes_ends_the_haste_and_many_reasons_are_one() {
    let mut checker = HealthChecker::new(1);
    let target = checker.add(POLICY, Instant::ORIGIN);
    let (now, _) = probe(&mut checker, ProbeOutcome::Answered);
    for _ in 0..100 {
        checker.hasten(target, now);
    }
    let (first, _) = probe(&mut checker, ProbeOutcome::Answered);
    let (second, _) = probe(&mut checker, ProbeOutcome::Answered);
    assert_eq!(first, now);
    assert!(second - first > SECOND * 4, "{:?}", second - first);
}
