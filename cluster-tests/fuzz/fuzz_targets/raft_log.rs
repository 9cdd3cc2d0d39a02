#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cluster_tests::fuzzing::raft_log::run(data));
