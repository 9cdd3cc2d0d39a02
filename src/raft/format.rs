//! The bytes of the Raft log's files, and what two damaged copies still say together.
//!
//! All numbers are big-endian. A file is a header and records, without gaps:
//!
//! ```text
//! header  = "PMRAFT1\n"  generation:u64  crc:u32 (of the 16 bytes before it)
//! record  = length:u32 (of the payload)  generation:u64  seq:u64  payload-crc:u32
//!           header-crc:u32 (of the 24 bytes before it)  payload (prost RaftRecord)
//! ```
//!
//! CRCs are CRC32C. The generation is the file's and grows with each rewrite; seq grows by one from record to record
//! and runs on across rewrites. The first record of a file holds the whole log as of the rewrite, and the file got its
//! name only when that was durable: a file without a good first record is damaged, not new.
//!
//! The two files of a generation are the same bytes at the same offsets. A record goes to copy a, is made durable
//! there, then to copy b, is made durable there, and is only then acknowledged. So at the end of the log:
//!
//! | copy a | copy b | |
//! | --- | --- | --- |
//! | good | anything | the record counts; b is repaired |
//! | anything | good | the record counts; a is repaired |
//! | incomplete, bad or absent | incomplete or absent | torn: was never acknowledged, dropped |
//! | anything but good | there in full length, but bad | corruption: b was begun after a was durable |
//!
//! and a good record after one that is good in no copy is corruption too. The header has a CRC of its own so that a
//! damaged length is not taken for a record that the file is too short for.

const MAGIC: &[u8; 8] = b"PMRAFT1\n";
/// Bytes of the file header.
pub const FILE_HEADER: usize = 20;
/// Bytes of a record before its payload.
pub const RECORD_HEADER: usize = 28;

/// Where the log cannot be read in either copy.
#[derive(Debug, PartialEq, Eq)]
pub struct Damage {
    /// Byte offset in both files.
    pub offset: u64,
    pub why: &'static str,
}

pub fn file_header(generation: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(generation.to_be_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_be_bytes());
    bytes
}

/// The generation that a file's header states; None if there is no whole, good header.
pub fn generation_of(file: &[u8]) -> Option<u64> {
    let header = file.get(..FILE_HEADER)?;
    let (covered, crc) = header.split_at(16);
    let good = covered.starts_with(MAGIC) && crc32c::crc32c(covered) == u32_at(crc, 0);
    good.then(|| u64_at(covered, 8))
}

/// A payload is at most 4 GiB - 1; records are far smaller.
pub fn encode_record(generation: u64, seq: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a record of the Raft log is below 4 GiB");
    let mut bytes = Vec::with_capacity(RECORD_HEADER + payload.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(generation.to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.extend(crc32c::crc32c(payload).to_be_bytes());
    let crc = crc32c::crc32c(&bytes);
    bytes.extend(crc.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What one copy has at an offset.
enum At<'a> {
    Good {
        seq: u64,
        payload: &'a [u8],
        end: usize,
    },
    /// The file ends here, or before.
    Absent,
    /// The file ends inside the record.
    Incomplete,
    Bad,
}

fn record_at(file: &[u8], offset: usize, generation: u64) -> At<'_> {
    let rest = file.get(offset..).unwrap_or_default();
    if rest.is_empty() {
        return At::Absent;
    }
    let Some((header, rest)) = rest.split_at_checked(RECORD_HEADER) else {
        return At::Incomplete;
    };
    if crc32c::crc32c(&header[..24]) != u32_at(header, 24) || u64_at(header, 4) != generation {
        return At::Bad;
    }
    let length = u32_at(header, 0) as usize;
    let Some(payload) = rest.get(..length) else {
        return At::Incomplete;
    };
    if crc32c::crc32c(payload) != u32_at(header, 20) {
        return At::Bad;
    }
    At::Good { seq: u64_at(header, 12), payload, end: offset + RECORD_HEADER + length }
}

/// What both copies of one generation say together.
#[derive(Debug, PartialEq, Eq)]
pub struct Contents<'a> {
    /// In order; never empty.
    pub payloads: Vec<&'a [u8]>,
    /// Seq of the last record.
    pub last_seq: u64,
    /// Offset after the last record.
    pub end: usize,
    /// Each file is exactly that: no damage, no torn tail.
    pub whole: bool,
}

/// Reads both copies in step, taking each record from the copy that has it. A missing copy is an empty slice.
pub fn read_copies<'a>(a: &'a [u8], b: &'a [u8], generation: u64) -> Result<Contents<'a>, Damage> {
    let mut contents =
        Contents { payloads: Vec::new(), last_seq: 0, end: FILE_HEADER, whole: true };
    contents.whole = [a, b].iter().all(|file| generation_of(file) == Some(generation));
    loop {
        let wanted = |seq| {
            let next = contents.last_seq.checked_add(1);
            contents.payloads.is_empty() || Some(seq) == next
        };
        let pair = [a, b].map(|file| match record_at(file, contents.end, generation) {
            At::Good { seq, .. } if !wanted(seq) => At::Bad,
            at => at,
        });
        contents.whole &=
            matches!(pair, [At::Good { .. }, At::Good { .. }] | [At::Absent, At::Absent]);
        match pair {
            [At::Good { seq, payload, end }, _] | [_, At::Good { seq, payload, end }] => {
                contents.payloads.push(payload);
                (contents.last_seq, contents.end) = (seq, end);
            }
            [_, At::Bad] => return Err(damage(&contents, "both copies are bad here")),
            [_, _] => break,
        }
    }
    if contents.payloads.is_empty() {
        return Err(damage(&contents, "the first record is gone from both copies"));
    }
    if [a, b].iter().any(|file| good_after(file, &contents, generation)) {
        return Err(damage(&contents, "bad in both copies, and good records follow"));
    }
    Ok(contents)
}

fn damage(contents: &Contents<'_>, why: &'static str) -> Damage {
    Damage { offset: contents.end as u64, why }
}

/// Is there a later record behind the end? Its offset is unknown where a length is damaged, so every one is tried.
fn good_after(file: &[u8], contents: &Contents<'_>, generation: u64) -> bool {
    (contents.end + 1..file.len()).any(|offset| match record_at(file, offset, generation) {
        At::Good { seq, .. } => seq > contents.last_seq,
        At::Absent | At::Incomplete | At::Bad => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bytes() {
        assert_eq!(file_header(3), b"PMRAFT1\n\0\0\0\0\0\0\0\x03\x7b\xb0\x47\x3e");
        let record = encode_record(3, 7, b"abc");
        assert_eq!(record[..4], [0, 0, 0, 3]);
        assert_eq!(record[4..12], 3u64.to_be_bytes());
        assert_eq!(record[12..20], 7u64.to_be_bytes());
        assert_eq!(record[20..24], 0x364b_3fb7_u32.to_be_bytes(), "CRC32C of abc");
        assert_eq!(record[28..], *b"abc");
    }

    fn file(records: &[(u64, &[u8])]) -> Vec<u8> {
        let mut bytes = file_header(1);
        for (seq, payload) in records {
            bytes.extend(encode_record(1, *seq, payload));
        }
        bytes
    }

    #[test]
    fn a_repeated_or_missing_record_is_no_log() {
        let repeated = file(&[(4, b"a"), (5, b"b"), (5, b"c")]);
        let why = read_copies(&repeated, &repeated, 1).unwrap_err().why;
        assert_eq!(why, "both copies are bad here");
        let good = file(&[(4, b"a"), (5, b"b"), (6, b"c")]);
        let read = read_copies(&repeated, &good, 1).unwrap();
        assert_eq!(read.payloads, [b"a", b"b", b"c"]);
        assert!(!read.whole);
    }

    #[test]
    fn a_bad_record_before_a_good_one_is_corruption_though_the_other_copy_is_short() {
        let mut a = file(&[(1, b"one"), (2, b"two"), (3, b"three")]);
        let b = file(&[(1, b"one")]);
        a[b.len()] ^= 1;
        let damage = read_copies(&a, &b, 1).unwrap_err();
        assert_eq!(damage.offset, b.len() as u64);
        // the same without a successor is what a crash leaves
        a.truncate(b.len() + RECORD_HEADER + 3);
        assert_eq!(read_copies(&a, &b, 1).unwrap().payloads, [b"one"]);
    }
}
