//! The body, and what it proves, is `flowgate_tests::fuzz::proxy_accept`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| flowgate_tests::fuzz::proxy_accept(data));
