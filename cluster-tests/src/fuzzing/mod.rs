//! What the fuzz targets do with their bytes.
//!
//! Each target is a function from bytes to nothing, which panics if anything is wrong. cargo-fuzz calls them with what
//! libFuzzer thinks up (`cluster-tests/fuzz`), and the test `fuzz_corpus` with every file of the corpora, so that what
//! was found once is looked for in every `cargo test`.
//!
//! * `durus`: clients of a node on its own, against a model of what each may be answered
//! * `peer`: messages of peers to one node of three, at any moment of a recorded life of that cluster
//! * `shelf`: files, any bytes and damaged good ones, against a reader of its own (`judge`)
//! * `frames`: the framing, hello, and every message by itself
//! * `raft_log`: the Raft log's two files and the promise, damaged
//! * `config`: texts of configuration files
//!
//! `machine` is the shell round a production core that does only what it is told. Nothing here draws a random number or
//! reads a clock: the same bytes do the same thing, always. The judges share no code with what they judge.

pub mod config;
pub mod durus;
pub mod frames;
pub mod judge;
pub mod machine;
pub mod peer;
pub mod raft_log;
pub mod recorded;
pub mod script;
pub mod seeds;
pub mod shelf;

/// What does something with a fuzzer's bytes.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("config", config::run),
    ("durus", durus::run),
    ("frames", frames::run),
    ("peer", peer::run),
    ("raft_log", raft_log::run),
    ("shelf", shelf::run),
];
