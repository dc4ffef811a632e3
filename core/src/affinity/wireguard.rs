//! WireGuard's session indices: each side names its end of a session by four bytes, which the other
//! side sends as the receiver of its messages (the white paper, section 5.4).

use super::Found;

const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const COOKIE_REPLY: u8 = 3;
const DATA: u8 = 4;

/// What a client's message says: an initiation asks for a session, and everything else names one.
pub fn read(datagram: &[u8]) -> Found<'_> {
    let receiver = match message_type(datagram) {
        Some(RESPONSE) => 8..12,
        Some(COOKIE_REPLY | DATA) => 4..8,
        _ => return Found::Nothing,
    };
    match datagram.get(receiver) {
        Some(id) => Found::Underway { id, is_whole: true },
        None => Found::Nothing,
    }
}

/// The index by which a server wants to be called from now on, where its message says so.
pub fn announced(datagram: &[u8]) -> Option<&[u8]> {
    matches!(message_type(datagram)?, INITIATION | RESPONSE).then(|| datagram.get(4..8))?
}

#[inline]
pub(super) fn fingerprint(datagram: &[u8]) -> u64 {
    // The type and the index: data messages of one session differ beyond them only.
    super::eight_bytes(datagram, 0)
}

/// The type of a message that is as long as that type is.
fn message_type(datagram: &[u8]) -> Option<u8> {
    let (&[message_type, 0, 0, 0], _) = datagram.split_first_chunk()? else { return None };
    let fits = match message_type {
        INITIATION => datagram.len() == 148,
        RESPONSE => datagram.len() == 92,
        COOKIE_REPLY => datagram.len() == 64,
        DATA => datagram.len() >= 32,
        _ => false,
    };
    fits.then_some(message_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message<const LENGTH: usize>(message_type: u8) -> [u8; LENGTH] {
        let mut message = [0; LENGTH];
        message[0] = message_type;
        (4..LENGTH).for_each(|at| message[at] = at as u8);
        message
    }

    #[test]
    fn each_type_names_its_receiver_and_handshakes_their_sender() {
        let initiation = message::<148>(1);
        assert_eq!(read(&initiation), Found::Nothing);
        assert_eq!(announced(&initiation), Some(&[4, 5, 6, 7][..]));
        let response = message::<92>(2);
        assert_eq!(read(&response), Found::Underway { id: &[8, 9, 10, 11], is_whole: true });
        assert_eq!(announced(&response), Some(&[4, 5, 6, 7][..]));
        for datagram in [&message::<64>(3)[..], &message::<32>(4), &message::<1_452>(4)] {
            assert_eq!(read(datagram), Found::Underway { id: &[4, 5, 6, 7], is_whole: true });
            assert_eq!(announced(datagram), None);
        }
    }

    #[test]
    fn what_is_not_of_wireguard_says_nothing() {
        let mut reserved = message::<64>(4);
        reserved[2] = 1;
        for datagram in [&[][..], &[4, 0, 0], &message::<31>(4), &message::<147>(1), &reserved] {
            assert_eq!((read(datagram), announced(datagram)), (Found::Nothing, None));
        }
    }
}
