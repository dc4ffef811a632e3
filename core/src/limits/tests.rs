use super::*;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};
use proptest::prelude::*;
use std::vec;

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

/// How many of a number of datagrams of one size are admitted, as one burst.
fn send(limits: &mut SourceLimits, client: u128, count: usize, size: u16, now: Instant) -> u16 {
    let bytes = vec![0; count * usize::from(size)];
    let burst = Burst::segmented(&bytes, size).unwrap();
    limits.admit_datagrams(client, &burst, now).0
}

#[test]
fn a_source_sends_a_second_of_datagrams_at_once_and_then_its_pace() {
    let mut limits = limits(|l| l.datagrams_per_second_per_source = 10);
    let client = v4([192, 0, 2, 1]);
    assert_eq!(send(&mut limits, client, 7, 100, Instant::ORIGIN), 7);
    assert_eq!(send(&mut limits, client, 7, 100, Instant::ORIGIN), 3);
    assert_eq!(send(&mut limits, client, 7, 100, Instant::from_millis(99)), 0);
    assert_eq!(send(&mut limits, client, 7, 100, Instant::from_millis(600)), 6);
    assert_eq!(send(&mut limits, v4([192, 0, 2, 2]), 20, 1, Instant::ORIGIN), 10);
    assert_eq!(send(&mut limits, client, 40, 100, Instant::from_millis(60_000)), 10);
}

#[test]
fn a_source_sends_a_second_of_bytes_at_once_and_then_its_pace() {
    let mut limits = limits(|l| l.bytes_per_second_per_source = 1_000);
    let client = v6("2001:db8::1");
    assert_eq!(send(&mut limits, client, 3, 300, Instant::ORIGIN), 3);
    assert_eq!(send(&mut limits, client, 1, 300, Instant::ORIGIN), 0, "100 bytes are left");
    assert_eq!(send(&mut limits, client, 2, 100, Instant::ORIGIN), 1);
    assert_eq!(send(&mut limits, client, 3, 100, Instant::from_millis(250)), 2);
    assert_eq!(send(&mut limits, client, 1, 0, Instant::from_millis(250)), 1, "no bytes");
}

#[test]
fn a_datagram_of_more_than_a_second_passes_alone_and_then_has_to_be_paid_for() {
    let mut limits = limits(|l| l.bytes_per_second_per_source = 1_000);
    let client = v4([192, 0, 2, 1]);
    assert_eq!(send(&mut limits, client, 2, 3_000, Instant::ORIGIN), 1);
    assert_eq!(send(&mut limits, client, 1, 1, Instant::from_millis(2_000)), 0);
    assert_eq!(send(&mut limits, client, 1, 3_000, Instant::from_millis(2_999)), 0);
    assert_eq!(send(&mut limits, client, 1, 3_000, Instant::from_millis(3_000)), 1);
}

#[test]
fn what_one_rate_refuses_does_not_count_against_the_other() {
    let mut limits = limits(|l| {
        (l.datagrams_per_second_per_source, l.bytes_per_second_per_source) = (10, 100);
    });
    let client = v4([192, 0, 2, 1]);
    let burst = Burst::segmented(&[0; 200], 50).unwrap();
    let admitted = limits.admit_datagrams(client, &burst, Instant::ORIGIN);
    assert_eq!(admitted, (2, DropReason::SourceBytes));
    let empty = Burst::single(&[]).unwrap();
    for _ in 0..8 {
        assert_eq!(limits.admit_datagrams(client, &empty, Instant::ORIGIN).0, 1);
    }
    let refused = limits.admit_datagrams(client, &empty, Instant::ORIGIN);
    assert_eq!(refused, (0, DropReason::SourceDatagrams));
}

proptest! {
    /// A burst is worth as much as its datagrams one by one.
    #[test]
    fn bursts_are_as_good_as_their_datagrams(
        datagrams in 0..60_u32,
        bytes in 0..20_000_u64,
        sent in proptest::collection::vec((0..3_000_usize, 1..1_500_u16, 0..400_u64), 1..40),
    ) {
        let mut limits = limits(|l| {
            l.datagrams_per_second_per_source = datagrams;
            l.bytes_per_second_per_source = bytes;
        });
        let mut twin = limits.clone();
        let mut now = 0;
        for (length, stride, wait) in sent {
            now += wait;
            let now = Instant::from_millis(now);
            let payload = vec![0; length];
            let burst = Burst::segmented(&payload, stride).unwrap();
            let (admitted, reason) = limits.admit_datagrams(1, &burst, now);
            let one_by_one: Vec<_> = burst
                .datagrams()
                .map(|datagram| {
                    twin.admit_datagrams(1, &Burst::single(datagram).unwrap(), now)
                })
                .take_while(|&(admitted, _)| admitted > 0)
                .collect();
            prop_assert_eq!(usize::from(admitted), one_by_one.len());
            if admitted < burst.count() {
                let next = burst.datagrams().nth(admitted.into()).unwrap();
                let next = twin.admit_datagrams(1, &Burst::single(next).unwrap(), now);
                prop_assert_eq!(next, (0, reason));
            }
        }
    }
}
