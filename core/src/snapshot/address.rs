//! How a socket address is written down: whole, for `#[serde(with = "…")]`. serde's own form leaves
//! out the scope of a link-local address, and the flow label.

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Clone, Copy, Serialize, Deserialize)]
enum Written {
    V4 { ip: Ipv4Addr, port: u16 },
    V6 { ip: Ipv6Addr, port: u16, flow_label: u32, scope: u32 },
}

impl From<SocketAddr> for Written {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => Self::V4 { ip: *v4.ip(), port: v4.port() },
            SocketAddr::V6(v6) => Self::V6 {
                ip: *v6.ip(),
                port: v6.port(),
                flow_label: v6.flowinfo(),
                scope: v6.scope_id(),
            },
        }
    }
}

impl From<Written> for SocketAddr {
    fn from(written: Written) -> Self {
        match written {
            Written::V4 { ip, port } => SocketAddrV4::new(ip, port).into(),
            Written::V6 { ip, port, flow_label, scope } => {
                SocketAddrV6::new(ip, port, flow_label, scope).into()
            }
        }
    }
}

/// Writes an address.
///
/// # Errors
///
/// Those of the serializer.
pub fn serialize<S: Serializer>(address: &SocketAddr, serializer: S) -> Result<S::Ok, S::Error> {
    Written::from(*address).serialize(serializer)
}

/// Reads an address.
///
/// # Errors
///
/// Those of the deserializer.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    Written::deserialize(deserializer).map(SocketAddr::from)
}

/// The same where there may be none.
pub mod optional {
    use super::{Deserialize, Deserializer, Serialize, Serializer, SocketAddr, Written};

    /// Writes an address, or that there is none.
    ///
    /// # Errors
    ///
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(
        address: &Option<SocketAddr>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        address.map(Written::from).serialize(serializer)
    }

    /// Reads an address, or that there is none.
    ///
    /// # Errors
    ///
    /// Those of the deserializer.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SocketAddr>, D::Error> {
        Ok(Option::<Written>::deserialize(deserializer)?.map(SocketAddr::from))
    }
}
