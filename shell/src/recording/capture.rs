//! Captures as inputs: pcap and pcapng, as tcpdump and Wireshark write them.
//!
//! What goes to the listener's port is a client's, and what comes from it an answer, so a capture on the
//! clients' side says what is needed. Fragments but the first are left out.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};

use flowgate_core::{Instant, LocalAddr, UpstreamId};

use crate::recording::codec::{BurstForm, RecordedInput};

/// The longest packet, and the longest block of pcapng.
const MAX_PACKET: u32 = 1 << 20;

/// How many interfaces a capture may have.
const MAX_INTERFACES: usize = 1 << 16;

/// Why something is no capture that can be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It does not begin as one.
    #[error("this is neither a recording of flowgate nor a capture (pcap, pcapng)")]
    NoCapture,
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a capture packet by packet.
pub struct CaptureReader<R> {
    input: R,
    format: Format,
    is_big_endian: bool,
    is_cut: bool,
    /// `None`: what its packets begin with cannot be told, and they are left out.
    interfaces: Vec<Option<Interface>>,
    packet: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Pcap,
    PcapNg,
}

/// What packets begin with, and what their times mean.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link_type: u16,
    /// How many units of time are a second.
    per_second: u64,
}

/// A datagram as it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapturedDatagram<'a> {
    /// When, in nanoseconds since 1970.
    pub nanos: u64,
    /// Who sent it.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Its TOS byte.
    pub tos: u8,
    /// Its time to live.
    pub ttl: u8,
    /// How long it is.
    pub len: u16,
    /// The bytes of it that were captured.
    pub bytes: &'a [u8],
}

impl<R: Read> CaptureReader<R> {
    /// Begins to read.
    ///
    /// # Errors
    ///
    /// When it is no capture.
    pub fn new(mut input: R) -> Result<Self, CaptureError> {
        let mut magic = [0; 4];
        input.read_exact(&mut magic).map_err(|_| CaptureError::NoCapture)?;
        let (format, is_big_endian, per_second) = match magic {
            [0xD4, 0xC3, 0xB2, 0xA1] => (Format::Pcap, false, 1_000_000),
            [0xA1, 0xB2, 0xC3, 0xD4] => (Format::Pcap, true, 1_000_000),
            [0x4D, 0x3C, 0xB2, 0xA1] => (Format::Pcap, false, 1_000_000_000),
            [0xA1, 0xB2, 0x3C, 0x4D] => (Format::Pcap, true, 1_000_000_000),
            [0x0A, 0x0D, 0x0D, 0x0A] => (Format::PcapNg, false, 1_000_000),
            _ => return Err(CaptureError::NoCapture),
        };
        let mut reader = Self {
            input,
            format,
            is_big_endian,
            is_cut: false,
            interfaces: Vec::new(),
            packet: Vec::new(),
        };
        match format {
            Format::Pcap => {
                let mut rest = [0; 20];
                reader.input.read_exact(&mut rest).map_err(|_| CaptureError::NoCapture)?;
                let link_type = reader.u32(&rest, 16).unwrap_or(0) as u16;
                reader.interfaces.push(Some(Interface { link_type, per_second }));
            }
            Format::PcapNg => {
                if !reader.section()? {
                    return Err(CaptureError::NoCapture);
                }
            }
        }
        Ok(reader)
    }

    /// Whether the end was missing.
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The next UDP datagram over IP; nothing at the end, or where the rest is missing or damaged.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn next_datagram(&mut self) -> io::Result<Option<CapturedDatagram<'_>>> {
        loop {
            let found = match self.format {
                Format::Pcap => self.pcap_packet()?,
                Format::PcapNg => self.pcapng_packet()?,
            };
            let Some((nanos, link_type, start)) = found else { return Ok(None) };
            if parse(nanos, link_type, &self.packet[start..]).is_some() {
                // Asked twice, since what is returned borrows.
                return Ok(parse(nanos, link_type, &self.packet[start..]));
            }
        }
    }

    fn pcap_packet(&mut self) -> io::Result<Option<(u64, u16, usize)>> {
        let mut header = [0; 16];
        if !self.fill(&mut header)? {
            return Ok(None);
        }
        let word = |at| self.u32(&header, at).unwrap_or(0);
        let (seconds, fraction, len) = (word(0), word(4), word(8));
        let Some(&Some(Interface { link_type, per_second })) = self.interfaces.first() else {
            return Ok(None);
        };
        if !self.body(len)? {
            return Ok(None);
        }
        let nanos =
            u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * (1_000_000_000 / per_second);
        Ok(Some((nanos, link_type, 0)))
    }

    fn pcapng_packet(&mut self) -> io::Result<Option<(u64, u16, usize)>> {
        loop {
            let mut kind = [0; 4];
            if !self.fill(&mut kind)? {
                return Ok(None);
            }
            // A new section may have another order of bytes.
            if kind == [0x0A, 0x0D, 0x0D, 0x0A] {
                self.interfaces.clear();
                if !self.section()? {
                    return Ok(None);
                }
                continue;
            }
            let kind = self.u32(&kind, 0).unwrap_or(0);
            if !self.block()? {
                return Ok(None);
            }
            match kind {
                1 => {
                    let interface = self.interface();
                    if self.interfaces.len() < MAX_INTERFACES {
                        self.interfaces.push(interface);
                    }
                }
                6 => {
                    if let Some(found) = self.enhanced() {
                        return Ok(Some(found));
                    }
                }
                _ => {}
            }
        }
    }

    /// Reads a section's header, behind its mark.
    fn section(&mut self) -> io::Result<bool> {
        let mut start = [0; 8];
        if !self.fill(&mut start)? {
            return Ok(false);
        }
        self.is_big_endian = start[4..] == [0x1A, 0x2B, 0x3C, 0x4D];
        let is_little_endian = start[4..] == [0x4D, 0x3C, 0x2B, 0x1A];
        let len = self.u32(&start, 0).unwrap_or(0);
        if !(self.is_big_endian || is_little_endian) || len < 16 {
            self.is_cut = true;
            return Ok(false);
        }
        self.body(len - 12)
    }

    /// Reads a block behind its kind: all but its length, which stands before and after it.
    fn block(&mut self) -> io::Result<bool> {
        let mut len = [0; 4];
        if !self.fill(&mut len)? {
            return Ok(false);
        }
        let Some(rest) = self.u32(&len, 0).unwrap_or(0).checked_sub(8) else {
            self.is_cut = true;
            return Ok(false);
        };
        self.body(rest)
    }

    fn interface(&self) -> Option<Interface> {
        let link_type = self.u16(&self.packet, 0)?;
        let (mut per_second, mut at) = (1_000_000, 8);
        while let (Some(code), Some(len)) =
            (self.u16(&self.packet, at), self.u16(&self.packet, at + 2))
        {
            if code == 0 {
                break;
            }
            if code == 9 {
                per_second = match self.packet.get(at + 4)? {
                    power @ 0..=9 => 10_u64.pow(u32::from(*power)),
                    power @ 0x80..=0x9E => 1 << (power & 0x7F),
                    _ => return None,
                };
            }
            at += 4 + usize::from(len).next_multiple_of(4);
        }
        Some(Interface { link_type, per_second })
    }

    fn enhanced(&mut self) -> Option<(u64, u16, usize)> {
        let word = |at| self.u32(&self.packet, at);
        let interface = usize::try_from(word(0)?).ok()?;
        let Interface { link_type, per_second } = (*self.interfaces.get(interface)?)?;
        let units = u64::from(word(4)?) << 32 | u64::from(word(8)?);
        let len = usize::try_from(word(12)?).ok()?;
        let nanos = u128::from(units) * 1_000_000_000 / u128::from(per_second);
        self.packet.get(20..20_usize.checked_add(len)?)?;
        self.packet.truncate(20 + len);
        Some((u64::try_from(nanos).ok()?, link_type, 20))
    }

    fn u32(&self, bytes: &[u8], at: usize) -> Option<u32> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn u16(&self, bytes: &[u8], at: usize) -> Option<u16> {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if self.is_big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    /// Fills a buffer. Says whether there was as much; at the very end there need not be.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => {
                    self.is_cut |= filled > 0;
                    return Ok(false);
                }
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Reads this many bytes, as far as they are there and no more than a packet has.
    fn body(&mut self, len: u32) -> io::Result<bool> {
        self.packet.clear();
        if len > MAX_PACKET {
            self.is_cut = true;
            return Ok(false);
        }
        self.input.by_ref().take(len.into()).read_to_end(&mut self.packet)?;
        let is_whole = self.packet.len() == len as usize;
        self.is_cut |= !is_whole;
        Ok(is_whole)
    }
}

/// Finds the datagram in a packet.
fn parse(nanos: u64, link_type: u16, packet: &[u8]) -> Option<CapturedDatagram<'_>> {
    let be16 = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let ip = match link_type {
        // Ethernet, with the tags of VLANs.
        1 => {
            let mut at = 12;
            while matches!(be16(packet, at)?, 0x8100 | 0x88A8) {
                at += 4;
            }
            packet.get(at + 2..)?
        }
        // Raw IP, as different systems number it.
        12 | 14 | 101 | 228 | 229 => packet,
        // The loopback of BSD.
        0 | 108 => packet.get(4..)?,
        // "Any" of Linux, in both versions.
        113 => packet.get(16..)?,
        276 => packet.get(20..)?,
        _ => return None,
    };
    let (source, destination, tos, ttl, udp): (IpAddr, IpAddr, u8, u8, &[u8]) =
        match ip.first()? >> 4 {
            4 => {
                let header = usize::from(ip[0] & 15) * 4;
                let is_first = be16(ip, 6)? & 0x1FFF == 0;
                if header < 20 || *ip.get(9)? != 17 || !is_first {
                    return None;
                }
                let address = |at: usize| Some(IpAddr::from(*ip.get(at..)?.first_chunk::<4>()?));
                (address(12)?, address(16)?, ip[1], ip[8], ip.get(header..)?)
            }
            6 => {
                if *ip.get(6)? != 17 {
                    return None;
                }
                let address = |at: usize| Some(IpAddr::from(*ip.get(at..)?.first_chunk::<16>()?));
                let class = (be16(ip, 0)? >> 4) as u8;
                (address(8)?, address(24)?, class, ip[7], ip.get(40..)?)
            }
            _ => return None,
        };
    let (from, to, len) = (be16(udp, 0)?, be16(udp, 2)?, be16(udp, 4)?.checked_sub(8)?);
    let bytes = udp.get(8..)?;
    Some(CapturedDatagram {
        nanos,
        source: (source, from).into(),
        destination: (destination, to).into(),
        tos,
        ttl,
        len,
        bytes: &bytes[..bytes.len().min(len.into())],
    })
}

impl<'a> CapturedDatagram<'a> {
    /// What a listener at this address is told of it; nothing if it is not about it. `origin` is when
    /// the capture began.
    pub fn as_input(
        &self,
        listener: SocketAddr,
        origin: u64,
    ) -> Option<(RecordedInput<'a>, Instant)> {
        let now = Instant::from_nanos(self.nanos.saturating_sub(origin));
        let form = BurstForm {
            len: self.len,
            stride: 0,
            known: self.bytes.len() as u16,
            prefixes: self.bytes,
        };
        let is_ours = |address: SocketAddr| {
            let same = listener.ip().is_unspecified() || listener.ip() == address.ip();
            (address.port() == listener.port()).then_some(same)
        };
        let is_answer = match (is_ours(self.source), is_ours(self.destination)) {
            (None, None) => return None,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(from), Some(to)) => from && !to,
        };
        let input = if is_answer {
            let client = Some(self.destination);
            // By what it came is the manager's to say.
            let (upstream, sender) = (UpstreamId::new(0, 0), self.source);
            RecordedInput::UpstreamBurst { upstream, sender, client, tos: self.tos, form }
        } else {
            let local = listener.ip().is_unspecified();
            let local = local.then(|| LocalAddr { ip: self.destination.ip(), interface: 0 });
            let (source, tos, ttl) = (self.source, self.tos, self.ttl);
            RecordedInput::ClientBurst { source, local, tos, ttl, form }
        };
        Some((input, now))
    }
}

#[cfg(test)]
mod tests;
