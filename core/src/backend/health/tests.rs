use super::*;

const PASSIVE: Passive = Passive { silent_flows: 3, back_off: Duration::from_secs(4) };

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1_000)
}

fn at_millis(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

/// An error about a datagram that has just been sent.
fn error(health: &mut BackendHealth, now: Instant) -> bool {
    health.network_failed(&PASSIVE, now, now)
}

fn silence(health: &mut BackendHealth, now: Instant) -> bool {
    health.record_unanswered(&PASSIVE, now, now)
}

fn answer(health: &mut BackendHealth, now: Instant) {
    health.last_answer = Some(now);
    health.forgive();
}

fn pass(health: &mut BackendHealth, now: Instant) -> bool {
    health.handle_timeout(Some(&PASSIVE), now)
}

fn ejected(now: Instant) -> BackendHealth {
    let mut health = BackendHealth::default();
    error(&mut health, now);
    assert!(error(&mut health, now));
    health
}

#[test]
fn one_error_of_the_network_is_not_enough_and_two_are() {
    let mut health = BackendHealth::default();
    assert!(!error(&mut health, at(0)));
    assert!(health.is_up());
    assert!(error(&mut health, at(1)));
    assert!(!health.is_up());
    let ejection = Ejection { cause: EjectionCause::NetworkErrors, since: at(1), until: at(7) };
    assert_eq!(health.ejection(), Some(ejection));
    assert_eq!(health.next_event(), Some(at(7)), "half as long again as the back-off");
}

#[test]
fn an_answer_between_two_errors_starts_the_count_anew() {
    let mut health = BackendHealth::default();
    error(&mut health, at(0));
    answer(&mut health, at(0));
    assert!(!health.has_evidence());
    assert!(!error(&mut health, at(1)));
    assert!(health.is_up());
}

#[test]
fn an_error_about_a_datagram_after_which_it_has_answered_somebody_does_not_count() {
    let mut health = BackendHealth::default();
    answer(&mut health, at(5));
    for _ in 0..100 {
        assert!(!health.network_failed(&PASSIVE, at(5), at(6)));
    }
    assert!(health.is_up() && !health.has_evidence());
}

#[test]
fn errors_put_one_that_has_just_answered_out_only_if_it_says_nothing_for_a_while() {
    let mut health = BackendHealth::default();
    answer(&mut health, at_millis(1_000));
    for _ in 0..9 {
        assert!(!error(&mut health, at_millis(1_001)));
    }
    assert_eq!(health.next_event(), Some(at_millis(1_010)));
    let mut alive = health;
    answer(&mut alive, at_millis(1_002));
    assert!(!pass(&mut alive, at_millis(1_010)) && alive.is_up());
    assert!(pass(&mut health, at_millis(1_010)) && !health.is_up());
}

#[test]
fn datagrams_never_overrule_a_probe_that_passes() {
    let mut health = ejected(at(0));
    health.hear(BackendEvent::Up);
    assert!(health.is_up(), "a probe that passes clears what was held against it");
    for _ in 0..9 {
        assert!(!error(&mut health, at(1)) && !silence(&mut health, at(1)));
    }
    health.hear(BackendEvent::Unprobed);
    error(&mut health, at(2));
    assert!(error(&mut health, at(2)), "it is not probed any more");
}

#[test]
fn what_the_operator_says_clears_what_datagrams_said() {
    let mut health = ejected(at(0));
    health.hear(BackendEvent::Undrain);
    assert!(health.is_up() && !error(&mut health, at(1)));
}

#[test]
fn errors_and_silence_are_counted_apart() {
    let mut health = BackendHealth::default();
    error(&mut health, at(0));
    assert!(!silence(&mut health, at(0)));
    assert!(!silence(&mut health, at(0)));
    assert!(health.is_up());
    assert!(silence(&mut health, at(0)));
    assert_eq!(health.ejection().map(|ejection| ejection.cause), Some(EjectionCause::Unanswered));
}

#[test]
fn the_silence_of_a_flow_does_not_count_if_it_has_answered_another_since() {
    let mut health = BackendHealth::default();
    answer(&mut health, at(3));
    for _ in 0..9 {
        assert!(!health.record_unanswered(&PASSIVE, at(3), at(60)));
    }
    assert!(health.is_up());
}

#[test]
fn it_comes_back_by_itself_and_one_sign_is_enough_until_it_answers() {
    let mut health = ejected(at(0));
    pass(&mut health, at_millis(5_999));
    assert!(!health.is_up());
    pass(&mut health, at(6));
    assert!(health.is_up() && health.has_evidence());

    assert!(error(&mut health, at(7)));
    assert_eq!(health.next_event(), Some(at(19)), "the time out of service doubles");
    pass(&mut health, at(19));
    answer(&mut health, at(19));
    assert!(!error(&mut health, at(20)));
    assert!(health.is_up());
}

#[test]
fn what_is_long_ago_does_not_count() {
    let mut health = BackendHealth::default();
    error(&mut health, at(0));
    assert!(!error(&mut health, at(48)), "twelve back-offs of calm");
    assert!(error(&mut health, at(95)), "and a little less");
}

#[test]
fn a_server_that_never_answers_is_left_no_longer_for_each_restart() {
    let mut health = BackendHealth::default();
    for restart in 1..100 {
        let now = at(restart * 1_000);
        error(&mut health, now);
        assert!(error(&mut health, now), "restart {restart}");
        assert_eq!(health.next_event(), Some(now + Duration::from_secs(6)), "restart {restart}");
        pass(&mut health, now + Duration::from_secs(6));
    }
}

#[test]
fn the_time_out_of_service_halves_with_time_in_service() {
    let mut health = ejected(at(0));
    pass(&mut health, at(6));
    assert!(error(&mut health, at(7)), "12 s, until 19");
    pass(&mut health, at(19));
    assert!(error(&mut health, at(20)), "24 s, until 44");
    pass(&mut health, at(44));
    // As long in service as out of it: one step back.
    assert!(error(&mut health, at(68)));
    assert_eq!(health.next_event(), Some(at(68 + 24)));
}

#[test]
fn signs_that_come_while_it_is_out_do_not_prolong_its_absence() {
    let mut health = ejected(at(0));
    assert!(!error(&mut health, at(3)));
    assert_eq!(health.next_event(), Some(at(6)));
}

#[test]
fn its_absence_grows_no_longer_than_the_maximum() {
    let mut now = Instant::ORIGIN;
    let mut health = ejected(now);
    for _ in 0..100 {
        let until = health.next_event().unwrap();
        assert!(until - now <= MAX_EJECTION);
        now = until;
        pass(&mut health, now);
        assert!(health.is_up());
        assert!(error(&mut health, now));
    }
    assert_eq!(health.next_event(), Some(now + MAX_EJECTION));
}

#[test]
fn an_answer_ends_its_absence() {
    let mut health = ejected(at(0));
    answer(&mut health, at(1));
    assert!(health.is_up());
    assert_eq!(health.next_event(), None);
}

#[test]
fn a_drain_is_over_at_its_deadline_and_not_before() {
    let mut health = BackendHealth::default();
    health.hear(BackendEvent::Drain { deadline: Some(at(5)) });
    assert_eq!(health.next_event(), Some(at(5)));
    pass(&mut health, at_millis(4_999));
    assert_eq!(health.drain, Drain::Until(Some(at(5))));
    pass(&mut health, at(5));
    assert_eq!((health.drain, health.next_event()), (Drain::Over, None));
    health.hear(BackendEvent::Undrain);
    assert_eq!(health.drain, Drain::No);
}

#[test]
fn a_drain_without_a_deadline_never_ends_by_itself() {
    let mut health = BackendHealth::default();
    health.hear(BackendEvent::Drain { deadline: None });
    assert_eq!(health.next_event(), None);
    pass(&mut health, Instant::FAR_FUTURE);
    assert_eq!(health.drain, Drain::Until(None));
}

#[test]
fn on_probation_one_sign_of_another_kind_is_enough_too() {
    let mut health = ejected(at(0));
    pass(&mut health, at(6));
    assert!(silence(&mut health, at(7)));
    assert!(!health.is_up());
}
