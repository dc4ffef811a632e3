//! Identifiers of transactions: what is made into an answer by the rules of its protocol has the
//! identifier of its question.

use flowgate_core::Transactions;
use flowgate_core::affinity::{Affinity, Found};

/// Any datagram is a question, an answer or neither, and never both where the protocol tells them
/// apart; and anyone who answers a question by its book is understood.
pub fn transactions(data: &[u8]) {
    for transactions in [Transactions::Dns, Transactions::Ntp, Transactions::Stun] {
        let asked = transactions.request_id(data);
        if asked.is_some() {
            assert_eq!(transactions.answer_id(data), None, "{transactions:?}: both");
            let answer = answer_to(transactions, data);
            assert_eq!(transactions.answer_id(&answer), asked, "{transactions:?}");
            assert_eq!(transactions.request_id(&answer), None, "{transactions:?}: both");
        }
    }
    pattern(data);
    sip(data);
}

/// Both sides of a call name it alike, and what stands in its body names nothing.
fn sip(data: &[u8]) {
    let id = Transactions::Sip.request_id(data);
    assert_eq!(id, Transactions::Sip.answer_id(data));
    let is_key = matches!(Affinity::SipCallId.read(data), Found::Key(_));
    assert_eq!(id.is_some(), is_key, "what places a call names it");
    let with_body = [data, b"\r\n\r\nCall-ID: another\r\n"].concat();
    if id.is_some() {
        assert_eq!(Transactions::Sip.request_id(&with_body), id);
    }
}

/// A question that its server sends back, changed no more than it has to be.
fn answer_to(transactions: Transactions, question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    match transactions {
        Transactions::Dns => answer[2] |= 0x80,
        Transactions::Ntp => {
            answer[0] = answer[0] & !7 | 4;
            answer.copy_within(40..48, 24);
            answer[40..48].fill(0xEE);
        }
        Transactions::Stun => answer[0] |= 1,
        Transactions::Pattern { .. } | Transactions::Sip => {}
    }
    answer
}

/// The first bytes say where the identifier is.
fn pattern(data: &[u8]) {
    let Some((&[request_offset, answer_offset, length], datagram)) = data.split_first_chunk()
    else {
        return;
    };
    let [request_offset, answer_offset] = [request_offset, answer_offset].map(u16::from);
    let transactions = Transactions::Pattern { request_offset, answer_offset, length };
    let bytes =
        |offset: u16| datagram.get(offset.into()..usize::from(offset) + usize::from(length));
    let (asked, answered) = (bytes(request_offset), bytes(answer_offset));
    assert_eq!(transactions.request_id(datagram).is_some(), asked.is_some() && length > 0);
    assert_eq!(transactions.answer_id(datagram).is_some(), answered.is_some() && length > 0);
    if let (Some(asked), Some(answered), 1..) = (asked, answered, length) {
        let is_same = transactions.request_id(datagram) == transactions.answer_id(datagram);
        assert_eq!(is_same, asked == answered);
    }
}
