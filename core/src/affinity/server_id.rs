//! How a server id is written down, for `#[serde(with = "…")]`: as its bytes.

use alloc::vec::Vec;

use flowgate_quic_lb::ServerId;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub(crate) fn serialize<S: Serializer>(
    id: &Option<ServerId>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    id.as_ref().map(|id| id.as_ref()).serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ServerId>, D::Error> {
    let bytes = Option::<Vec<u8>>::deserialize(deserializer)?;
    bytes.map(|bytes| ServerId::new(&bytes)).transpose().map_err(de::Error::custom)
}
