//! CRC-32C (Castagnoli, RFC 3720 appendix B.4), which a PROXY header may carry of itself.

/// The polynomial 0x1EDC6F41, lowest bit first.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// What each byte contributes.
static TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
}

/// The checksum of several parts as if they were one.
pub(super) fn crc32c(parts: &[&[u8]]) -> u32 {
    let step = |sum: u32, &byte: &u8| TABLE[(sum as u8 ^ byte) as usize] ^ sum >> 8;
    !parts.iter().copied().flatten().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From RFC 3720, appendix B.4, and the check value of the CRC catalogue.
    #[test]
    fn published_vectors_come_out() {
        let ascending: [u8; 32] = core::array::from_fn(|at| at as u8);
        let descending: [u8; 32] = core::array::from_fn(|at| 31 - at as u8);
        for (bytes, sum) in [
            (&[0; 32][..], 0x8A91_36AA),
            (&[0xFF; 32], 0x62A8_AB43),
            (&ascending, 0x46DD_794E),
            (&descending, 0x113F_DB5C),
            (b"123456789", 0xE306_9283),
            (b"", 0),
        ] {
            assert_eq!(crc32c(&[bytes]), sum);
            let (head, tail) = bytes.split_at(bytes.len() / 3);
            assert_eq!(crc32c(&[head, &[], tail]), sum);
        }
    }
}
