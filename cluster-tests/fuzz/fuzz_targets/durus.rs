#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cluster_tests::fuzzing::durus::run(data));
