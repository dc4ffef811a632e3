use super::*;
use core::time::Duration;

const PASSIVE: Passive = Passive { silent_flows: 3, back_off: Duration::from_secs(5) };

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1_000)
}

#[test]
fn one_error_of_the_network_is_not_enough_and_two_are() {
    let mut standing = Standing::default();
    assert!(!standing.network_failed(&PASSIVE, at(0)));
    assert!(standing.is_up());
    assert!(standing.network_failed(&PASSIVE, at(1)));
    assert!(!standing.is_up());
    assert_eq!(standing.next_event(), Some(at(6)));
}

#[test]
fn an_answer_between_two_errors_starts_the_count_anew() {
    let mut standing = Standing::default();
    standing.network_failed(&PASSIVE, at(0));
    assert!(standing.has_signs());
    standing.answered();
    assert!(!standing.has_signs());
    assert!(!standing.network_failed(&PASSIVE, at(1)));
    assert!(standing.is_up());
}

#[test]
fn errors_and_silence_are_counted_apart() {
    let mut standing = Standing::default();
    standing.network_failed(&PASSIVE, at(0));
    assert!(!standing.was_silent(&PASSIVE, at(0)));
    assert!(!standing.was_silent(&PASSIVE, at(0)));
    assert!(standing.is_up());
    assert!(standing.was_silent(&PASSIVE, at(0)));
    assert!(!standing.is_up());
}

#[test]
fn it_comes_back_by_itself_and_one_sign_is_enough_until_it_answers() {
    let mut standing = Standing::default();
    standing.network_failed(&PASSIVE, at(0));
    standing.network_failed(&PASSIVE, at(0));
    standing.handle_timeout(at(4));
    assert!(!standing.is_up());
    standing.handle_timeout(at(5));
    assert!(standing.is_up());
    assert!(standing.has_signs());

    assert!(standing.network_failed(&PASSIVE, at(6)));
    assert_eq!(standing.next_event(), Some(at(16)), "the time out of service doubles");
    standing.handle_timeout(at(16));
    standing.answered();
    assert!(!standing.network_failed(&PASSIVE, at(17)));
    assert!(standing.is_up());
}

#[test]
fn signs_that_come_while_it_is_out_do_not_prolong_its_absence() {
    let mut standing = Standing::default();
    standing.network_failed(&PASSIVE, at(0));
    standing.network_failed(&PASSIVE, at(0));
    assert!(!standing.network_failed(&PASSIVE, at(3)));
    assert_eq!(standing.next_event(), Some(at(5)));
}

#[test]
fn its_absence_grows_no_longer_than_the_most() {
    let mut standing = Standing::default();
    let mut now = Instant::ORIGIN;
    standing.network_failed(&PASSIVE, now);
    for _ in 0..100 {
        assert!(standing.network_failed(&PASSIVE, now));
        let until = standing.next_event().unwrap();
        assert!(until - now <= MOST_PATIENCE);
        now = until;
        standing.handle_timeout(now);
        assert!(standing.is_up());
    }
    standing.network_failed(&PASSIVE, now);
    assert_eq!(standing.next_event(), Some(now + MOST_PATIENCE));
}

#[test]
fn an_answer_ends_its_absence() {
    let mut standing = Standing::default();
    standing.network_failed(&PASSIVE, at(0));
    standing.network_failed(&PASSIVE, at(0));
    standing.answered();
    assert!(standing.is_up());
    assert_eq!(standing.next_event(), None);
}

#[test]
fn a_drain_is_over_at_its_deadline_and_not_before() {
    let mut standing = Standing::default();
    standing.hear(BackendNews::Drain { deadline: Some(at(5)) });
    assert_eq!(standing.next_event(), Some(at(5)));
    standing.handle_timeout(Instant::from_millis(4_999));
    assert_eq!(standing.drain, Drain::Until(Some(at(5))));
    standing.handle_timeout(at(5));
    assert_eq!((standing.drain, standing.next_event()), (Drain::Over, None));
    standing.hear(BackendNews::Undrain);
    assert_eq!(standing.drain, Drain::No);
}

#[test]
fn a_drain_without_a_deadline_never_ends_by_itself() {
    let mut standing = Standing::default();
    standing.hear(BackendNews::Drain { deadline: None });
    assert_eq!(standing.next_event(), None);
    standing.handle_timeout(Instant::FAR_FUTURE);
    assert_eq!(standing.drain, Drain::Until(None));
}

#[test]
fn each_kind_of_sign_is_one_that_an_answer_clears() {
    let mut errors = Standing::default();
    errors.network_failed(&PASSIVE, at(0));
    let mut silence = Standing::default();
    silence.was_silent(&PASSIVE, at(0));
    let mut probation = Standing::default();
    probation.signs.times_out = 1;
    for mut standing in [errors, silence, probation] {
        assert!(standing.has_signs());
        standing.answered();
        assert!(!standing.has_signs());
    }
}

#[test]
fn on_probation_one_sign_of_another_kind_is_enough_too() {
    let mut standing = Standing::default();
    standing.network_failed(&PASSIVE, at(0));
    standing.network_failed(&PASSIVE, at(0));
    standing.handle_timeout(at(5));
    assert!(standing.was_silent(&PASSIVE, at(6)));
    assert!(!standing.is_up());
}
