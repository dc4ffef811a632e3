use super::*;
use flowgate_core::random::Random;

const IDS: u128 = 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210;
const ALL: [Preset; 4] = [Preset::Dns, Preset::Ntp, Preset::Sip, Preset::Quic];

fn local() -> SocketAddr {
    "192.0.2.1:40000".parse().unwrap()
}

fn peer() -> SocketAddr {
    "198.51.100.7:53".parse().unwrap()
}

fn question(preset: Preset, ids: u128) -> (Vec<u8>, PresetQuestion) {
    preset.question(ids, local(), peer())
}

/// What a well server answers, made without the help of the code under test.
fn answer(preset: Preset, asked: &[u8]) -> Vec<u8> {
    match preset {
        Preset::Dns => [&asked[..2], &[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0], &asked[12..]].concat(),
        Preset::Ntp => {
            let mut answer = vec![0x24, 2, 6, 0xe9];
            answer.resize(24, 1);
            answer.extend(&asked[40..48]);
            answer.resize(48, 9);
            answer
        }
        Preset::Sip => {
            let text = std::str::from_utf8(asked).unwrap();
            let copied = text.lines().filter(|line| {
                ["Via", "From", "To", "Call-ID", "CSeq"].contains(&line.split(':').next().unwrap())
            });
            let headers: Vec<_> = copied.collect();
            format!("SIP/2.0 200 OK\r\n{}\r\n\r\n", headers.join("\r\n")).into_bytes()
        }
        Preset::Quic => {
            let (destination, source) = (&asked[6..14], &asked[15..23]);
            [&[0xca, 0, 0, 0, 0, 8], source, &[8], destination, &[0, 0, 0, 1]].concat()
        }
    }
}

/// Whether an answer passes that is right but for a change.
fn passes(preset: Preset, change: impl FnOnce(&mut Vec<u8>)) -> bool {
    let (asked, question) = question(preset, IDS);
    let mut answer = answer(preset, &asked);
    change(&mut answer);
    question.accepts(&answer)
}

#[test]
fn the_right_answer_passes_and_that_to_another_question_does_not() {
    for preset in ALL {
        let (asked, judge) = question(preset, IDS);
        assert!(judge.accepts(&answer(preset, &asked)), "{preset:?}");
        // What is one protocol's right answer is none of another.
        for other in ALL.into_iter().filter(|other| *other != preset) {
            let (asked, _) = question(other, IDS);
            assert!(!judge.accepts(&answer(other, &asked)), "{preset:?} takes {other:?}");
        }
        let mut random = Random::new(5);
        for _ in 0..100 {
            let ids = u128::from(random.draw()) << 64 | u128::from(random.draw());
            let (asked, _) = question(preset, ids);
            assert!(!judge.accepts(&answer(preset, &asked)), "{preset:?}");
        }
        assert!(!judge.accepts(&asked), "an echo is not an answer to {preset:?}");
        assert!(!judge.accepts(b""));
    }
}

#[test]
fn no_bytes_make_it_panic_and_none_pass_by_chance() {
    let mut random = Random::new(1);
    for preset in ALL {
        let (asked, question) = question(preset, IDS);
        let right = answer(preset, &asked);
        for length in 0..right.len() {
            question.accepts(&right[..length]);
            for bit in 0..8 {
                let mut mutated = right.clone();
                mutated[length] ^= 1 << bit;
                question.accepts(&mutated);
            }
        }
        for _ in 0..20_000 {
            let length = random.below(120);
            let bytes: Vec<_> = (0..length).map(|_| random.draw() as u8).collect();
            assert!(!question.accepts(&bytes), "{preset:?} {bytes:?}");
            // Random bytes that begin right get further.
            let kept = random.below(right.len() as u64) as usize;
            question.accepts(&[&right[..kept], &bytes].concat());
        }
    }
}

#[test]
fn a_dns_question_is_what_other_implementations_send() {
    let (asked, _) = question(Preset::Dns, IDS);
    // As `dig +noedns . NS` sends it, but for the id.
    let expected = b"\x32\x10\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01";
    assert_eq!(asked, expected);
}

#[test]
fn every_dns_answer_but_server_failure_passes() {
    let code = |code: u8| passes(Preset::Dns, |answer| answer[3] = 0x80 | code);
    assert_eq!((0..16).filter(|c| !code(*c)).collect::<Vec<_>>(), [2]);
    assert!(passes(Preset::Dns, |answer| answer[2] |= 0x02), "truncated");
    assert!(passes(Preset::Dns, |answer| answer.extend([0; 400])), "with records");
    assert!(passes(Preset::Dns, |answer| {
        answer[5] = 0;
        answer.truncate(12);
    }));
    assert!(!passes(Preset::Dns, |answer| answer.truncate(11)), "no header");
    assert!(!passes(Preset::Dns, |answer| answer.truncate(16)), "half a question");
    assert!(!passes(Preset::Dns, |answer| answer[14] = 1), "another question");
    assert!(!passes(Preset::Dns, |answer| answer[2] &= 0x7f), "a query");
    assert!(!passes(Preset::Dns, |answer| answer[2] |= 0x20), "another opcode");
    assert!(!passes(Preset::Dns, |answer| answer[4] = 1), "257 questions");
}

#[test]
fn the_time_of_a_synchronised_server_passes() {
    let (asked, _) = question(Preset::Ntp, IDS);
    assert_eq!((asked.len(), asked[0]), (48, 0x23));
    let stratum = |stratum| passes(Preset::Ntp, |answer| answer[1] = stratum);
    assert_eq!((0..=255).filter(|s| stratum(*s)).collect::<Vec<_>>(), Vec::from_iter(1..=15));
    let first = |first| passes(Preset::Ntp, |answer| answer[0] = first);
    assert!(first(0x1c) && first(0x64), "version 3, and a leap second to come");
    assert!(!first(0xe4), "not synchronised");
    assert!(!first(0x23) && !first(0x25), "a client, a broadcast");
    assert!(passes(Preset::Ntp, |answer| answer.extend([0; 20])), "with extensions");
    assert!(!passes(Preset::Ntp, |answer| answer.truncate(47)));
    assert!(!passes(Preset::Ntp, |answer| answer[31] ^= 1), "to another question");
    assert!(!passes(Preset::Ntp, |answer| answer[40..].fill(0)), "no time at all");
}

/// Whether a SIP response passes whose text is changed so.
fn sip(from: &str, to: &str) -> bool {
    passes(Preset::Sip, |answer| {
        let text = String::from_utf8(answer.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        *answer = text.replace(from, to).into_bytes();
    })
}

#[test]
fn an_options_request_has_what_a_request_must_have() {
    let (asked, _) = Preset::Sip.question(IDS, local(), "[fe80::1%3]:5060".parse().unwrap());
    let text = String::from_utf8(asked).unwrap();
    assert!(text.starts_with("OPTIONS sip:[fe80::1]:5060 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1:"));
    assert!(text.ends_with("\r\n\r\n") && !text.replace("\r\n", "").contains(['\r', '\n']));
    for name in ["Max-Forwards", "From", "To", "Call-ID", "CSeq", "Content-Length"] {
        assert!(text.contains(&format!("\r\n{name}: ")), "{text}");
    }
}

#[test]
fn every_final_sip_response_but_a_failure_of_the_server_passes() {
    for (code, accepted) in [
        ("100", false),
        ("183", false),
        ("200", true),
        ("302", true),
        ("401", true),
        ("404", true),
        ("405", true),
        ("486", true),
        ("500", false),
        ("501", true),
        ("503", false),
        ("603", true),
        ("700", false),
        ("000", false),
        ("2OO", false),
        ("20", false),
        ("2000", false),
    ] {
        assert_eq!(sip("200 OK", &format!("{code} Text")), accepted, "{code}");
    }
    assert!(sip("200 OK", "200") && sip("200 OK", "200 "));
    assert!(!sip("SIP/2.0 200", "HTTP/1.1 200") && !sip("SIP/2.0 200", "SIP/2.1 200"));
}

#[test]
fn a_sip_response_belongs_to_its_request() {
    assert!(sip("Via:", "v :") && sip("Call-ID:", "i:") && sip("Via", "VIA"));
    assert!(sip(";rport", ";rport=40000;received=192.0.2.1"));
    assert!(sip(";branch", "\r\n ;Branch"), "folded");
    assert!(sip("\r\n", "\n"));
    assert!(sip("Via:", "Server: via: x, branch=1\r\nVia:"));
    assert!(!sip("branch=z9hG4bK0", "branch=z9hG4bK1") && !sip("branch=", "brunch="));
    assert!(!sip("Via:", "Via: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKother\r\nVia:"), "not topmost");
    assert!(!sip("Via: ", "Via: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKother, "));
    assert!(!sip("Call-ID: f", "Call-ID: e") && !sip("Call-ID", "Call") && !sip("Via", "Vie"));
    assert!(!sip("200 OK\r\n", "200 OK\r\n\r\n"), "in the body");
}

#[test]
fn a_quic_packet_of_no_version_is_answered_by_a_list_of_versions() {
    let (asked, _) = question(Preset::Quic, IDS);
    assert_eq!(asked.len(), 1_200);
    assert_eq!(asked[0] & 0xc0, 0xc0);
    assert!(asked[1..5].iter().all(|byte| byte & 0x0f == 0x0a), "{:x?}", &asked[1..5]);
    assert!(passes(Preset::Quic, |answer| answer.extend([0x6b, 0x33, 0x43, 0xcf])), "two versions");
    assert!(passes(Preset::Quic, |answer| answer[0] = 0x80), "the other bits are anything");
    assert!(!passes(Preset::Quic, |answer| answer[0] &= 0x7f), "a short header");
    assert!(!passes(Preset::Quic, |answer| answer[4] = 1), "a packet of version 1");
    assert!(!passes(Preset::Quic, |answer| answer.truncate(answer.len() - 4)), "no version");
    assert!(!passes(Preset::Quic, |answer| answer.truncate(answer.len() - 1)), "three quarters");
    assert!(!passes(Preset::Quic, |answer| answer[5] = 7), "a shorter connection id");
    assert!(!passes(Preset::Quic, |answer| answer[5] = 255), "one longer than the packet");
    assert!(
        !passes(Preset::Quic, |answer| answer[6] ^= 1) && !passes(Preset::Quic, |a| a[15] ^= 1)
    );
    assert!(!passes(Preset::Quic, |answer| answer.extend(&asked[1..5])), "the version it is not");
}
