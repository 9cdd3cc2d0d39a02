use super::*;
use crate::shelf::testing::record;

fn meta(kind: Kind) -> TxMeta {
    TxMeta { kind, epoch: Epoch(3), seq: Seq(9), time_us: 77, commit_id: CommitId([5; 16]) }
}

fn sample() -> (Chain, BuiltTx) {
    let prev = Chain([7; 20]);
    let records = [(Oid(1), record(1, b"one", &[2, 3])), (Oid(2), record(2, b"", &[]))];
    (prev, build(&prev, &meta(Kind::Commit), &records))
}

#[test]
fn what_is_built_is_parsed_and_verified() {
    let (prev, built) = sample();
    let tx = verify(&prev, &built.bytes).unwrap();
    assert_eq!(tx.meta, meta(Kind::Commit));
    assert_eq!((tx.chain, tx.len), (built.chain, built.bytes.len() as u64));
    let oids: Vec<_> = tx.records.iter().map(|at| at.oid).collect();
    assert_eq!(oids, [Oid(1), Oid(2)]);
    assert_eq!(tx.records[0].record(&built.bytes), &record(1, b"one", &[2, 3])[..]);
    let found: Vec<_> = refs(tx.records[0].record(&built.bytes)).unwrap().collect();
    assert_eq!(found, [Oid(2), Oid(3)]);
    assert!(matches!(verify(&Chain::ZERO, &built.bytes), Err(TxError::WrongChain { .. })));
}

#[test]
fn seals_and_epoch_starts_keep_what_they_say() {
    let info = SealInfo { generation: Generation(4), cut: Seq(9), previous_chain: Chain([1; 20]) };
    for kind in [Kind::Seal(info), Kind::EpochStart] {
        let built = build(&Chain::ZERO, &meta(kind), &[]);
        assert_eq!(verify(&Chain::ZERO, &built.bytes).unwrap().meta, meta(kind));
    }
    assert_eq!(CHAIN_RECORD_LEN, 131);
    assert_eq!(SEAL_RECORD_LEN, 167);
}

#[test]
fn rechaining_changes_the_chain_and_nothing_else() {
    let (_, built) = sample();
    let again = rechain(&Chain([8; 20]), &built.bytes);
    let end = built.bytes.len() - 20;
    assert_eq!(again.bytes[..end], built.bytes[..end]);
    assert_eq!(verify(&Chain([8; 20]), &again.bytes).unwrap().chain, again.chain);
    assert_eq!(rechain(&Chain([7; 20]), &again.bytes), built);
}

#[test]
fn every_bit_flip_and_every_cut_is_noticed() {
    let (prev, built) = sample();
    for bit in 0..built.bytes.len() * 8 {
        let mut bytes = built.bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&prev, &bytes).is_err(), "bit {bit}");
    }
    for len in 0..built.bytes.len() {
        assert!(matches!(parse(&built.bytes[..len]), Err(TxError::Short { .. })), "{len} bytes");
    }
}

#[test]
fn transactions_are_split_by_their_lengths() {
    let (_, built) = sample();
    let two = [&built.bytes[..], &[0; 8], &built.bytes[..]].concat();
    let cut: Vec<_> = split_transactions(&two).map(|tx| tx.unwrap().len()).collect();
    assert_eq!(cut, [built.bytes.len(), 8, built.bytes.len()]);
    let last = split_transactions(&two[..two.len() - 1]).last().unwrap();
    assert!(matches!(last, Err(TxError::Short { .. })));
    assert_eq!(split_transactions(&[1, 2]).count(), 1);
}

#[test]
fn records_a_client_may_not_store() {
    let good = record(5, b"data", &[1, 2]);
    assert_eq!(check_record(Oid(5), &good), Ok(()));
    assert_eq!(check_record(Oid(6), &good), Err(RecordError::OtherOid(Oid(5))));
    assert_eq!(check_record(Oid(5), &good[..good.len() - 1]), Err(RecordError::References));
    assert_eq!(check_record(Oid(5), &good[..14]), Err(RecordError::DataLength));
    assert_eq!(check_record(Oid(5), &good[..11]), Err(RecordError::Short));
    assert_eq!(check_record(Oid(5), &[]), Err(RecordError::Short));
    let mut huge = good.to_vec();
    huge[8..12].fill(0xff);
    assert_eq!(check_record(Oid(5), &huge), Err(RecordError::DataLength));
    let chain = record(u64::MAX, b"", &[]);
    assert_eq!(check_record(Oid::CHAIN, &chain), Err(RecordError::Reserved));
    let refers = record(5, b"", &[u64::MAX]);
    assert_eq!(check_record(Oid(5), &refers), Err(RecordError::RefersToReserved));
}

#[test]
fn a_plain_transaction_must_not_resemble_ours() {
    let mut records = Vec::new();
    let plain = crate::shelf::testing::plain_transaction(&[(1, b"x", &[])]);
    assert_eq!(parse(&plain), Err(TxError::NotChained));
    assert_eq!(parse_plain_into(&plain, &mut records), Ok(plain.len() as u64));
    assert_eq!(parse_plain_into(&[0; 8], &mut records), Ok(8));
    let (_, built) = sample();
    assert!(parse_plain_into(&built.bytes, &mut records).is_err());
    let disguised = crate::shelf::testing::plain_transaction(&[(1, &PREAMBLE, &[])]);
    assert!(matches!(parse_plain_into(&disguised, &mut records), Err(TxError::ChainRecord(_))));
}
