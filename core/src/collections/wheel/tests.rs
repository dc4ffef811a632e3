use super::*;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use proptest::prelude::*;
use std::vec;

/// Turns the wheel as the manager does, and returns who reached the true deadline by `now`.
fn expire(
    wheel: &mut TimerWheel,
    deadlines: &mut BTreeMap<usize, Instant>,
    now: Instant,
) -> Vec<usize> {
    let mut expired = vec![];
    while let Some(timer) = wheel.pop_due(now) {
        if deadlines[&timer] <= now {
            deadlines.remove(&timer);
            expired.push(timer);
        } else {
            wheel.schedule(timer, deadlines[&timer]);
        }
    }
    expired.sort_unstable();
    expired
}

#[test]
fn a_timer_comes_up_at_its_deadline_and_not_before() {
    for millis in [1, 63, 64, 65, 4_095, 4_096, 60_000, 86_400_000, 400 * 86_400_000] {
        let deadline = Instant::from_millis(millis);
        let mut wheel = TimerWheel::new(1, Instant::ORIGIN);
        let mut deadlines = BTreeMap::from([(0, deadline)]);
        wheel.schedule(0, deadline);
        let mut wakes = 0;
        let mut now = Instant::ORIGIN;
        while !deadlines.is_empty() {
            now = wheel.next_due().unwrap();
            assert!(now <= deadline, "woken at {now:?} for {deadline:?}");
            expire(&mut wheel, &mut deadlines, now);
            wakes += 1;
        }
        assert_eq!(now, deadline);
        assert!(wakes <= LEVELS, "{wakes} wakes for one timer");
    }
}

#[test]
fn a_deadline_between_two_ticks_waits_for_the_second() {
    let mut wheel = TimerWheel::new(1, Instant::ORIGIN);
    wheel.schedule(0, Instant::from_nanos(1_500_000));
    assert_eq!(wheel.next_due(), Some(Instant::from_millis(2)));
    assert_eq!(wheel.pop_due(Instant::from_nanos(1_999_999)), None);
    assert_eq!(wheel.pop_due(Instant::from_millis(2)), Some(0));
}

#[test]
fn a_deadline_in_the_past_comes_up_at_the_next_tick() {
    let mut wheel = TimerWheel::new(1, Instant::from_millis(100));
    wheel.schedule(0, Instant::ORIGIN);
    assert_eq!(wheel.next_due(), Some(Instant::from_millis(101)));
}

#[test]
fn a_clock_that_goes_back_brings_nothing_up() {
    let mut wheel = TimerWheel::new(1, Instant::from_millis(100));
    wheel.schedule(0, Instant::from_millis(150));
    assert_eq!(wheel.pop_due(Instant::from_millis(50)), None);
    assert_eq!(wheel.pop_due(Instant::from_millis(150)), Some(0));
}

#[test]
fn a_year_is_skipped_without_walking_through_it() {
    let mut wheel = TimerWheel::new(1_000, Instant::ORIGIN);
    for timer in 0..1_000 {
        wheel.schedule(timer, Instant::from_millis(60_000 + timer as u64));
    }
    let in_a_year = Instant::from_millis(365 * 86_400_000);
    let due = std::iter::from_fn(|| wheel.pop_due(in_a_year)).count();
    assert_eq!(due, 1_000);
    assert_eq!(wheel.next_due(), None);
}

#[test]
fn the_far_future_can_be_scheduled() {
    let mut wheel = TimerWheel::new(1, Instant::ORIGIN);
    wheel.schedule(0, Instant::FAR_FUTURE);
    assert!(wheel.next_due().unwrap() > Instant::from_millis(365 * 86_400_000));
}

#[derive(Clone, Debug)]
enum Step {
    Schedule { timer: usize, after_micros: u64 },
    Move { timer: usize, after_micros: u64 },
    Cancel { timer: usize },
    Wait { micros: u64 },
    PopOne,
}

fn step() -> impl Strategy<Value = Step> {
    let delay = || prop_oneof![0u64..5_000, 0u64..1_000_000, 0u64..100_000_000_000];
    prop_oneof![
        4 => (0usize..20, delay()).prop_map(|(timer, after_micros)| Step::Schedule { timer, after_micros }),
        2 => (0usize..20, delay()).prop_map(|(timer, after_micros)| Step::Move { timer, after_micros }),
        1 => (0usize..20).prop_map(|timer| Step::Cancel { timer }),
        4 => delay().prop_map(|micros| Step::Wait { micros }),
        1 => Just(Step::PopOne),
    ]
}

proptest! {
    /// The model is a map of true deadlines. `Move` postpones a deadline without telling the
    /// wheel, as a datagram does; `PopOne` leaves a slot half emptied, as a spent budget does.
    #[test]
    fn the_wheel_agrees_with_a_sorted_map(steps in prop::collection::vec(step(), 1..200)) {
        let mut now = Instant::from_nanos(123_456_789);
        let mut wheel = TimerWheel::new(20, now);
        let mut deadlines = BTreeMap::new();
        for step in steps {
            match step {
                Step::Schedule { timer, after_micros } => {
                    let deadline = now + Duration::from_micros(after_micros);
                    wheel.schedule(timer, deadline);
                    deadlines.insert(timer, deadline);
                }
                Step::Move { timer, after_micros } => {
                    if let Some(deadline) = deadlines.get_mut(&timer) {
                        *deadline += Duration::from_micros(after_micros);
                    }
                }
                Step::Cancel { timer } => {
                    wheel.cancel(timer);
                    deadlines.remove(&timer);
                }
                Step::Wait { micros } => {
                    now += Duration::from_micros(micros);
                    let due: Vec<usize> = deadlines
                        .iter()
                        .filter(|&(_, &deadline)| deadline <= now)
                        .map(|(&timer, _)| timer)
                        .collect();
                    let expired = expire(&mut wheel, &mut deadlines, now);
                    prop_assert!(expired.iter().all(|timer| due.contains(timer)));
                    // Deadlines are kept to the next tick: who is due but has not come up yet
                    // became due within the tick that has not ended.
                    for timer in due.iter().filter(|timer| !expired.contains(timer)) {
                        prop_assert!(now - deadlines[timer] < TICK);
                    }
                    if let Some(next) = wheel.next_due() {
                        prop_assert!(next > now, "after a turn the next is strictly later");
                    }
                }
                Step::PopOne => {
                    if let Some(timer) = wheel.pop_due(now) {
                        wheel.schedule(timer, deadlines[&timer]);
                    }
                }
            }
            for timer in 0..20 {
                prop_assert_eq!(wheel.is_scheduled(timer), deadlines.contains_key(&timer));
            }
        }
    }
}
