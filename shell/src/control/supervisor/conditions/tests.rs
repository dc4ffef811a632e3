use super::*;

fn found(state: BackendState, reason: &str) -> Finding {
    Finding { state, reason: Some(reason.to_owned()), since: None, until: None }
}

#[test]
fn a_state_lasts_until_another_one_is_found_and_leaves_an_event() {
    let clock = Clock::start();
    let backend = "10.0.0.1:53".parse().unwrap();
    let mut conditions = Conditions::default();
    let mut observe = |found| conditions.observe("dns", backend, found, &clock);
    let first = observe(found(BackendState::Unchecked, "not probed yet"));
    let again = observe(found(BackendState::Unchecked, "still not"));
    assert_eq!((again.since, again.reason.as_deref()), (first.since, Some("still not")));

    let until = Some(clock.now() + Duration::from_secs(15));
    let ejection = found(BackendState::Ejected, "3 clients got no answer");
    let ejected = observe(Finding { until, ..ejection });
    assert!(ejected.since >= first.since);
    observe(Finding { reason: None, ..found(BackendState::Up, "") });

    let kinds: Vec<_> = conditions.events().into_iter().map(|e| (e.kind, e.text)).collect();
    let [(up, after), (ejected, why)] = &kinds[..] else { panic!("{kinds:?}") };
    assert_eq!((up.as_str(), ejected.as_str()), ("up", "ejected"));
    assert!(after.starts_with("was ejected for "), "{after}");
    assert!(why.starts_with("3 clients got no answer; for 1"), "{why}");
    assert_eq!(conditions.events()[0].subject, "dns/10.0.0.1:53");
}

#[test]
fn who_knows_since_when_is_believed() {
    let clock = Clock::start();
    let backend = "10.0.0.1:53".parse().unwrap();
    let mut conditions = Conditions::default();
    let since = Some(Instant::from_millis(7));
    let condition = conditions.observe(
        "dns",
        backend,
        Finding { since, ..found(BackendState::Ejected, "") },
        &clock,
    );
    assert_eq!(condition.since, Instant::from_millis(7));
}

#[test]
fn a_backend_that_is_gone_is_forgotten_and_old_events_are() {
    let clock = Clock::start();
    let backend = "10.0.0.1:53".parse().unwrap();
    let mut conditions = Conditions::default();
    for _ in 0..MAX_EVENTS {
        conditions.observe("dns", backend, found(BackendState::Down, "x"), &clock);
        conditions.observe("dns", backend, found(BackendState::Up, "y"), &clock);
    }
    assert_eq!(conditions.events().len(), MAX_EVENTS);
    conditions.retain(&[]);
    conditions.observe("dns", backend, found(BackendState::Down, "x"), &clock);
    // It is new, and in trouble; one that is well is nothing to tell of.
    assert_eq!(conditions.events()[0].kind, "down");
    conditions.retain(&[]);
    conditions.observe("dns", backend, found(BackendState::Up, "y"), &clock);
    assert_eq!(conditions.events()[0].kind, "down");
}

#[test]
fn a_reload_is_remembered_with_what_it_says() {
    let clock = Clock::start();
    let mut conditions = Conditions::default();
    conditions.reloaded(false, &["workers: cannot change".to_owned()], &clock);
    let last = conditions.last_reload().unwrap();
    assert!(!last.ok && last.at > 0.0);
    assert_eq!(last.notes, ["workers: cannot change"]);
    assert_eq!(conditions.events()[0].kind, "refused");
}
