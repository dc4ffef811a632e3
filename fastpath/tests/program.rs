//! The program in the kernel, run on packets of every kind (`BPF_PROG_TEST_RUN`): what it forwards
//! is what [`rewrite`] says, and what it lets through is as it was. Needs root, and attaches nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

use flowgate_fastpath::{
    Entry, EntryOptions, FastPath, LoadError, Progress, Table, Tuple, rewrite,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const FORWARDED: i32 = 7; // TC_ACT_REDIRECT
const LET_THROUGH: i32 = -1;
const MAX_LEN: u16 = 1_280;
const LATER: u64 = u64::MAX / 2;

/// The program with a flow of each family, of which `packet` makes datagrams.
struct Bench {
    path: FastPath,
    table: Table,
    flows: Vec<(Tuple, Entry)>,
}

fn tuple(source: &str, destination: &str) -> Tuple {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    Tuple::new(address(source), address(destination)).expect("one family")
}

impl Bench {
    /// `None`, and a line that says so, where the program may not be loaded.
    fn new(is_pending: bool) -> Option<Self> {
        let path = match FastPath::load() {
            Ok(path) => path,
            Err(error @ LoadError::NotPermitted) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let mut table = path.table().expect("the maps");
        let pairs = [
            (tuple("198.51.100.7:4711", "192.0.2.1:53"), tuple("10.0.0.1:30000", "10.0.0.9:9000")),
            (
                tuple("[2001:db8::7]:4711", "[2001:db8:1::1]:53"),
                tuple("[fd00::1]:30000", "[fd00::ffff:9]:9000"),
            ),
        ];
        let gate = table.take_gate().expect("a gate");
        let flows = pairs.map(|(from, to)| {
            let account = table.take_accounts().expect("accounts");
            table.account(account).begin(1);
            let options = EntryOptions {
                account,
                gate,
                epoch: table.gate(gate).epoch(),
                worker: 3,
                ifindex: 1,
                next_hop: to.destination().ip(),
                max_len: MAX_LEN,
                is_pending,
            };
            let entry = Entry::new(&from, &to, &options).expect("one family");
            table.insert(&from, &entry).expect("room");
            (from, entry)
        });
        table.turn(3).alive_ns.store(LATER, Ordering::Relaxed);
        Some(Self { path, table, flows: flows.into() })
    }

    fn run(&mut self, packet: &[u8], gso: Option<(u32, u32)>) -> (i32, Vec<u8>) {
        self.path.test_run(packet, gso).expect("the program runs")
    }

    /// Asserts that the program does with the packet what [`rewrite`] says.
    fn check(&mut self, packet: &[u8]) -> Result<bool, TestCaseError> {
        let find = |key: &[u8], is_v6: bool| {
            let found = self.flows.iter().find(|(tuple, _)| raw(tuple) == key);
            found.filter(|(tuple, _)| tuple.source().is_ipv6() == is_v6).map(|(_, entry)| entry)
        };
        let expected = rewrite(packet, find);
        let (said, packet_after) = self.run(packet, None);
        prop_assert_eq!(said, if expected.is_some() { FORWARDED } else { LET_THROUGH });
        prop_assert_eq!(&packet_after, expected.as_deref().unwrap_or(packet));
        Ok(expected.is_some())
    }

    fn counted(&self, flow: usize) -> (u64, u64) {
        let account = self.table.account(self.flows[flow].1.account);
        (account.datagrams.load(Ordering::Relaxed), account.bytes.load(Ordering::Relaxed))
    }
}

fn raw(tuple: &Tuple) -> Vec<u8> {
    let ip = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (source, destination) = (tuple.source(), tuple.destination());
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()];
    [ip(source), ip(destination), ports.concat()].concat()
}

fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An Ethernet frame with a datagram.
fn packet(tuple: &Tuple, payload: &[u8], hops: u8) -> Vec<u8> {
    let raw = raw(tuple);
    let (addresses, ports) = raw.split_at(raw.len() - 4);
    let length = u16::try_from(8 + payload.len()).expect("a datagram");
    let mut udp = [ports, &length.to_be_bytes(), &[0, 0], payload].concat();
    let pseudo = [0, 17, length.to_be_bytes()[0], length.to_be_bytes()[1]];
    let check = checksum(&[addresses, &pseudo, &udp]);
    udp[6..8].copy_from_slice(&if check == 0 { 0xffff } else { check }.to_be_bytes());
    let mut frame = vec![0; 12];
    if tuple.source().is_ipv4() {
        let mut ip = [0x45, 0xb8, 0, 0, 0, 7, 0x40, 0, hops, 17, 0, 0].to_vec();
        ip[2..4].copy_from_slice(&(20 + length).to_be_bytes());
        ip.extend(addresses);
        let check = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        frame.extend([8, 0]);
        frame.extend(ip);
    } else {
        frame.extend([0x86, 0xdd, 0x6b, 0x80, 0, 0]);
        frame.extend(length.to_be_bytes());
        frame.extend([17, hops]);
        frame.extend(addresses);
    }
    frame.extend(udp);
    frame
}

/// Whether the checksums of a packet are right.
fn is_sound(packet: &[u8]) -> bool {
    let ip = &packet[14..];
    let (addresses, udp) = if ip[0] >> 4 == 4 {
        assert_eq!(checksum(&[&ip[..20]]), 0, "the IPv4 header's checksum");
        (&ip[12..20], &ip[20..])
    } else {
        (&ip[8..40], &ip[40..])
    };
    let length = (udp.len() as u16).to_be_bytes();
    udp[6..8] == [0, 0] || checksum(&[addresses, &[0, 17], &length, udp]) == 0
}

#[test]
fn the_program_does_what_the_specification_says() {
    let Some(mut bench) = Bench::new(false) else { return };
    let datagram = (
        0..2_usize,
        prop_oneof![0..3_usize, 60..66_usize, 1_200..1_260_usize],
        any::<u64>(),
        prop_oneof![Just(64_u8), 0..4_u8, Just(255)],
    );
    // Most packets are ordinary; of the others one octet of the headers is not.
    let odd = proptest::option::weighted(0.6, (0..62_usize, any::<u8>()));
    let cut = proptest::option::weighted(0.1, 15..70_usize);
    let padding = proptest::option::weighted(0.2, 1..20_usize);
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 4_096,
        failure_persistence: None,
        ..Default::default()
    });
    let bench = std::cell::RefCell::new(&mut bench);
    let forwarded = std::cell::Cell::new(0);
    let result = runner.run(
        &(datagram, odd, cut, padding),
        |((flow, size, seed, hops), odd, cut, padding)| {
            let mut bench = bench.borrow_mut();
            let payload: Vec<u8> = (0..size as u64)
                .map(|n| (seed.wrapping_mul(n | 1).wrapping_add(n) >> 13) as u8)
                .collect();
            let mut packet = packet(&bench.flows[flow].0, &payload, hops);
            if let Some((at, octet)) = odd.filter(|(at, _)| *at < packet.len()) {
                packet[at] = octet;
            }
            if let Some(cut) = cut {
                packet.truncate(cut);
            }
            packet.extend(vec![0; padding.unwrap_or(0)]);
            // The kernel runs no program on less than a header of the type that is named.
            let header = match packet[12..14] {
                [8, 0] => 34,
                [0x86, 0xdd] => 54,
                _ => 15,
            };
            packet.resize(packet.len().max(header), 0);
            if bench.check(&packet)? {
                forwarded.set(forwarded.get() + 1);
            }
            Ok(())
        },
    );
    result.unwrap_or_else(|error| panic!("{error}"));
    assert!(forwarded.get() > 1_000, "many were ordinary: {}", forwarded.get());
}

#[test]
fn what_is_forwarded_has_right_checksums_and_is_counted() {
    let Some(mut bench) = Bench::new(false) else { return };
    for flow in 0..2 {
        let mut total = (0, 0);
        for size in [0, 1, 2, 63, 64, 511, 1_200] {
            let payload: Vec<u8> = (0..size).map(|n: u32| (n * 31 + 7) as u8).collect();
            let packet = packet(&bench.flows[flow].0, &payload, 64);
            assert!(is_sound(&packet));
            let (said, after) = bench.run(&packet, None);
            assert_eq!(said, FORWARDED);
            assert!(is_sound(&after), "{size} octets of flow {flow}");
            assert_ne!(after, packet);
            total = (total.0 + 1, total.1 + u64::from(size));
            assert_eq!(bench.counted(flow), total);
        }
    }
}

#[test]
fn a_checksum_that_was_wrong_or_not_there_stays_so() {
    let Some(mut bench) = Bench::new(false) else { return };
    let mut without = packet(&bench.flows[0].0, b"abc", 64);
    without[40..42].fill(0);
    assert!(bench.check(&without).expect("as specified"));
    let mut wrong = packet(&bench.flows[1].0, b"abc", 64);
    wrong[60] ^= 0x10;
    assert!(bench.check(&wrong).expect("as specified"));
    let (_, after) = bench.run(&wrong, None);
    assert!(!is_sound(&after));
    // IPv6 has none of these (RFC 8200, 8.1): the sockets drop it.
    let mut without = packet(&bench.flows[1].0, b"abc", 64);
    without[60..62].fill(0);
    assert!(!bench.check(&without).expect("as specified"));
}

#[test]
fn what_is_unusual_is_let_through() {
    let Some(mut bench) = Bench::new(false) else { return };
    for flow in 0..2 {
        let tuple = bench.flows[flow].0;
        let usual = packet(&tuple, &[1; 64], 64);
        let changed = |at: usize, octet: u8| {
            let mut packet = usual.clone();
            packet[at] = octet;
            packet
        };
        let vlan = [&usual[..12], &[0x81, 0, 0, 5], &usual[12..]].concat();
        let (version, protocol) = if flow == 0 { (0x46, 14 + 9) } else { (0x70, 14 + 6) };
        let udp = if flow == 0 { 34 } else { 54 };
        for (what, packet) in [
            ("of a VLAN", vlan),
            ("to another station", changed(0, 2)),
            ("broadcast", changed(0, 0xff)),
            ("with another length or version", changed(14, version)),
            ("not UDP", changed(protocol, 6)),
            ("with a last hop", packet(&tuple, &[1; 64], 1)),
            ("of another port", changed(udp + 1, 1)),
            ("of a UDP length that is too small", changed(udp + 5, 20)),
            ("cut short", usual[..usual.len() - 1].to_vec()),
            ("too long", packet(&tuple, &[1; MAX_LEN as usize], 64)),
        ] {
            assert_eq!(bench.run(&packet, None), (LET_THROUGH, packet.clone()), "{what}, {flow}");
            assert!(!bench.check(&packet).expect(what));
        }
        assert_eq!(bench.counted(flow), (0, 0));
        assert!(bench.check(&usual).expect("as specified"));
    }
    for fragment in [0x20, 0x01] {
        let mut packet = packet(&bench.flows[0].0, &[1; 64], 64);
        packet[20] = fragment;
        assert_eq!(bench.run(&packet, None), (LET_THROUGH, packet.clone()));
    }
}

#[test]
fn a_joined_packet_counts_as_its_segments() {
    let Some(mut bench) = Bench::new(false) else { return };
    for flow in 0..2 {
        let packet = packet(&bench.flows[flow].0, &[7; 2_500], 64);
        assert_eq!(bench.run(&packet, None).0, LET_THROUGH, "too long in one piece");
        assert_eq!(bench.run(&packet, Some((1_000, 3))).0, FORWARDED);
        assert_eq!(bench.counted(flow), (3, 2_500));
        // Segments that are too long; a number that does not fit; a number that is not told.
        for gso in [(2_000, 2), (1_000, 2), (1_000, 4), (1_000, 0)] {
            assert_eq!(bench.run(&packet, Some(gso)).0, LET_THROUGH, "{gso:?}");
        }
        assert_eq!(bench.counted(flow), (3, 2_500));
    }
}

#[test]
fn a_closed_gate_or_a_dead_worker_stops_an_entry_at_once() {
    let Some(mut bench) = Bench::new(false) else { return };
    let packet = packet(&bench.flows[0].0, b"abc", 64);
    assert_eq!(bench.run(&packet, None).0, FORWARDED);
    bench.table.turn(3).alive_ns.store(1, Ordering::Relaxed);
    let uptime = std::fs::read_to_string("/proc/uptime").expect("procfs");
    if uptime.split('.').next().and_then(|s| s.parse::<u64>().ok()) > Some(11) {
        assert_eq!(bench.run(&packet, None), (LET_THROUGH, packet.clone()));
    }
    bench.table.turn(3).alive_ns.store(LATER, Ordering::Relaxed);
    assert_eq!(bench.run(&packet, None).0, FORWARDED);
    bench.table.gate(bench.flows[0].1.gate).close();
    assert_eq!(bench.run(&packet, None), (LET_THROUGH, packet.clone()));
    assert_eq!(bench.counted(0).0, 2);
    bench.table.remove(&bench.flows[0].0.clone());
    assert_eq!(bench.run(&packet, None), (LET_THROUGH, packet));
}

#[test]
fn a_pending_entry_opens_when_the_worker_has_sent_what_came_before() {
    let Some(mut bench) = Bench::new(true) else { return };
    // As if it had been made this moment, or in the future: it is not forced open.
    let (first, second) = (bench.flows[0].1.account, bench.flows[1].1.account);
    for account in [first, second] {
        bench.table.account(account).begin(LATER);
    }
    let packets = [0, 1].map(|flow: usize| packet(&bench.flows[flow].0, b"abc", 64));
    let said = |bench: &mut Bench, flow: usize| bench.run(&packets[flow], None).0;
    assert_eq!(said(&mut bench, 0), LET_THROUGH);
    let Progress::Pending(passed) = bench.table.account(first).progress() else {
        panic!("it is pending")
    };
    assert!(passed < LATER, "the time at which it passed");
    // The worker's turn began before that datagram was surely in its socket.
    bench.table.turn(3).done_ns.store(passed + 50_000, Ordering::Relaxed);
    assert_eq!(said(&mut bench, 0), LET_THROUGH);
    bench.table.turn(3).done_ns.store(LATER - 1, Ordering::Relaxed);
    assert_eq!(said(&mut bench, 0), FORWARDED);
    assert_eq!(bench.table.account(first).progress(), Progress::Open);
    // A flow that never pauses is forwarded after 100 ms, and that can be seen.
    bench.table.turn(3).done_ns.store(0, Ordering::Relaxed);
    assert_eq!(said(&mut bench, 1), LET_THROUGH);
    bench.table.account(second).last_ns.store(0, Ordering::Relaxed);
    assert_eq!(said(&mut bench, 1), FORWARDED);
    assert_eq!(bench.table.account(second).progress(), Progress::Forced);
    assert_eq!((bench.counted(0).0, bench.counted(1).0), (1, 1));
}
