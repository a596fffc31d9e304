#![no_main]

#[path = "../src/config.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::config(data));
