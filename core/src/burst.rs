//! The unit of work: some datagrams of one source, side by side in memory.

use core::num::NonZeroU16;

/// The most bytes a burst can hold: what UDP GRO builds and UDP GSO takes, an IP packet's worth.
pub const MAX_BURST_BYTES: usize = 65_535;

/// One or more datagrams of one source, in order, lying side by side.
///
/// All have `stride` bytes but the last, which may be shorter and is never empty unless it is the
/// only one. That is what a socket with `UDP_GRO` delivers in one read and what one send with
/// `UDP_SEGMENT` takes. The bytes are borrowed: the core looks at lengths, lends the slice on, and
/// never copies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst<'p> {
    bytes: &'p [u8],
    stride: u16,
    count: NonZeroU16,
}

impl<'p> Burst<'p> {
    /// A burst of exactly one datagram, which may be empty.
    ///
    /// `None` when it is longer than [`MAX_BURST_BYTES`], which no UDP datagram is.
    pub fn single(datagram: &'p [u8]) -> Option<Self> {
        let stride = u16::try_from(datagram.len()).ok()?;
        Some(Self { bytes: datagram, stride, count: NonZeroU16::MIN })
    }

    /// Datagrams of `stride` bytes each; the last one is what remains.
    ///
    /// A stride of zero, or one at least as long as `bytes`, makes a single datagram: that is how
    /// a socket reports "nothing was coalesced". `None` when `bytes` is longer than
    /// [`MAX_BURST_BYTES`].
    pub fn segmented(bytes: &'p [u8], stride: u16) -> Option<Self> {
        if stride == 0 || usize::from(stride) >= bytes.len() {
            return Self::single(bytes);
        }
        let count = u16::try_from(bytes.len().div_ceil(usize::from(stride))).ok()?;
        if bytes.len() > MAX_BURST_BYTES {
            return None;
        }
        Some(Self { bytes, stride, count: NonZeroU16::new(count)? })
    }

    /// All datagrams' bytes, end to end.
    pub const fn bytes(&self) -> &'p [u8] {
        self.bytes
    }

    /// The length in bytes of every datagram but the last. Zero only for one empty datagram.
    pub const fn stride(&self) -> u16 {
        self.stride
    }

    /// How many datagrams there are: at least one.
    pub const fn count(&self) -> u16 {
        self.count.get()
    }

    /// The length in bytes of the last datagram: at most the stride.
    pub fn last_len(&self) -> usize {
        self.bytes.len() - usize::from(self.stride) * usize::from(self.count() - 1)
    }

    /// The first `datagrams` datagrams, and the rest.
    ///
    /// Either side is `None` where it would hold no datagram.
    pub fn split_at(self, datagrams: u16) -> (Option<Self>, Option<Self>) {
        let (Some(head), Some(tail)) =
            (NonZeroU16::new(datagrams), NonZeroU16::new(self.count().saturating_sub(datagrams)))
        else {
            return if datagrams == 0 { (None, Some(self)) } else { (Some(self), None) };
        };
        let (first, rest) = self.bytes.split_at(usize::from(self.stride) * usize::from(datagrams));
        // A lone datagram is its own stride, also when it is the short tail.
        let tail_stride = if tail.get() == 1 { rest.len() as u16 } else { self.stride };
        (
            Some(Self { bytes: first, stride: self.stride, count: head }),
            Some(Self { bytes: rest, stride: tail_stride, count: tail }),
        )
    }

    /// The datagrams one by one, in order.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = &'p [u8]> + use<'p> {
        let (bytes, stride) = (self.bytes, usize::from(self.stride));
        (0..usize::from(self.count())).map(move |i| {
            let rest = &bytes[i * stride..];
            &rest[..stride.min(rest.len())]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use std::vec;

    #[test]
    fn an_empty_datagram_is_a_burst_of_one() {
        let burst = Burst::single(&[]).unwrap();
        assert_eq!((burst.count(), burst.stride(), burst.last_len()), (1, 0, 0));
        assert_eq!(burst.datagrams().collect::<Vec<_>>(), [&[] as &[u8]]);
        assert_eq!(Burst::segmented(&[], 100), Some(burst));
    }

    #[test]
    fn more_than_an_ip_packet_is_no_burst() {
        assert_eq!(Burst::single(&[0; 65_536]), None);
        assert_eq!(Burst::segmented(&[0; 65_536], 1_000), None);
    }

    proptest! {
        #[test]
        fn datagrams_are_the_chunks_of_the_bytes(len in 0usize..3_000, stride in 0u16..400) {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let burst = Burst::segmented(&bytes, stride).unwrap();
            let expected: Vec<&[u8]> = if len == 0 || stride == 0 {
                vec![&bytes]
            } else {
                bytes.chunks(usize::from(stride)).collect()
            };
            prop_assert_eq!(burst.datagrams().collect::<Vec<_>>(), expected);
            prop_assert_eq!(burst.datagrams().last().unwrap().len(), burst.last_len());
        }

        #[test]
        fn a_split_keeps_every_datagram(len in 0usize..3_000, stride in 1u16..400, at in 0u16..70) {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let burst = Burst::segmented(&bytes, stride).unwrap();
            let (head, tail) = burst.split_at(at);
            prop_assert_eq!(head.map_or(0, |b| b.count()), at.min(burst.count()));
            let rejoined: Vec<&[u8]> =
                head.iter().chain(tail.iter()).flat_map(Burst::datagrams).collect();
            prop_assert_eq!(rejoined, burst.datagrams().collect::<Vec<_>>());
        }
    }
}
