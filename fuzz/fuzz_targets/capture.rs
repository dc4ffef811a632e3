//! The body, and what it proves, is `flowgate_tests::fuzz::capture`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flowgate_tests::fuzz::capture(data));
