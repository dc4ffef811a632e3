//! A key at a fixed place in the payload.

/// The bytes at `offset`, if the datagram has all `length` of them.
pub fn read(datagram: &[u8], offset: u16, length: u8) -> Option<&[u8]> {
    let offset = usize::from(offset);
    datagram.get(offset..offset + usize::from(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_that_is_too_short_has_none() {
        assert_eq!(read(b"abcdef", 2, 3), Some(&b"cde"[..]));
        assert_eq!(read(b"abcdef", 3, 3), Some(&b"def"[..]));
        assert_eq!(read(b"abcdef", 4, 3), None);
        assert_eq!(read(b"", 65_535, 255), None);
    }
}
