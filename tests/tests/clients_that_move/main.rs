//! Clients that change their address and go on: QUIC, WireGuard and SIP as programs that others wrote speak
//! them, and DTLS by records that the test makes.

mod dtls;
mod explained;
mod quic;
mod sip;
mod wireguard;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");
