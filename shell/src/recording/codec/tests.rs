use flowgate_core::BackendId;
use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(SocketAddr::from),
    ]
}

/// What is written: numbers that stand for an input, and what it carries.
type Spec = (u8, SocketAddr, u32, Vec<u8>, u16, u64);

fn spec() -> impl Strategy<Value = Spec> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..300);
    (0..10_u8, address(), any::<u32>(), bytes, 0..400_u16, 0..3_000_000_000_u64)
}

fn input_of((kind, client, number, bytes, stride, _): &Spec) -> ManagerInput<'_> {
    let burst = Burst::segmented(bytes, *stride).unwrap();
    let flow = FlowId::new(*number % 1_000, *number / 3);
    let upstream = UpstreamId::new(*number % 1_000, *number as u16);
    let reason = DropReason::ALL[*number as usize % DropReason::COUNT];
    match kind {
        0 => ManagerInput::ClientBurst {
            source: *client,
            local: (number % 2 == 0).then_some(LocalAddr { ip: client.ip(), interface: *number }),
            tos: *number as u8,
            ttl: 64,
            burst,
        },
        1 | 2 => {
            ManagerInput::UpstreamBurst { upstream, sender: *client, tos: *number as u8, burst }
        }
        3 => ManagerInput::Reading { is_behind: number % 2 == 0 },
        4 if number % 3 == 0 => ManagerInput::TakenElsewhere { flows: *number, slots: u32::MAX },
        4 if number % 3 == 1 => ManagerInput::RoomWanted,
        4 => ManagerInput::Timeout,
        5 => ManagerInput::Undelivered {
            send_id: match number % 3 {
                0 => SendId::Flow { flow, upstream },
                1 => SendId::OneWay(BackendId::new(*number as usize)),
                _ => SendId::Copy(BackendId::new(*number as usize)),
            },
            backend: (number % 5 == 0).then_some(BackendId::new(7)),
            direction: Direction::ALL[*number as usize % 2],
            reason,
            datagrams: *number,
            bytes: u64::from(*number) << 20,
        },
        8 => ManagerInput::Delivered {
            send_id: SendId::Flow { flow, upstream },
            backend: (number % 2 == 0).then_some(BackendId::new(*number as usize)),
            direction: Direction::ALL[*number as usize % 2],
            datagrams: *number,
            bytes: u64::from(*number),
        },
        6 if number % 2 == 0 => ManagerInput::UpstreamOpenFailed { upstream },
        6 => ManagerInput::UpstreamError {
            upstream,
            remote: (number % 3 == 0).then_some(*client),
            question: (number % 5 == 0).then(|| TransactionId::from_words([*number, 0, u32::MAX])),
            error: NetworkError::Refused,
        },
        7 => ManagerInput::BackendChanged {
            backend: BackendId::new(*number as usize),
            event: match number % 3 {
                0 => BackendEvent::Down,
                1 => BackendEvent::Drain { deadline: Some(Instant::from_nanos((*number).into())) },
                _ => BackendEvent::Undrain,
            },
        },
        _ => ManagerInput::Unusable {
            direction: Direction::ToClient,
            reason,
            datagrams: *number,
            bytes: 7,
        },
    }
}

/// Whether what was read is what was written.
fn assert_same(read: &RecordedInput<'_>, spec: &Spec, payload: u16) {
    let written = input_of(spec);
    let same_burst = |form: &BurstForm<'_>, burst: Burst<'_>| {
        let mut memory = Vec::new();
        let read = form.burst(&mut memory).expect("a burst");
        assert_eq!((read.count(), read.stride()), (burst.count(), burst.stride()));
        assert_eq!(u64::from(burst.count()), form.datagrams());
        for (read, written) in read.datagrams().zip(burst.datagrams()) {
            let known = written.len().min(payload.into());
            assert_eq!(read.len(), written.len());
            assert_eq!(read[..known], written[..known]);
            assert!(read[known..].iter().all(|&byte| byte == 0), "nothing more is kept");
        }
    };
    match (read, written) {
        (
            RecordedInput::ClientBurst { source, local, tos, ttl, form },
            ManagerInput::ClientBurst { source: s, local: l, tos: t, ttl: h, burst },
        ) => {
            assert_eq!((*source, *local, *tos, *ttl), (s, l, t, h));
            same_burst(form, burst);
        }
        (
            RecordedInput::UpstreamBurst { upstream, sender, client, tos, form },
            ManagerInput::UpstreamBurst { upstream: u, sender: s, tos: t, burst },
        ) => {
            assert_eq!((*upstream, *sender, *client, *tos), (u, s, Some(spec.1), t));
            same_burst(form, burst);
        }
        (RecordedInput::Plain(read), written) => {
            assert_eq!(format!("{read:?}"), format!("{written:?}"));
        }
        (read, written) => panic!("{read:?} is not {written:?}"),
    }
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(
        specs in proptest::collection::vec(spec(), 1..60),
        payload in prop_oneof![Just(0_u16), Just(7), Just(u16::MAX)],
        cut in 1..20_usize,
    ) {
        let (mut encoder, mut decoder) = (InputEncoder::new(payload), InputDecoder::default());
        let (mut now, mut times, mut read) = (0, Vec::new(), 0);
        for (number, spec) in specs.iter().enumerate() {
            now += spec.5;
            times.push(now);
            encoder.input(&input_of(spec), Some(&spec.1), Instant::from_nanos(now));
            if number % cut != 0 && number + 1 < specs.len() {
                continue;
            }
            let piece = encoder.take();
            let before = read;
            decoder.read(&piece.bytes, |input, at| {
                assert_same(&input, &specs[read], payload);
                assert_eq!(at.as_nanos(), times[read]);
                read += 1;
            }).unwrap();
            prop_assert_eq!(piece.inputs as usize, read - before);
        }
        prop_assert_eq!(read, specs.len());
    }

    #[test]
    fn any_bytes_are_inputs_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut memory = Vec::new();
        let _ = InputDecoder::default().read(&bytes, |input, _| {
            if let RecordedInput::ClientBurst { form, .. }
                | RecordedInput::UpstreamBurst { form, .. } = input
            {
                let burst = form.burst(&mut memory).expect("lengths of sixteen bits");
                assert_eq!(u64::from(burst.count()), form.datagrams());
            }
        });
    }
}

#[test]
fn a_burst_of_a_known_client_takes_five_bytes() {
    let mut encoder = InputEncoder::new(0);
    let source = "192.0.2.7:4711".parse().unwrap();
    let burst = Burst::single(&[0; 200]).unwrap();
    let input = ManagerInput::ClientBurst { source, local: None, tos: 0, ttl: 64, burst };
    for _ in 0..101 {
        encoder.input(&input, None, Instant::from_nanos(5));
    }
    let bytes = encoder.take().bytes.len();
    assert!(bytes < 20 + 100 * 5, "{bytes}");
}
