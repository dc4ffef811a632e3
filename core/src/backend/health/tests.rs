use super::*;
use core::time::Duration;

const PASSIVE: Passive = Passive { silent_flows: 3, back_off: Duration::from_secs(5) };

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1_000)
}

#[test]
fn one_error_of_the_network_is_not_enough_and_two_are() {
    let mut health = BackendHealth::default();
    assert!(!health.network_failed(&PASSIVE, at(0)));
    assert!(health.is_up());
    assert!(health.network_failed(&PASSIVE, at(1)));
    assert!(!health.is_up());
    assert_eq!(health.next_event(), Some(at(6)));
}

#[test]
fn an_answer_between_two_errors_starts_the_count_anew() {
    let mut health = BackendHealth::default();
    health.network_failed(&PASSIVE, at(0));
    assert!(health.has_evidence());
    health.answered();
    assert!(!health.has_evidence());
    assert!(!health.network_failed(&PASSIVE, at(1)));
    assert!(health.is_up());
}

#[test]
fn errors_and_silence_are_counted_apart() {
    let mut health = BackendHealth::default();
    health.network_failed(&PASSIVE, at(0));
    assert!(!health.record_unanswered(&PASSIVE, at(0)));
    assert!(!health.record_unanswered(&PASSIVE, at(0)));
    assert!(health.is_up());
    assert!(health.record_unanswered(&PASSIVE, at(0)));
    assert!(!health.is_up());
}

#[test]
fn it_comes_back_by_itself_and_one_sign_is_enough_until_it_answers() {
    let mut health = BackendHealth::default();
    health.network_failed(&PASSIVE, at(0));
    health.network_failed(&PASSIVE, at(0));
    health.handle_timeout(at(4));
    assert!(!health.is_up());
    health.handle_timeout(at(5));
    assert!(health.is_up());
    assert!(health.has_evidence());

    assert!(health.network_failed(&PASSIVE, at(6)));
    assert_eq!(health.next_event(), Some(at(16)), "the time out of service doubles");
    health.handle_timeout(at(16));
    health.answered();
    assert!(!health.network_failed(&PASSIVE, at(17)));
    assert!(health.is_up());
}

#[test]
fn signs_that_come_while_it_is_out_do_not_prolong_its_absence() {
    let mut health = BackendHealth::default();
    health.network_failed(&PASSIVE, at(0));
    health.network_failed(&PASSIVE, at(0));
    assert!(!health.network_failed(&PASSIVE, at(3)));
    assert_eq!(health.next_event(), Some(at(5)));
}

#[test]
fn its_absence_grows_no_longer_than_the_most() {
    let mut health = BackendHealth::default();
    let mut now = Instant::ORIGIN;
    health.network_failed(&PASSIVE, now);
    for _ in 0..100 {
        assert!(health.network_failed(&PASSIVE, now));
        let until = health.next_event().unwrap();
        assert!(until - now <= MAX_EJECTION);
        now = until;
        health.handle_timeout(now);
        assert!(health.is_up());
    }
    health.network_failed(&PASSIVE, now);
    assert_eq!(health.next_event(), Some(now + MAX_EJECTION));
}

#[test]
fn an_answer_ends_its_absence() {
    let mut health = BackendHealth::default();
    health.network_failed(&PASSIVE, at(0));
    health.network_failed(&PASSIVE, at(0));
    health.answered();
    assert!(health.is_up());
    assert_eq!(health.next_event(), None);
}

#[test]
fn a_drain_is_over_at_its_deadline_and_not_before() {
    let mut health = BackendHealth::default();
    health.hear(BackendEvent::Drain { deadline: Some(at(5)) });
    assert_eq!(health.next_event(), Some(at(5)));
    health.handle_timeout(Instant::from_millis(4_999));
    assert_eq!(health.drain, Drain::Until(Some(at(5))));
    health.handle_timeout(at(5));
    assert_eq!((health.drain, health.next_event()), (Drain::Over, None));
    health.hear(BackendEvent::Undrain);
    assert_eq!(health.drain, Drain::No);
}

#[test]
fn a_drain_without_a_deadline_never_ends_by_itself() {
    let mut health = BackendHealth::default();
    health.hear(BackendEvent::Drain { deadline: None });
    assert_eq!(health.next_event(), None);
    health.handle_timeout(Instant::FAR_FUTURE);
    assert_eq!(health.drain, Drain::Until(None));
}

#[test]
fn each_kind_of_sign_is_one_that_an_answer_clears() {
    let mut errors = BackendHealth::default();
    errors.network_failed(&PASSIVE, at(0));
    let mut silence = BackendHealth::default();
    silence.record_unanswered(&PASSIVE, at(0));
    let mut probation = BackendHealth::default();
    probation.signs.ejections = 1;
    for mut health in [errors, silence, probation] {
        assert!(health.has_evidence());
        health.answered();
        assert!(!health.has_evidence());
    }
}

#[test]
fn on_probation_one_sign_of_another_kind_is_enough_too() {
    let mut health = BackendHealth::default();
    health.network_failed(&PASSIVE, at(0));
    health.network_failed(&PASSIVE, at(0));
    health.handle_timeout(at(5));
    assert!(health.record_unanswered(&PASSIVE, at(6)));
    assert!(!health.is_up());
}
