//! How a server id and a nonce are hidden (sections 5.4 and 5.5 of the draft).
//!
//! Together 16 bytes, they are one block of AES-128-ECB. Of any other length they go through a
//! Feistel network of four rounds, which keeps the length and whose round function is one block
//! of AES. Where the number of bytes is odd, the halves share the byte in the middle: the first
//! four bits belong to the left one, the last four to the right one.

use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

/// The longest server id with its nonce: a connection id without its first octet.
const MAX_LENGTH: usize = crate::MAX_CONNECTION_ID_LENGTH - 1;

const BLOCK: usize = 16;

/// The longer half of the longest.
const MAX_HALF: usize = MAX_LENGTH.div_ceil(2);

/// A key, ready to use.
#[derive(Clone)]
pub(crate) struct Cipher {
    key: [u8; BLOCK],
    aes: Aes128,
}

impl Cipher {
    pub(crate) fn new(key: &[u8; BLOCK]) -> Self {
        Self { key: *key, aes: Aes128::new(&(*key).into()) }
    }

    /// Hides a server id and its nonce.
    pub(crate) fn encrypt(&self, text: &mut [u8]) {
        if let Ok(block) = <&mut [u8; BLOCK]>::try_from(&mut *text) {
            self.aes.encrypt_block(block.into());
        } else {
            let mut halves = Halves::split(text);
            for round in 1..=4 {
                halves.turn(round, &self.aes);
            }
            halves.join(text);
        }
    }

    /// Uncovers them.
    pub(crate) fn decrypt(&self, text: &mut [u8]) {
        if let Ok(block) = <&mut [u8; BLOCK]>::try_from(&mut *text) {
            self.aes.decrypt_block(block.into());
        } else {
            let mut halves = Halves::split(text);
            for round in (1..=4).rev() {
                halves.turn(round, &self.aes);
            }
            halves.join(text);
        }
    }
}

impl PartialEq for Cipher {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Cipher {}

struct Halves {
    left: [u8; MAX_HALF],
    right: [u8; MAX_HALF],
    /// Of both together.
    length: usize,
}

impl Halves {
    fn split(text: &[u8]) -> Self {
        let length = text.len().min(MAX_LENGTH);
        let mut halves = Self { left: [0; MAX_HALF], right: [0; MAX_HALF], length };
        let half = halves.half();
        halves.left[..half].copy_from_slice(&text[..half]);
        halves.right[..half].copy_from_slice(&text[length - half..length]);
        halves.clear_what_is_shared();
        halves
    }

    fn join(&self, text: &mut [u8]) {
        let (length, half) = (self.length, self.half());
        text[length - half..length].copy_from_slice(&self.right[..half]);
        if length % 2 == 1 {
            text[half - 1] |= self.left[half - 1];
            text[..half - 1].copy_from_slice(&self.left[..half - 1]);
        } else {
            text[..half].copy_from_slice(&self.left[..half]);
        }
    }

    /// One round: the odd ones change the right half, the even ones the left.
    fn turn(&mut self, round: u8, aes: &Aes128) {
        let (half, length) = (self.half(), self.length);
        let (from, to) = if round % 2 == 1 {
            (&self.left, &mut self.right)
        } else {
            (&self.right, &mut self.left)
        };
        let mut block = [0; BLOCK];
        block[..half].copy_from_slice(&from[..half]);
        (block[BLOCK - 2], block[BLOCK - 1]) = (length as u8, round);
        aes.encrypt_block((&mut block).into());
        to[..half].iter_mut().zip(block).for_each(|(byte, mask)| *byte ^= mask);
        self.clear_what_is_shared();
    }

    fn half(&self) -> usize {
        self.length.div_ceil(2)
    }

    fn clear_what_is_shared(&mut self) {
        if self.length % 2 == 1 {
            self.left[self.half() - 1] &= 0xF0;
            self.right[0] &= 0x0F;
        }
    }
}
