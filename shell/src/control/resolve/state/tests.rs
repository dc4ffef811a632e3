use super::*;

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn found(texts: &[&str], seconds: u64) -> Family {
    Family::Found { addresses: ips(texts), ttl: Duration::from_secs(seconds) }
}

fn failed(why: &str) -> Family {
    Family::Failed(why.into())
}

fn learn(state: &mut NameState, v4: Family, v6: Family) -> Step {
    state.learn(Outcome { v4, v6 }, Duration::ZERO, Duration::ZERO)
}

#[test]
fn an_answer_is_sorted_and_told_once() {
    let mut state = NameState::default();
    let both = || (found(&["10.0.0.2", "10.0.0.1", "10.0.0.2"], 60), found(&["2001:db8::1"], 30));
    let (v4, v6) = both();
    let first = learn(&mut state, v4, v6);
    assert_eq!(first.changed, Some(ips(&["10.0.0.1", "10.0.0.2", "2001:db8::1"])));
    assert_eq!((first.event, first.wait), (None, Duration::from_secs(30)));

    let (v4, v6) = both();
    assert_eq!(learn(&mut state, v4, v6).changed, None);
    let fewer = learn(&mut state, found(&["10.0.0.2"], 60), Family::Nothing);
    assert_eq!(fewer.changed, Some(ips(&["10.0.0.2"])));
}

#[test]
fn the_time_to_live_is_bounded_on_both_sides() {
    for (ttl, wait) in [(0, 1), (1, 1), (60, 60), (300, 300), (86_400, 300)] {
        let step = learn(&mut NameState::default(), found(&["10.0.0.1"], ttl), Family::Nothing);
        assert_eq!(step.wait, Duration::from_secs(wait), "a TTL of {ttl} s");
    }
}

#[test]
fn whatever_fails_leaves_the_last_good_answer() {
    let failures = [
        (failed("refused"), failed("refused")),
        (failed("refused"), Family::Nothing),
        (Family::Nothing, Family::Nothing),
        (Family::NoName, Family::NoName),
    ];
    for (v4, v6) in failures {
        let mut state = NameState::default();
        learn(&mut state, found(&["10.0.0.1"], 60), found(&["2001:db8::1"], 60));
        let step = learn(&mut state, v4.clone(), v6.clone());
        assert_eq!(step.changed, None, "{v4:?} {v6:?}");
        assert!(matches!(step.event, Some(News::Trouble(_))));
        assert_eq!(state.addresses(), ips(&["10.0.0.1", "2001:db8::1"]));
    }
}

#[test]
fn nothing_is_told_before_the_first_good_answer() {
    let mut state = NameState::default();
    let step = learn(&mut state, Family::Nothing, Family::NoName);
    assert_eq!(step.changed, None);
    assert!(state.addresses().is_empty());
}

#[test]
fn retries_come_later_and_later_until_one_succeeds() {
    let mut state = NameState::default();
    let wait = |state: &mut NameState| {
        learn(state, failed("timed out"), failed("timed out")).wait.as_secs()
    };
    let waits: Vec<_> = (0..8).map(|_| wait(&mut state)).collect();
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
    for _ in 0..100 {
        assert_eq!(wait(&mut state), 30);
    }
    learn(&mut state, found(&["10.0.0.1"], 60), Family::Nothing);
    assert_eq!(wait(&mut state), 1);
}

#[test]
fn a_trouble_is_told_once_and_so_is_its_end() {
    let mut state = NameState::default();
    let told = |step: Step| match step.event {
        Some(News::Trouble(_)) => "trouble",
        Some(News::Recovered) => "recovered",
        None => "",
    };
    let good = || found(&["10.0.0.1"], 60);
    assert_eq!(told(learn(&mut state, good(), Family::Nothing)), "");
    assert_eq!(told(learn(&mut state, failed("a"), failed("a"))), "trouble");
    // The words may differ by a port or a time; it is the same trouble.
    assert_eq!(told(learn(&mut state, failed("b"), failed("b"))), "");
    assert_eq!(told(learn(&mut state, Family::NoName, Family::NoName)), "trouble");
    assert_eq!(told(learn(&mut state, Family::NoName, Family::NoName)), "");
    assert_eq!(told(learn(&mut state, good(), Family::Nothing)), "recovered");
    assert_eq!(told(learn(&mut state, good(), Family::Nothing)), "");
}

#[test]
fn one_family_that_fails_keeps_its_part() {
    let mut state = NameState::default();
    learn(&mut state, found(&["10.0.0.1"], 60), found(&["2001:db8::1"], 60));
    let step = learn(&mut state, found(&["10.0.0.2"], 60), failed("timed out"));
    assert_eq!(step.changed, Some(ips(&["10.0.0.2", "2001:db8::1"])));
    assert_eq!(step.wait, Duration::from_secs(1), "the failed part is tried again soon");
    let Some(News::Trouble(why)) = step.event else { panic!("{step:?}") };
    assert_eq!(why, "of its IPv6 addresses nothing is known: timed out");
}

#[test]
fn a_name_with_very_many_addresses_gives_a_bounded_number() {
    let many = (0..2 * MAX_ADDRESSES as u32).map(|n| IpAddr::V4((0x0a00_0000 + n).into()));
    let v4 = Family::Found { addresses: many.collect(), ttl: Duration::from_secs(1) };
    let mut state = NameState::default();
    let addresses = learn(&mut state, v4, Family::Nothing).changed.unwrap();
    assert_eq!(addresses.len(), MAX_ADDRESSES);
    assert_eq!(state.left_out(), MAX_ADDRESSES);
    assert_eq!(addresses[0].to_string(), "10.0.0.0");
}

#[test]
fn what_a_rotating_answer_leaves_out_is_kept_for_a_while() {
    const HOLD: Duration = Duration::from_secs(10);
    let at = Duration::from_secs;
    let mut state = NameState::default();
    let answer = |texts: &[&str]| Outcome {
        v4: Family::Found {
            addresses: texts.iter().map(|text| text.parse().unwrap()).collect(),
            ttl: Duration::ZERO,
        },
        v6: Family::Nothing,
    };
    let ips =
        |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|t| t.parse().unwrap()).collect() };
    state.learn(answer(&["10.0.0.1", "10.0.0.2"]), at(0), HOLD);
    let step = state.learn(answer(&["10.0.0.2", "10.0.0.3"]), at(1), HOLD);
    assert_eq!(step.changed, Some(ips(&["10.0.0.1", "10.0.0.2", "10.0.0.3"])));
    // It has been given again meanwhile, so it is kept for longer.
    assert_eq!(state.learn(answer(&["10.0.0.1", "10.0.0.3"]), at(5), HOLD).changed, None);
    let step = state.learn(answer(&["10.0.0.1"]), at(15), HOLD);
    assert_eq!(step.changed, Some(ips(&["10.0.0.1", "10.0.0.3"])), "ten seconds are over for one");
    assert_eq!(state.learn(answer(&["10.0.0.1"]), at(26), HOLD).changed, Some(ips(&["10.0.0.1"])));
    // A name that goes over to another address altogether means it.
    state.learn(answer(&["10.0.0.1", "10.0.0.2"]), at(27), HOLD);
    state.learn(answer(&["10.0.0.1"]), at(28), HOLD);
    let step = state.learn(answer(&["10.9.9.9"]), at(29), HOLD);
    assert_eq!(step.changed, Some(ips(&["10.9.9.9"])));
}
