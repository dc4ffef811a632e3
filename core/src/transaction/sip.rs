//! SIP: the Call-ID, which all messages of a call have in common, requests and responses of both sides
//! (RFC 3261, section 8.1.1.4).
//!
//! What is told apart by it is a call, or a registration with its refreshes, and no single request: a
//! trunk that has all its calls on one port has a flow for each. Requests of a call that its other
//! side sends are answers here, and go to the client that has the call.

use super::TransactionId;
use crate::affinity::sip_call_id;

/// The identifier of a message of either side.
pub(super) fn id(datagram: &[u8]) -> Option<TransactionId> {
    sip_call_id::read(datagram).map(TransactionId::of_text)
}
