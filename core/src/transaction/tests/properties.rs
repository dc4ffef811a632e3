//! Whatever is asked, its answer has its identifier; and whatever comes, nothing panics.

use super::*;
use proptest::collection::vec as many;
use proptest::prelude::*;
use std::format;

fn any_transactions() -> impl Strategy<Value = Transactions> {
    prop_oneof![
        Just(Transactions::Dns),
        Just(Transactions::Ntp),
        Just(Transactions::Stun),
        Just(Transactions::Sip),
        (0..80_u16, 0..80_u16, any::<u8>()).prop_map(|(request_offset, answer_offset, length)| {
            Transactions::Pattern { request_offset, answer_offset, length }
        }),
    ]
}

/// A name as it is sent, of at most 255 bytes.
fn any_name() -> impl Strategy<Value = Vec<u8>> {
    many(many(any::<u8>(), 1..=63), 0..=8).prop_map(|labels| {
        let mut name = Vec::new();
        for label in labels {
            if name.len() + label.len() < 254 {
                name.push(label.len() as u8);
                name.extend(label);
            }
        }
        name.push(0);
        name
    })
}

fn dns_message(id: u16, flags: u16, question: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    for field in [id, flags, 1, 0, 0, 0] {
        message.extend(field.to_be_bytes());
    }
    message.extend(question);
    message.extend(rest);
    message
}

proptest! {
    #[test]
    fn no_bytes_panic(transactions in any_transactions(), datagram in many(any::<u8>(), 0..600)) {
        let _ = (transactions.request_id(&datagram), transactions.answer_id(&datagram));
    }

    #[test]
    fn a_dns_answer_has_the_identifier_of_its_question_and_of_no_other(
        id: u16,
        name in any_name(),
        kind: [u8; 4],
        flags in 0..0x8000_u16,
        answer_flags in 0x8000_u16..,
        rest in many(any::<u8>(), 0..100),
        at: prop::sample::Index,
        change in 1..=255_u8,
    ) {
        let mut question = name;
        question.extend(kind);
        let asked = Transactions::Dns.request_id(&dns_message(id, flags, &question, &[]));
        prop_assert!(asked.is_some());
        let answer = dns_message(id, answer_flags, &question, &rest);
        prop_assert_eq!(Transactions::Dns.answer_id(&answer), asked);
        // Another ID, or anything else in the question.
        let at = at.index(2 + question.len());
        let at = if at < 2 { at } else { at + 10 };
        let other = with(&answer, at, &[answer[at] ^ change]);
        prop_assert_ne!(Transactions::Dns.answer_id(&other), asked);
    }

    #[test]
    fn an_ntp_answer_has_the_identifier_of_its_question(
        origin: [u8; 8],
        transmit: [u8; 8],
        later: [u8; 8],
        version in 1..=4_u8,
        leap in 0..4_u8,
    ) {
        let question = ntp(version << 3 | 3, origin, transmit);
        let answer = ntp(leap << 6 | version << 3 | 4, transmit, later);
        let asked = Transactions::Ntp.request_id(&question);
        prop_assert!(asked.is_some());
        prop_assert_eq!(Transactions::Ntp.answer_id(&answer), asked);
        let other = ntp(version << 3 | 4, later, transmit);
        prop_assert_eq!(Transactions::Ntp.answer_id(&other) == asked, later == transmit);
    }

    #[test]
    fn a_stun_answer_has_the_identifier_of_its_question(
        id: [u8; 12],
        other: [u8; 12],
        method in 0..0x1000_u16,
        is_error: bool,
        attributes in 0..20_usize,
    ) {
        let message = |class: u16, id: [u8; 12]| {
            let kind = (method & 0xF80) << 2 | (method & 0x70) << 1 | method & 0xF | class;
            let mut message = kind.to_be_bytes().to_vec();
            message.extend((attributes as u16 * 4).to_be_bytes());
            message.extend(MAGIC.to_be_bytes());
            message.extend(id);
            message.resize(20 + attributes * 4, 0);
            message
        };
        let class = if is_error { 0x0110 } else { 0x0100 };
        let asked = Transactions::Stun.request_id(&message(0, id));
        prop_assert!(asked.is_some());
        prop_assert_eq!(Transactions::Stun.answer_id(&message(class, id)), asked);
        let is_same = Transactions::Stun.answer_id(&message(class, other)) == asked;
        prop_assert_eq!(is_same, id == other);
        assert_none(Transactions::Stun, &message(0x0010, id));
    }

    #[test]
    fn messages_of_one_call_have_one_identifier_and_those_of_others_another(
        call in "[!-9;-~]{1,60}",
        other in "[!-9;-~]{1,60}",
        from_server: bool,
        lines in 0..10_usize,
    ) {
        let message = |start: &str, call: &str| {
            let via = "Via: SIP/2.0/UDP host.example.com\r\n".repeat(lines);
            format!("{start}\r\n{via}Call-ID: {call}\r\nCSeq: 1 INVITE\r\n\r\n").into_bytes()
        };
        let asked = Transactions::Sip.request_id(&message("INVITE sip:a@b SIP/2.0", &call));
        prop_assert!(asked.is_some());
        let start = if from_server { "BYE sip:c@d SIP/2.0" } else { "SIP/2.0 200 OK" };
        prop_assert_eq!(Transactions::Sip.answer_id(&message(start, &call)), asked);
        let is_same = Transactions::Sip.answer_id(&message(start, &other)) == asked;
        prop_assert_eq!(is_same, call == other);
    }

    #[test]
    fn an_identifier_anywhere_is_found_anywhere(
        key in many(any::<u8>(), 1..=255),
        before in many(any::<u8>(), 0..300),
        elsewhere in many(any::<u8>(), 0..300),
    ) {
        let transactions = Transactions::Pattern {
            request_offset: before.len() as u16,
            answer_offset: elsewhere.len() as u16,
            length: key.len() as u8,
        };
        assert_pair(transactions, &[&before[..], &key].concat(), &[&elsewhere[..], &key].concat());
    }
}

const MAGIC: u32 = 0x2112_A442;
