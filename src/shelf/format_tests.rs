//! FORMAT.md's example, read by the code.

use bytes::Bytes;
use sha1::{Digest, Sha1};

use super::testing::{get, plain_file, put};
use super::{Kind, Shelf, TxMeta, adopt, build, parse};
use crate::storage::mem::MemDisk;
use crate::types::{CommitId, Epoch, Oid, Seq};

/// The bytes of the example, each line at its offset.
fn example() -> Vec<u8> {
    let text = include_str!("FORMAT.md");
    let (_, example) = text.split_once("## Example").expect("FORMAT.md has an example");
    let mut bytes = Vec::new();
    for line in example.lines().filter(|line| line.starts_with("    ")) {
        let mut words = line.split_whitespace();
        let offset = usize::from_str_radix(words.next().unwrap(), 16).unwrap();
        assert_eq!(offset, bytes.len(), "{line}");
        let hex = words.next().unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        bytes.extend((0..hex.len()).step_by(2).map(byte));
    }
    bytes
}

#[test]
fn the_example_is_a_whole_file_and_says_what_it_says() {
    let disk = MemDisk::new();
    put(&disk, "f", &example());
    let opened = Shelf::open(&disk, "f").unwrap();
    assert_eq!(opened.torn, None);
    let shelf = opened.shelf;
    assert_eq!((shelf.tip().seq, shelf.tip().epoch), (Seq(2), Epoch(7)));
    assert_eq!(shelf.meta_at(Seq(1)).unwrap().unwrap().kind, Kind::EpochStart);
    let commit = shelf.meta_at(Seq(2)).unwrap().unwrap();
    assert_eq!(commit.time_us, 1_700_000_000_000_005);
    assert_eq!(commit.commit_id.0, std::array::from_fn(|at| at as u8 + 1));
    assert_eq!(&shelf.load(Oid(2)).unwrap().unwrap()[12..15], b"two");
    assert_eq!(shelf.holes().unwrap(), [Oid(1)]);
    assert_eq!(shelf.next_free(), Oid(3));
}

#[test]
fn the_example_is_what_we_write() {
    let disk = MemDisk::new();
    put(&disk, "f", &plain_file(&[(0, b"", &[2])], &[]));
    adopt(&disk, "f").unwrap();
    let mut shelf = Shelf::open(&disk, "f").unwrap().shelf;
    let mut bytes = get(&disk, "f");
    let mut push = |kind, seq, time_us, commit_id, records: &[(Oid, Bytes)]| {
        let meta = TxMeta { kind, epoch: Epoch(7), seq: Seq(seq), time_us, commit_id };
        let built = build(&shelf.tip().chain, &meta, records);
        shelf.append(&parse(&built.bytes).unwrap(), built.bytes.clone());
        bytes.extend_from_slice(&built.bytes);
    };
    let time = 1_700_000_000_000_000;
    push(Kind::EpochStart, 1, time, CommitId::NONE, &[]);
    let id = CommitId(std::array::from_fn(|at| at as u8 + 1));
    let record = super::testing::record(2, b"two", &[0]);
    push(Kind::Commit, 2, time + 5, id, &[(Oid(2), record)]);
    assert_eq!(bytes, example());
}

/// Without any code of ours: the chains by the words of the document.
#[test]
fn the_chains_of_the_example_are_what_the_document_says() {
    let bytes = example();
    let (mut at, mut chain) = (78, Sha1::digest(&bytes[..78]));
    let mut count = 0;
    while at < bytes.len() {
        let len = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let end = at + 8 + len;
        chain = Sha1::new().chain_update(chain).chain_update(&bytes[at + 8..end - 20]).finalize();
        assert_eq!(chain[..], bytes[end - 20..end]);
        (at, count) = (end, count + 1);
    }
    assert_eq!(count, 3);
}
