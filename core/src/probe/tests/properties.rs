//! Whatever happens, in whatever order: judged by a model that looks at all results ever.

use super::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Add(ProbePolicy),
    Remove(usize),
    SetPolicy(usize, ProbePolicy),
    Restart(usize),
    /// A running probe ends, or one that was given up long ago tells its result.
    Finish(usize, ProbeOutcome),
    Stale(usize, ProbeOutcome),
    /// Time goes on to the next deadline, or by this many milliseconds.
    Deadline,
    Wait(u64),
    Timeout,
}

fn policy() -> impl Strategy<Value = ProbePolicy> {
    (0u64..3_000, 0u64..4_000, 0u32..5, 0u32..5).prop_map(|(interval, timeout, rise, fall)| {
        let [interval, timeout] = [interval, timeout].map(Duration::from_millis);
        ProbePolicy { interval, timeout, rise, fall }
    })
}

fn outcome() -> impl Strategy<Value = ProbeOutcome> {
    prop_oneof![
        4 => Just(ProbeOutcome::Answered),
        1 => Just(ProbeOutcome::WrongAnswer),
        1 => Just(ProbeOutcome::Refused),
        1 => Just(ProbeOutcome::Unreachable),
        1 => Just(ProbeOutcome::Inconclusive),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => policy().prop_map(Step::Add),
        1 => any::<usize>().prop_map(Step::Remove),
        1 => (any::<usize>(), policy()).prop_map(|(n, policy)| Step::SetPolicy(n, policy)),
        1 => any::<usize>().prop_map(Step::Restart),
        12 => (any::<usize>(), outcome()).prop_map(|(n, outcome)| Step::Finish(n, outcome)),
        2 => (any::<usize>(), outcome()).prop_map(|(n, outcome)| Step::Stale(n, outcome)),
        20 => Just(Step::Deadline),
        2 => prop_oneof![0u64..50, 0u64..10_000, Just(YEAR.as_millis() as u64)].prop_map(Step::Wait),
        3 => Just(Step::Timeout),
    ]
}

/// What the model knows of a target.
struct Known {
    policy: ProbePolicy,
    is_up: bool,
    is_checked: bool,
    /// All results since the last change or restart.
    results: Vec<bool>,
    running: Option<u64>,
    attempts: u64,
    last_start: Option<Instant>,
}

impl Known {
    /// Whether this result changes the state.
    fn recompute(&mut self, outcome: ProbeOutcome) -> Option<bool> {
        self.results.push(outcome.verdict()?);
        if outcome.verdict() == Some(self.is_up) && !core::mem::replace(&mut self.is_checked, true)
        {
            return Some(self.is_up);
        }
        let enough = if self.is_up { self.policy.fall } else { self.policy.rise }.max(1) as usize;
        let against = self.results.iter().rev().take_while(|result| **result != self.is_up).count();
        if against < enough {
            return None;
        }
        self.results.clear();
        self.is_checked = true;
        self.is_up = !self.is_up;
        Some(self.is_up)
    }
}

#[derive(Default)]
struct World {
    known: BTreeMap<TargetId, Known>,
    now: Instant,
    trace: Vec<HealthOutput>,
}

impl World {
    fn pick(&self, n: usize) -> Option<TargetId> {
        self.known.keys().copied().nth(n.checked_rem(self.known.len())?)
    }

    fn take(&mut self, checker: &mut HealthChecker, step: &Step) {
        match *step {
            Step::Add(policy) => {
                let id = checker.add(policy, self.now);
                let known = Known {
                    policy,
                    is_up: true,
                    is_checked: false,
                    results: vec![],
                    running: None,
                    attempts: 0,
                    last_start: None,
                };
                assert!(self.known.insert(id, known).is_none(), "{id:?} was given twice");
            }
            Step::Remove(n) => {
                let Some(id) = self.pick(n) else { return };
                checker.remove(id);
                self.known.remove(&id);
            }
            Step::SetPolicy(n, policy) => {
                let Some(id) = self.pick(n) else { return };
                checker.set_policy(id, policy, self.now);
                let known = self.known.get_mut(&id).unwrap();
                known.policy = policy;
                known.last_start = None;
            }
            Step::Restart(n) => {
                let Some(id) = self.pick(n) else { return };
                checker.restart(id, self.now);
                let known = self.known.get_mut(&id).unwrap();
                known.results.clear();
                known.running = None;
                known.last_start = None;
            }
            Step::Finish(n, outcome) => self.finish(checker, n, outcome),
            Step::Stale(n, outcome) => {
                let Some(id) = self.pick(n) else { return };
                let known = &self.known[&id];
                let stale = known.running.map_or(known.attempts, |attempt| attempt - 1);
                assert_eq!(finish(checker, (id, stale), outcome, self.now), []);
            }
            Step::Deadline => {
                self.now = checker.poll_timeout().map_or(self.now, |due| due.max(self.now));
                self.timeout(checker);
            }
            Step::Wait(millis) => self.now += Duration::from_millis(millis),
            Step::Timeout => self.timeout(checker),
        }
    }

    fn finish(&mut self, checker: &mut HealthChecker, n: usize, outcome: ProbeOutcome) {
        let Some(id) = self.pick(n) else { return };
        let known = self.known.get_mut(&id).unwrap();
        let Some(attempt) = known.running.take() else { return };
        let change = known.recompute(outcome);
        let expected = change.map(|is_up| HealthOutput::Changed { target: id, is_up, outcome });
        let outputs = finish(checker, (id, attempt), outcome, self.now);
        assert_eq!(outputs, Vec::from_iter(expected));
        self.trace.extend(outputs);
    }

    fn timeout(&mut self, checker: &mut HealthChecker) {
        let outputs = timeout(checker, self.now);
        let mut expected_change = None;
        for output in &outputs {
            match *output {
                HealthOutput::StartProbe { target, attempt } => {
                    let known = self.known.get_mut(&target).expect("a target");
                    assert_eq!(known.running.replace(attempt), None, "two at once");
                    known.attempts += 1;
                    assert_eq!(attempt, known.attempts);
                    if let Some(last) = known.last_start.replace(self.now) {
                        assert!(self.now - last >= known.policy.interval * 9 / 10, "too soon");
                    }
                }
                HealthOutput::CancelProbe { target, attempt } => {
                    let known = self.known.get_mut(&target).expect("a target");
                    assert_eq!(known.running.take(), Some(attempt));
                    assert_eq!(expected_change, None, "a change was not told");
                    let change = known.recompute(ProbeOutcome::TimedOut);
                    expected_change = change.map(|is_up| (target, is_up));
                }
                HealthOutput::Changed { target, is_up, outcome } => {
                    assert_eq!(expected_change.take(), Some((target, is_up)));
                    assert_eq!(outcome, ProbeOutcome::TimedOut);
                }
            }
        }
        assert_eq!(expected_change, None, "a change was not told");
        assert!(checker.poll_timeout().is_none_or(|due| due > self.now), "not strictly later");
        assert_eq!(timeout(checker, self.now), [], "a timeout that comes twice does something");
        self.trace.extend(outputs);
    }

    fn check(&self, checker: &HealthChecker) {
        assert_eq!(checker.poll_timeout().is_some(), !self.known.is_empty());
        for (id, known) in &self.known {
            assert_eq!(checker.is_up(*id), Some(known.is_up));
        }
    }
}

fn play(seed: u64, steps: &[Step]) -> Vec<HealthOutput> {
    let mut checker = HealthChecker::new(seed);
    let mut world = World::default();
    for step in steps {
        world.take(&mut checker, step);
        world.check(&checker);
    }
    world.trace
}

proptest! {
    #[test]
    fn whatever_happens_it_does_what_the_model_says(
        seed: u64,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        prop_assert_eq!(play(seed, &steps), play(seed, &steps), "the same seed, another life");
    }

    #[test]
    fn a_jittered_interval_is_within_a_tenth(seed: u64, millis in 1u64..10_000_000) {
        let interval = Duration::from_millis(millis);
        let drawn = jittered(interval, &mut Random::new(seed));
        prop_assert!(drawn >= interval * 9 / 10 && drawn <= interval * 11 / 10);
    }
}
