//! Clients that change their address and go on, with programs that others wrote: QUIC, WireGuard, and
//! SIP calls of which each message comes from another socket.

mod quic;
mod sip;
mod wireguard;

const FLOWGATE: &str = env!("CARGO_BIN_EXE_flowgate-under-test");
