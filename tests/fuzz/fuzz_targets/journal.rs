#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| karapace_fs::fuzzing::journal(bytes));
