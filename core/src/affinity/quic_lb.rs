//! The configurations of QUIC-LB as a part of a cluster's configuration.

use flowgate_quic_lb::Decoder;

/// How the connection ids of a cluster's servers name them.
///
/// It is no part of [snapshots](crate::snapshot), since it holds keys: a manager that is restored
/// reads no ids before it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuicLb(pub alloc::boxed::Box<Decoder>);
