use super::*;
use core::net::{Ipv4Addr, Ipv6Addr};

fn limits(change: impl FnOnce(&mut Limits)) -> SourceLimits {
    let mut limits = Limits::default();
    change(&mut limits);
    SourceLimits::new(&limits, 1_000, &mut Random::new(1))
}

fn v4(ip: [u8; 4]) -> u128 {
    Ipv4Addr::from(ip).to_ipv6_mapped().to_bits()
}

fn v6(ip: &str) -> u128 {
    ip.parse::<Ipv6Addr>().unwrap().to_bits()
}

/// Opens as many flows as are admitted, at most `attempts`.
fn open(limits: &mut SourceLimits, client: u128, attempts: usize, now: Instant) -> usize {
    (0..attempts)
        .filter(|_| {
            let admitted = limits.admit(client, now).is_ok();
            if admitted {
                limits.opened(client);
            }
            admitted
        })
        .count()
}

#[test]
fn a_source_has_its_limit_and_others_have_theirs() {
    let mut limits = limits(|l| l.flows_per_source = 3);
    assert_eq!(open(&mut limits, v4([192, 0, 2, 1]), 10, Instant::ORIGIN), 3);
    assert_eq!(open(&mut limits, v4([192, 0, 2, 2]), 10, Instant::ORIGIN), 3);
    let refused = limits.admit(v4([192, 0, 2, 1]), Instant::ORIGIN);
    assert_eq!(refused, Err(DropReason::SourceFlows));
}

#[test]
fn a_limit_frees_as_flows_end() {
    let mut limits = limits(|l| l.flows_per_source = 1);
    let client = v6("2001:db8::1");
    for _ in 0..5 {
        assert_eq!(open(&mut limits, client, 2, Instant::ORIGIN), 1);
        limits.closed(client);
    }
    assert_eq!(limits.totals().collect::<Vec<_>>(), [0]);
}

#[test]
fn a_subnet_is_a_24_of_ipv4_and_a_56_of_ipv6() {
    let mut limits = limits(|l| l.flows_per_subnet = 2);
    let now = Instant::ORIGIN;
    assert_eq!(open(&mut limits, v4([192, 0, 2, 1]), 1, now), 1);
    assert_eq!(open(&mut limits, v4([192, 0, 2, 255]), 5, now), 1);
    assert_eq!(open(&mut limits, v4([192, 0, 3, 1]), 5, now), 2);
    assert_eq!(open(&mut limits, v6("2001:db8:0:ff::1"), 1, now), 1);
    assert_eq!(open(&mut limits, v6("2001:db8:0:00::1"), 5, now), 1);
    assert_eq!(open(&mut limits, v6("2001:db8:0:100::1"), 5, now), 2);
}

#[test]
fn a_rate_allows_a_second_at_once_and_then_its_pace() {
    let mut limits = limits(|l| l.new_flows_per_second_per_source = 10);
    let client = v4([192, 0, 2, 1]);
    assert_eq!(open(&mut limits, client, 100, Instant::ORIGIN), 10);
    assert_eq!(open(&mut limits, client, 100, Instant::from_millis(99)), 0);
    assert_eq!(open(&mut limits, client, 100, Instant::from_millis(100)), 1);
    assert_eq!(open(&mut limits, client, 100, Instant::from_millis(600)), 5);
    assert_eq!(open(&mut limits, client, 100, Instant::from_millis(60_000)), 10);
}

#[test]
fn nobody_is_refused_for_what_a_flood_of_forged_sources_does() {
    let mut limits = limits(|l| l.new_flows_per_second_per_source = 5);
    let (mut asked, mut refused) = (0, 0);
    for number in 0..200_000u32 {
        // A hundred thousand a second, and an honest source in a hundred.
        let now = Instant::from_nanos(u64::from(number) * 10_000);
        let _ = limits.admit(u128::from(number) << 64, now);
        if number % 100 == 0 {
            asked += 1;
            let honest = v4([192, 0, (number / 100 / 256) as u8, (number / 100) as u8]);
            refused += u32::from(limits.admit(honest, now).is_err());
        }
    }
    assert_eq!((asked, refused), (2_000, 0));
}

#[test]
fn whoever_is_too_fast_stays_so_among_many_others() {
    let mut limits = limits(|l| l.new_flows_per_second_per_source = 5);
    let fast = v4([192, 0, 2, 1]);
    let mut admitted = 0;
    for number in 0..50_000u32 {
        let now = Instant::from_nanos(u64::from(number) * 100_000);
        admitted += u32::from(limits.admit(fast, now).is_ok());
        if number % 10 == 0 {
            let _ = limits.admit(u128::from(number) << 64, now);
        }
    }
    assert!((25..=40).contains(&admitted), "{admitted} in five seconds where 30 may be");
}

#[test]
fn without_limits_nothing_is_refused_or_held() {
    let mut limits = limits(|_| {});
    assert_eq!(open(&mut limits, 1, 5_000, Instant::ORIGIN), 5_000);
    assert_eq!(limits.totals().count(), 0);
}

#[test]
fn sources_are_spread_over_the_tables() {
    let hashes: std::collections::BTreeSet<u64> =
        (0..100).flat_map(|n: u128| [hash(n, (1, 2)), hash(n << 64, (1, 2))]).collect();
    assert_eq!(hashes.len(), 199, "only 0 and 0 are the same");
}
