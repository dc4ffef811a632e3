//! Reading the header in front of a datagram that a proxy has sent.

use core::fmt;
use core::net::{IpAddr, SocketAddr};

use thiserror::Error;

use super::crc32c::crc32c;
use super::{PREAMBLE_LEN, SIGNATURE};

/// The most bytes of a header that may follow its first sixteen: two addresses, and TLVs such as
/// the authority and a connection id. A proxy that has more to say than fits one packet beside the
/// payload has nothing to say over UDP.
pub const MAX_BLOCK_LEN: usize = 2_048;

const IPV4_BLOCK_LEN: usize = 12;
const IPV6_BLOCK_LEN: usize = 36;
/// Two paths of 108 bytes.
const UNIX_BLOCK_LEN: usize = 216;

/// `PP2_TYPE_CRC32C`.
const CHECKSUM: u8 = 0x03;
/// Its type, its length, and its value.
const CHECKSUM_LEN: usize = 3 + 4;

/// A datagram that has a PROXY v2 header in front, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedHeader<'p> {
    /// On whose behalf the datagram was sent; `None`: the sender speaks for itself, as with a
    /// probe of its own (`LOCAL`), or for someone who has no address (`AF_UNSPEC`, `AF_UNIX`).
    pub endpoints: Option<Endpoints>,
    /// What else the header says.
    pub tlvs: Tlvs<'p>,
    /// The datagram without the header. It may be empty.
    pub payload: &'p [u8],
}

/// Who sent a datagram to whom before it came to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The client. Never an IPv4 address mapped into IPv6.
    pub client: SocketAddr,
    /// The address that the client called. Never an IPv4 address mapped into IPv6.
    pub destination: SocketAddr,
}

/// What is wrong with what begins as a PROXY v2 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderFault {
    /// The datagram ends before the header does.
    #[error("the datagram ends before the header does")]
    Cut,
    /// The header is longer than [`MAX_BLOCK_LEN`] allows.
    #[error("the header is longer than {} bytes", PREAMBLE_LEN + MAX_BLOCK_LEN)]
    TooLong,
    /// Another version than 2, or another command than LOCAL and PROXY.
    #[error("no such version or command")]
    Command,
    /// An address family or a transport that the specification does not know.
    #[error("no such family or transport")]
    Family,
    /// No room for the addresses that the family needs.
    #[error("the header ends before its addresses do")]
    Addresses,
    /// The TLVs do not fill the rest of the header, or contradict each other.
    #[error("the header's TLVs do not add up")]
    Tlvs,
    /// The checksum is not that of the header.
    #[error("the header's checksum is wrong")]
    Checksum,
}

/// Whether a datagram begins as one with a PROXY v2 header does.
#[inline]
pub fn has_header(datagram: &[u8]) -> bool {
    datagram.starts_with(&SIGNATURE)
}

impl<'p> ReceivedHeader<'p> {
    /// Reads the header of a datagram; `None` if it has none.
    ///
    /// The transport does not matter as long as it is one of the specification's: there are proxies
    /// that say `STREAM` of UDP, and the addresses are what counts.
    ///
    /// # Errors
    ///
    /// When it begins as a header does and is none. Such a datagram is neither payload nor
    /// someone's: it is to be dropped.
    pub fn parse(datagram: &'p [u8]) -> Result<Option<Self>, HeaderFault> {
        if !has_header(datagram) {
            return Ok(None);
        }
        let (preamble, rest) =
            datagram.split_first_chunk::<PREAMBLE_LEN>().ok_or(HeaderFault::Cut)?;
        let &[.., version_and_command, family_and_transport, len_high, len_low] = preamble;
        let len = usize::from(u16::from_be_bytes([len_high, len_low]));
        if len > MAX_BLOCK_LEN {
            return Err(HeaderFault::TooLong);
        }
        let (block, payload) = rest.split_at_checked(len).ok_or(HeaderFault::Cut)?;
        let on_its_own = Self { endpoints: None, tlvs: Tlvs::NONE, payload };
        match version_and_command {
            // Whatever follows is to be ignored, with the family.
            0x20 => return Ok(Some(on_its_own)),
            0x21 => {}
            _ => return Err(HeaderFault::Command),
        }
        if family_and_transport & 0xF > 2 {
            return Err(HeaderFault::Family);
        }
        let addresses_len = match family_and_transport >> 4 {
            // Where its TLVs begin, if there are any, nobody says.
            0 => return Ok(Some(on_its_own)),
            1 => IPV4_BLOCK_LEN,
            2 => IPV6_BLOCK_LEN,
            3 => UNIX_BLOCK_LEN,
            _ => return Err(HeaderFault::Family),
        };
        let (addresses, tlvs) =
            block.split_at_checked(addresses_len).ok_or(HeaderFault::Addresses)?;
        let tlvs = Tlvs::parse(tlvs)?;
        if let Some(at) = tlvs.checksum() {
            let header = &datagram[..PREAMBLE_LEN + len];
            verify(header, PREAMBLE_LEN + addresses_len + at + 3)?;
        }
        Ok(Some(Self { endpoints: endpoints(addresses), tlvs, payload }))
    }
}

/// The addresses of a block of either family; `None` for any other.
fn endpoints(block: &[u8]) -> Option<Endpoints> {
    let (client, destination, ports) = match block.len() {
        IPV4_BLOCK_LEN => ipv4_block(block)?,
        IPV6_BLOCK_LEN => ipv6_block(block)?,
        _ => return None,
    };
    let &[a, b, c, d] = ports;
    Some(Endpoints {
        client: SocketAddr::new(client.to_canonical(), u16::from_be_bytes([a, b])),
        destination: SocketAddr::new(destination.to_canonical(), u16::from_be_bytes([c, d])),
    })
}

fn ipv4_block(block: &[u8]) -> Option<(IpAddr, IpAddr, &[u8; 4])> {
    let (client, rest) = block.split_first_chunk::<4>()?;
    let (destination, ports) = rest.split_first_chunk::<4>()?;
    Some((IpAddr::from(*client), IpAddr::from(*destination), ports.first_chunk()?))
}

fn ipv6_block(block: &[u8]) -> Option<(IpAddr, IpAddr, &[u8; 4])> {
    let (client, rest) = block.split_first_chunk::<16>()?;
    let (destination, ports) = rest.split_first_chunk::<16>()?;
    Some((IpAddr::from(*client), IpAddr::from(*destination), ports.first_chunk()?))
}

/// Checks the checksum at `at`, which is that of the header with zeros in its place.
fn verify(header: &[u8], at: usize) -> Result<(), HeaderFault> {
    let (before, rest) = header.split_at_checked(at).ok_or(HeaderFault::Tlvs)?;
    let (proxied, after) = rest.split_first_chunk::<4>().ok_or(HeaderFault::Tlvs)?;
    if crc32c(&[before, &[0; 4], after]) == u32::from_be_bytes(*proxied) {
        Ok(())
    } else {
        Err(HeaderFault::Checksum)
    }
}

/// Whatever a header says beside addresses, as it came: type, length, value, one after the other.
/// The checksum is left out, which would be wrong in front of any other header.
#[derive(Clone, Copy)]
pub struct Tlvs<'p> {
    bytes: &'p [u8],
    /// Where in them the checksum is; `NOWHERE` if there is none.
    checksum_at: u16,
}

const NOWHERE: u16 = u16::MAX;
const _: () = assert!(MAX_BLOCK_LEN < NOWHERE as usize);

impl<'p> Tlvs<'p> {
    /// Nothing.
    pub const NONE: Self = Self { bytes: &[], checksum_at: NOWHERE };

    fn parse(bytes: &'p [u8]) -> Result<Self, HeaderFault> {
        let mut tlvs = Self { bytes, checksum_at: NOWHERE };
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = bytes.len() - rest.len();
            let (&[kind, high, low], after) = rest.split_first_chunk().ok_or(HeaderFault::Tlvs)?;
            let len = usize::from(u16::from_be_bytes([high, low]));
            let (_, after) = after.split_at_checked(len).ok_or(HeaderFault::Tlvs)?;
            if kind == CHECKSUM {
                if 3 + len != CHECKSUM_LEN || tlvs.checksum().is_some() {
                    return Err(HeaderFault::Tlvs);
                }
                tlvs.checksum_at = at as u16;
            }
            rest = after;
        }
        Ok(tlvs)
    }

    fn checksum(&self) -> Option<usize> {
        (self.checksum_at != NOWHERE).then_some(usize::from(self.checksum_at))
    }

    /// The bytes, in two parts that belong one behind the other; either may be empty.
    #[inline]
    pub fn parts(&self) -> [&'p [u8]; 2] {
        match self.checksum() {
            None => [self.bytes, &[]],
            Some(at) => [&self.bytes[..at], &self.bytes[at + CHECKSUM_LEN..]],
        }
    }

    /// How many bytes both parts have.
    #[inline]
    pub fn len(&self) -> usize {
        self.parts().map(<[u8]>::len).iter().sum()
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl PartialEq for Tlvs<'_> {
    fn eq(&self, other: &Self) -> bool {
        let [ours, theirs] = [self, other].map(|tlvs| tlvs.parts().into_iter().flatten());
        ours.eq(theirs)
    }
}

impl Eq for Tlvs<'_> {}

impl Default for Tlvs<'_> {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Debug for Tlvs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tlvs(")?;
        for byte in self.parts().into_iter().flatten() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests;
