//! Messages out of the RFCs, and what must have no identifier.

mod properties;

use super::*;
use alloc::vec::Vec;
use std::collections::BTreeSet;
use std::vec;

/// A query for `www.example.com IN A`, as RFC 1035 (section 4) lays it out.
const DNS_QUERY: &[u8] = b"\x1d\xd3\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\
    \x03www\x07example\x03com\x00\x00\x01\x00\x01";

/// Its answer, by a pointer to the question's name.
const DNS_ANSWER: &[u8] = b"\x1d\xd3\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\
    \x03www\x07example\x03com\x00\x00\x01\x00\x01\
    \xc0\x0c\x00\x01\x00\x01\x00\x00\x0e\x10\x00\x04\xc0\x00\x02\x01";

/// The request of RFC 5769, section 2.1.
const STUN_REQUEST: &[u8] = b"\x00\x01\x00\x58\x21\x12\xa4\x42\
    \xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
    \x80\x22\x00\x10STUN test client\
    \x00\x24\x00\x04\x6e\x00\x01\xff\
    \x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36\
    \x00\x06\x00\x09\x65\x76\x74\x6a\x3a\x68\x36\x76\x59\x20\x20\x20\
    \x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\x78\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2\
    \x80\x28\x00\x04\xe5\x7a\x3b\xcf";

/// The response of RFC 5769, section 2.2.
const STUN_RESPONSE: &[u8] = b"\x01\x01\x00\x3c\x21\x12\xa4\x42\
    \xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
    \x80\x22\x00\x0b\x74\x65\x73\x74\x20\x76\x65\x63\x74\x6f\x72\x20\
    \x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43\
    \x00\x08\x00\x14\x2b\x91\xf5\x99\xfd\x9e\x90\xc3\x8c\x74\x89\xf9\x2a\xf9\xba\x53\xf0\x6b\xe7\xd7\
    \x80\x28\x00\x04\xc0\x7d\x4c\x96";

fn ntp(version_and_mode: u8, origin: [u8; 8], transmit: [u8; 8]) -> Vec<u8> {
    let mut packet = vec![0x55; 48];
    packet[0] = version_and_mode;
    packet[24..32].copy_from_slice(&origin);
    packet[40..48].copy_from_slice(&transmit);
    packet
}

/// `datagram` with other bytes at `at`.
fn with(datagram: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut changed = datagram.to_vec();
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    changed
}

#[track_caller]
fn assert_pair(transactions: Transactions, question: &[u8], answer: &[u8]) {
    let id = transactions.request_id(question).expect("a question");
    assert_eq!(transactions.answer_id(answer), Some(id));
}

#[track_caller]
fn assert_none(transactions: Transactions, datagram: &[u8]) {
    let ids = (transactions.request_id(datagram), transactions.answer_id(datagram));
    assert_eq!(ids, (None, None), "{datagram:x?}");
}

#[test]
fn answers_of_the_rfcs_have_the_identifiers_of_their_questions() {
    assert_pair(Transactions::Dns, DNS_QUERY, DNS_ANSWER);
    assert_pair(Transactions::Stun, STUN_REQUEST, STUN_RESPONSE);
    let transmit = [0xd9, 0x1f, 1, 2, 3, 4, 5, 6];
    let question = ntp(0x23, [0; 8], transmit);
    assert_pair(Transactions::Ntp, &question, &ntp(0x24, transmit, [7; 8]));
}

#[test]
fn a_question_is_no_answer_and_an_answer_no_question() {
    let ntp_pair = (ntp(0x23, [1; 8], [2; 8]), ntp(0x24, [2; 8], [3; 8]));
    for (transactions, question, answer) in [
        (Transactions::Dns, DNS_QUERY, DNS_ANSWER),
        (Transactions::Stun, STUN_REQUEST, STUN_RESPONSE),
        (Transactions::Ntp, &ntp_pair.0, &ntp_pair.1),
    ] {
        assert_eq!(transactions.answer_id(question), None, "{transactions:?}");
        assert_eq!(transactions.request_id(answer), None, "{transactions:?}");
    }
}

#[test]
fn whatever_differs_in_a_dns_question_is_another_transaction() {
    let name_end = DNS_QUERY.len() - 4;
    let questions = [
        DNS_QUERY.to_vec(),
        with(DNS_QUERY, 0, &[0x1e]),
        with(DNS_QUERY, 1, &[0xd4]),
        with(DNS_QUERY, 13, b"WWW"),
        with(DNS_QUERY, 13, b"ftp"),
        with(DNS_QUERY, name_end, &[0, 28]),
        with(DNS_QUERY, name_end + 2, &[0, 3]),
        with(DNS_QUERY, 5, &[0]),
    ];
    let ids: BTreeSet<_> =
        questions.iter().map(|question| Transactions::Dns.request_id(question).unwrap()).collect();
    assert_eq!(ids.len(), questions.len());
}

#[test]
fn what_is_beside_a_dns_question_does_not_count() {
    // Other opcodes, RD, and what follows the question.
    for question in [with(DNS_QUERY, 2, &[0x28, 0]), [DNS_QUERY, &[1, 2, 3]].concat()] {
        assert_pair(Transactions::Dns, &question, DNS_ANSWER);
    }
    // AA, TC and an error.
    assert_pair(Transactions::Dns, DNS_QUERY, &with(DNS_ANSWER, 2, &[0x87, 0x85]));
}

#[test]
fn a_dns_answer_without_its_question_belongs_to_a_question_without_one_only() {
    let header = with(&DNS_ANSWER[..12], 4, &[0, 0, 0, 0]);
    let answer = Transactions::Dns.answer_id(&header).unwrap();
    assert_ne!(Transactions::Dns.request_id(DNS_QUERY), Some(answer));
    let cookie_only = with(&DNS_QUERY[..12], 4, &[0, 0]);
    assert_eq!(Transactions::Dns.request_id(&cookie_only), Some(answer));
}

#[test]
fn what_is_no_dns_message_with_one_question_has_no_identifier() {
    for length in 0..DNS_QUERY.len() {
        assert_none(Transactions::Dns, &DNS_QUERY[..length]);
    }
    assert_none(Transactions::Dns, &with(DNS_QUERY, 5, &[2]));
    assert_none(Transactions::Dns, &with(DNS_QUERY, 4, &[1, 0]));
    // A pointer, an unknown kind of label, and a label that is too long.
    for length in [0xc0, 0x40, 0x80, 64] {
        assert_none(Transactions::Dns, &with(DNS_QUERY, 12, &[length]));
    }
}

#[test]
fn a_dns_name_has_at_most_255_bytes() {
    let question = |labels: &[usize]| {
        let mut question = DNS_QUERY[..12].to_vec();
        for &length in labels {
            question.push(length as u8);
            question.extend(vec![b'x'; length]);
        }
        question.extend([0, 0, 1, 0, 1]);
        question
    };
    assert!(Transactions::Dns.request_id(&question(&[63, 63, 63, 61])).is_some());
    assert_none(Transactions::Dns, &question(&[63, 63, 63, 62]));
    assert!(Transactions::Dns.request_id(&question(&[1; 127])).is_some());
    assert_none(Transactions::Dns, &question(&[1; 128]));
    assert!(Transactions::Dns.request_id(&question(&[])).is_some(), "the root");
}

#[test]
fn only_clients_and_servers_have_ntp_transactions() {
    for mode in [0, 1, 2, 5, 6, 7] {
        assert_none(Transactions::Ntp, &ntp(0x20 | mode, [1; 8], [2; 8]));
    }
    for version in 0..8 {
        let question = Transactions::Ntp.request_id(&ntp(version << 3 | 3, [1; 8], [2; 8]));
        assert_eq!(question.is_some(), (1..=4).contains(&version), "version {version}");
    }
}

#[test]
fn an_ntp_packet_has_a_whole_header_and_maybe_more() {
    let (question, answer) = (ntp(0xe3, [0; 8], [9; 8]), ntp(0x24, [9; 8], [1; 8]));
    let extended = [&question[..], &[0; 20]].concat();
    assert_pair(Transactions::Ntp, &extended, &answer);
    for length in 0..48 {
        assert_none(Transactions::Ntp, &question[..length]);
        assert_none(Transactions::Ntp, &answer[..length]);
    }
}

#[test]
fn an_ntp_client_that_leaves_its_timestamp_zero_has_an_identifier_all_the_same() {
    assert_pair(Transactions::Ntp, &ntp(0x1b, [0; 8], [0; 8]), &ntp(0x1c, [0; 8], [1; 8]));
}

#[test]
fn stun_errors_answer_and_indications_do_not() {
    // Allocate (RFC 8656): request, error response; Send: indication.
    let error = with(STUN_RESPONSE, 0, &[0x01, 0x13]);
    assert_pair(Transactions::Stun, &with(STUN_REQUEST, 0, &[0x00, 0x03]), &error);
    assert_none(Transactions::Stun, &with(STUN_REQUEST, 0, &[0x00, 0x16]));
}

#[test]
fn what_is_no_stun_has_no_identifier() {
    for length in 0..STUN_REQUEST.len() {
        assert_none(Transactions::Stun, &STUN_REQUEST[..length]);
    }
    // Another cookie, a ChannelData message (RFC 8656, section 12.4), and more than one message.
    assert_none(Transactions::Stun, &with(STUN_REQUEST, 4, &[0x22]));
    assert_none(Transactions::Stun, &with(STUN_REQUEST, 0, &[0x40]));
    assert_none(Transactions::Stun, &[STUN_REQUEST, &[0; 4]].concat());
}

#[test]
fn an_identifier_may_lie_elsewhere_in_the_answer() {
    let transactions = Transactions::Pattern { request_offset: 2, answer_offset: 4, length: 3 };
    assert_pair(transactions, b"..abc", b"....abc..");
    assert_eq!(transactions.request_id(b"..ab"), None);
    assert_eq!(transactions.answer_id(b"....ab"), None);
    assert_ne!(transactions.request_id(b"..abc"), transactions.answer_id(b"....abd"));
}

#[test]
fn an_identifier_of_any_length_counts_with_all_its_bytes() {
    for length in [1, 2, 8, 12, 13, 16, 255] {
        let transactions = Transactions::Pattern { request_offset: 0, answer_offset: 1, length };
        let key: Vec<u8> = (0..length).collect();
        assert_pair(transactions, &key, &[&[9], &key[..], &[7]].concat());
        let id = transactions.request_id(&key);
        for at in 0..key.len() {
            assert_ne!(transactions.request_id(&with(&key, at, &[!key[at]])), id, "byte {at}");
        }
    }
    let nothing = Transactions::Pattern { request_offset: 0, answer_offset: 0, length: 0 };
    assert_none(nothing, b"abc");
    let far = Transactions::Pattern { request_offset: 65_535, answer_offset: 65_535, length: 255 };
    assert_none(far, b"abc");
}
