//! Where decisions come from: a seed, or the bytes of a fuzzer.

/// A source of decisions.
pub trait Choices {
    /// A number below `bound`; 0 where `bound` is 0.
    fn below(&mut self, bound: u64) -> u64;

    /// True once in `n` times.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == n - 1
    }

    /// Any of `options`, which must not be empty.
    fn one_of<T: Copy>(&mut self, options: &[T]) -> T {
        options[self.below(options.len() as u64) as usize]
    }

    /// Any byte.
    fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}

/// Decisions that grow from a seed: SplitMix64, so that a seed means the same for ever.
#[derive(Clone, Debug)]
pub struct SeededChoices(u64);

impl SeededChoices {
    /// The decisions of one seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Choices for SeededChoices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        ((u128::from(mix(self.0)) * u128::from(bound)) >> 64) as u64
    }
}

/// The output function of SplitMix64. The definition of rendezvous hashing uses it too.
pub(super) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Decisions read from bytes, as few bytes for each as hold it, so that a fuzzer that changes one
/// byte changes one decision. All decisions are 0 when the bytes are used up.
#[derive(Clone, Debug)]
pub struct ByteChoices<'a>(&'a [u8]);

impl<'a> ByteChoices<'a> {
    /// The decisions that `bytes` spell.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether the bytes are used up.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Choices for ByteChoices<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        let mut value = 0;
        let mut largest = bound.saturating_sub(1);
        while largest > 0 {
            let (byte, rest) = self.0.split_first().map_or((0, self.0), |(b, rest)| (*b, rest));
            self.0 = rest;
            value = value << 8 | u64::from(byte);
            largest >>= 8;
        }
        value.checked_rem(bound).unwrap_or(0)
    }
}
