//! The randomness of a manager: all of it grows from the seed that its creator passed in.

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): one 64-bit state, full period, a few
/// instructions. Good enough to spread flows; never used where an attacker must not guess.
///
/// Frozen like [`hash`](crate::hash): Maglev places clients by the sequence of a seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that grows from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed from which the rest of the sequence grows.
    pub(crate) const fn state(&self) -> u64 {
        self.0
    }

    /// Draws the next number of the sequence.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `bound`, evenly; 0 when `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // Multiply-shift: the bias is below bound / 2^64.
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }
}

/// The output function of SplitMix64: every input bit flips about half of the output bits.
pub(crate) const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_that_of_split_mix_64() {
        // From the reference implementation (Vigna, 2015), for the seed 1234567.
        let mut random = Random::new(1_234_567);
        let drawn = [(); 3].map(|()| random.draw());
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(drawn, expected);
    }
}
