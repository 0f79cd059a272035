#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| karapace_store::import::fuzzing::image(bytes));
