//! The bytes of the Durus client protocol, version 1. Every number is big-endian.
//!
//! The protocol has no framing: a command is a byte and what belongs to it. So the parser looks at what has arrived
//! and either takes one whole command out of the buffer or leaves it alone; it keeps no state of its own, and
//! it does not matter where the network cut the bytes. How long a commit's data or a bulk load may be is judged
//! as soon as its length is there, before anything is kept for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use roaring::RoaringTreemap;

use super::close::{CloseReason, Limits, Malformed};
use crate::shelf;
use crate::types::Oid;

/// The only version there is.
pub const PROTOCOL_VERSION: u32 = 1;

/// Before a record: the answer byte and its length.
pub const RECORD_HEADER_BYTES: usize = 5;

/// Answer byte: done, or a record follows.
pub const OKAY: u8 = b'O';
/// Answer byte: no such oid.
pub const KEY_ERROR: u8 = b'K';
/// Answer byte: changed since the last sync (a load), or conflict (a commit).
pub const INVALID: u8 = b'I';

/// One command of a client, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `V`, version:4
    Version(u32),
    /// `N` (one) or `M`, count:1
    NewOids(u8),
    /// `L`, oid:8
    Load(Oid),
    /// `B`, count:4, oids:8*
    Bulk(Vec<Oid>),
    /// `S`
    Sync,
    /// `C`; the data comes after our answer, see [`take_commit_data`]
    Commit,
    /// `P`
    Pack,
    /// `Q`
    Quit,
    /// `.`
    Goodbye,
}

/// Takes one whole command from the front of `buffer`; None if it is not all there yet.
pub fn take_command(
    buffer: &mut BytesMut,
    limits: &Limits,
) -> Result<Option<Command>, CloseReason> {
    let Some(&byte) = buffer.first() else { return Ok(None) };
    let body = &buffer[1..];
    let (command, len) = match byte {
        b'V' => match be32(body) {
            Some(version) => (Command::Version(version), 4),
            None => return Ok(None),
        },
        b'N' => (Command::NewOids(1), 0),
        b'M' => match body.first() {
            Some(&count) => (Command::NewOids(count), 1),
            None => return Ok(None),
        },
        b'L' => match be64(body) {
            Some(oid) => (Command::Load(Oid(oid)), 8),
            None => return Ok(None),
        },
        b'B' => match bulk(body, limits)? {
            Some(oids) => {
                let len = 4 + 8 * oids.len();
                (Command::Bulk(oids), len)
            }
            None => return Ok(None),
        },
        b'S' => (Command::Sync, 0),
        b'C' => (Command::Commit, 0),
        b'P' => (Command::Pack, 0),
        b'Q' => (Command::Quit, 0),
        b'.' => (Command::Goodbye, 0),
        other => return Err(CloseReason::UnknownCommand(other)),
    };
    buffer.advance(1 + len);
    Ok(Some(command))
}

fn bulk(body: &[u8], limits: &Limits) -> Result<Option<Vec<Oid>>, CloseReason> {
    let Some(count) = be32(body) else { return Ok(None) };
    if count > limits.bulk_oids_max {
        return Err(CloseReason::Limit {
            name: "bulk_oids_max",
            limit: limits.bulk_oids_max.into(),
            what: format!("bulk load of {count} oids"),
        });
    }
    Ok(body[4..]
        .get(..8 * count as usize)
        .map(|oids| oids.chunks_exact(8).map(|oid| Oid(be64(oid).expect("chunk of 8"))).collect()))
}

/// After `C` was answered: takes length:4 and that many bytes; None if they are not all there yet. Empty data means
/// that the client gave up.
pub fn take_commit_data(
    buffer: &mut BytesMut,
    limits: &Limits,
) -> Result<Option<Bytes>, CloseReason> {
    let Some(len) = be32(buffer) else { return Ok(None) };
    if u64::from(len) > limits.transaction_bytes_max {
        return Err(CloseReason::Limit {
            name: "transaction_bytes_max",
            limit: limits.transaction_bytes_max,
            what: format!("commit of {len} bytes"),
        });
    }
    if buffer.len() < 4 + len as usize {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(len as usize).freeze()))
}

/// The records of a commit, as sent and in the order sent: length:4, oid:8, record, the length counting oid and
/// record. What is returned for each is the record, which begins with the oid again, and may be stored.
pub fn split_records(data: &Bytes, limits: &Limits) -> Result<Vec<(Oid, Bytes)>, CloseReason> {
    let mut records = Vec::new();
    let mut seen = RoaringTreemap::new();
    let mut at = 0;
    while at < data.len() {
        let (oid, record, next) = split_record(data, at).map_err(CloseReason::Malformed)?;
        if record.len() as u64 > limits.record_bytes_max {
            return Err(CloseReason::Limit {
                name: "record_bytes_max",
                limit: limits.record_bytes_max,
                what: format!("record of {} bytes for oid {oid}", record.len()),
            });
        }
        if records.len() == limits.objects_per_transaction_max {
            return Err(CloseReason::Limit {
                name: "objects_per_transaction_max",
                limit: limits.objects_per_transaction_max as u64,
                what: "commit of more objects".to_string(),
            });
        }
        if !seen.insert(oid.0) {
            return Err(CloseReason::Malformed(Malformed::Twice(oid)));
        }
        records.push((oid, record));
        at = next;
    }
    Ok(records)
}

/// The record whose length field is at `at`, and where the next one begins.
fn split_record(data: &Bytes, at: usize) -> Result<(Oid, Bytes, usize), Malformed> {
    let header = at + 12;
    let len = be32(&data[at..]).ok_or(Malformed::Header(at))?;
    let oid = data.get(at + 4..).and_then(be64).map(Oid).ok_or(Malformed::Header(at))?;
    let left = data.len() - at - 4;
    if len < 8 || len as usize > left {
        return Err(Malformed::Length { at, len, left });
    }
    let next = at + 4 + len as usize;
    let record = data.slice(header..next);
    shelf::check_record(oid, &record).map_err(|why| Malformed::Record { oid, why })?;
    Ok((oid, record, next))
}

/// count:4 and the oids, ascending: the answer to `S` and the first answer to `C`, but for `more` oids that follow it
/// (`oid_list`).
pub fn invalid_oids(oids: &RoaringTreemap, more: u64) -> Bytes {
    let count = u32::try_from(oids.len() + more);
    let mut answer = BytesMut::with_capacity(4 + 8 * oids.len() as usize);
    answer.put_u32(count.expect("more invalid oids than the protocol can say"));
    oids.iter().for_each(|oid| answer.put_u64(oid));
    answer.freeze()
}

/// The oids one after the other, ascending.
pub fn oid_list(oids: &RoaringTreemap) -> Bytes {
    let mut list = Vec::with_capacity(oids.len() as usize);
    list.extend(oids.iter().map(u64::to_be_bytes));
    list.into_flattened().into()
}

/// The oids one after the other: the answer to `N` and `M`.
pub fn new_oids(oids: &[Oid]) -> Bytes {
    let mut answer = BytesMut::with_capacity(8 * oids.len());
    oids.iter().for_each(|oid| answer.put_u64(oid.0));
    answer.freeze()
}

/// O and length:4, what comes before the record in the answer to a load that found something.
pub fn put_record_header(answer: &mut BytesMut, record: &[u8]) {
    let len = u32::try_from(record.len()).expect("record longer than the protocol can say");
    answer.put_u8(OKAY);
    answer.put_u32(len);
}

fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn be64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(..8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shelf::RecordError;

    fn take(bytes: &[u8]) -> (Result<Option<Command>, CloseReason>, usize) {
        let mut buffer = BytesMut::from(bytes);
        let command = take_command(&mut buffer, &Limits::default());
        (command, buffer.len())
    }

    #[test]
    fn a_command_is_taken_only_when_it_is_all_there() {
        let whole: [(&[u8], Command); 10] = [
            (b"V\0\0\0\x01", Command::Version(1)),
            (b"N", Command::NewOids(1)),
            (b"M\x20", Command::NewOids(32)),
            (b"L\0\0\0\0\0\0\0\x05", Command::Load(Oid(5))),
            (b"B\0\0\0\0", Command::Bulk(vec![])),
            (
                b"B\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02",
                Command::Bulk(vec![Oid(1), Oid(2)]),
            ),
            (b"S", Command::Sync),
            (b"C", Command::Commit),
            (b"P", Command::Pack),
            (b".", Command::Goodbye),
        ];
        for (bytes, command) in whole {
            for cut in 0..bytes.len() {
                assert_eq!(take(&bytes[..cut]), (Ok(None), cut), "{command:?} cut at {cut}");
            }
            let mut followed = bytes.to_vec();
            followed.push(b'x');
            assert_eq!(take(&followed), (Ok(Some(command)), 1));
        }
        assert_eq!(take(b"x").0, Err(CloseReason::UnknownCommand(b'x')));
    }

    #[test]
    fn absurd_lengths_are_refused_before_their_data_comes() {
        let limit = |reason| match reason {
            CloseReason::Limit { name, .. } => name,
            other => panic!("{other}"),
        };
        assert_eq!(limit(take(b"B\xff\xff\xff\xff").0.unwrap_err()), "bulk_oids_max");
        let mut buffer = BytesMut::from(&b"\xff\xff\xff\xff"[..]);
        let refused = take_commit_data(&mut buffer, &Limits::default()).unwrap_err();
        assert_eq!(limit(refused), "transaction_bytes_max");
    }

    fn sent(outer: u64, inner: u64, data_len: u32, data: &[u8], references: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(inner.to_be_bytes());
        record.extend(data_len.to_be_bytes());
        record.extend(data);
        record.extend(references);
        let mut bytes = (8 + record.len() as u32).to_be_bytes().to_vec();
        bytes.extend(outer.to_be_bytes());
        bytes.extend(record);
        bytes
    }

    fn split(bytes: &[u8]) -> Result<Vec<(Oid, Bytes)>, Malformed> {
        match split_records(&Bytes::copy_from_slice(bytes), &Limits::default()) {
            Ok(records) => Ok(records),
            Err(CloseReason::Malformed(why)) => Err(why),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn records_come_out_as_sent() {
        let mut data = sent(7, 7, 2, b"hi", &3u64.to_be_bytes());
        data.extend(sent(0, 0, 0, b"", b""));
        let records = split(&data).unwrap();
        assert_eq!(records[0].0, Oid(7));
        assert_eq!(&records[0].1[..], &data[12..12 + 22]);
        assert_eq!(shelf::refs(&records[0].1).unwrap().collect::<Vec<_>>(), [Oid(3)]);
        assert_eq!((records[1].0, records[1].1.len()), (Oid(0), 12));
        assert_eq!(shelf::refs(&records[1].1).unwrap().count(), 0);
        assert_eq!(split(b"").unwrap(), []);
    }

    #[test]
    fn what_stock_durus_would_store_as_nonsense_is_refused() {
        let good = sent(7, 7, 2, b"hi", &[0; 8]);
        for cut in 1..good.len() {
            assert!(split(&good[..cut]).is_err(), "cut at {cut}");
        }
        let why = |bytes: &[u8]| match split(bytes) {
            Err(Malformed::Record { why, .. }) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why(&sent(7, 8, 0, b"", b"")), RecordError::OtherOid(Oid(8)));
        assert_eq!(why(&sent(7, 7, 3, b"hi", b"")), RecordError::DataLength);
        assert_eq!(why(&sent(7, 7, u32::MAX, b"hi", b"")), RecordError::DataLength);
        assert_eq!(why(&sent(7, 7, 2, b"hi", b"1234")), RecordError::References);
        assert_eq!(why(&sent(u64::MAX, u64::MAX, 0, b"", b"")), RecordError::Reserved);
        assert_eq!(why(&sent(7, 7, 0, b"", &[0xff; 8])), RecordError::RefersToReserved);
        assert_eq!(split(&[good.clone(), good].concat()), Err(Malformed::Twice(Oid(7))));
        let mut short = 10u32.to_be_bytes().to_vec();
        short.extend(7u64.to_be_bytes());
        short.extend([0, 0]);
        assert_eq!(why(&short), RecordError::Short);
        let mut below = 7u32.to_be_bytes().to_vec();
        below.extend([0; 20]);
        assert!(matches!(split(&below), Err(Malformed::Length { len: 7, .. })));
    }
}
