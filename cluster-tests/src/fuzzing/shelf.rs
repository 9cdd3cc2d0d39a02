//! Files: any bytes, and good ones that were damaged or written by somebody with other ideas.
//!
//! The first byte says how the file comes about: as the bytes that follow, or by a recipe, in which the production
//! encoder chains whatever it is told to, so that what is strange is strange behind a good checksum.
//!
//! Whatever the file: nothing panics; `Shelf::open` takes it exactly if the judge finds it whole; `verify` says the same;
//! what is loaded is what the judge read; a torn or damaged tail that was cut leaves a file that opens; adopting makes a
//! whole file out of a readable one and leaves any other alone.

use packmaster::shelf::{
    Kind, MapShape, OffsetMap, Opened, PREAMBLE, SealInfo, Shelf, ShelfError, Stitch, Torn, TxMeta,
    adopt, build, parse, refs, split_transactions,
};
use packmaster::storage::mem::MemDisk;
use packmaster::tools::shelf::examine;
use packmaster::types::{Chain, CommitId, Epoch, Generation, Oid, Seq};

use super::judge::{self, Whole};
use super::machine::{disk_with, read};
use super::script::{Script, damage};
use crate::sim::parse::sha;

const NAME: &str = "file.durus";
const KEPT: &str = "kept";

/// What the first byte says: bytes as they are.
pub const AS_IS: u8 = 0;

pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    match script.byte() {
        AS_IS => check(script.rest()),
        _ => check(&cook(&mut script)),
    }
}

/// Everything that must be true of a file, whatever is in it.
pub fn check(bytes: &[u8]) {
    let judged = judge::whole(bytes);
    check_open(bytes, &judged);
    check_verify(bytes, &judged);
    check_mend(bytes);
    check_adopt(bytes, &judged);
}

fn check_open(bytes: &[u8], judged: &Result<Whole, String>) {
    let disk = disk_with(NAME, bytes);
    match (Shelf::open(&disk, NAME), judged) {
        (Ok(Opened { shelf, torn: None }), Ok(whole)) => check_contents(&disk, &shelf, whole),
        (Ok(Opened { torn: None, shelf }), Err(why)) => {
            panic!("it was opened, up to {}, and is not whole: {why}", shelf.tip())
        }
        (Ok(Opened { torn: Some(torn), .. }), Ok(_)) => panic!("it is whole, not {torn:?}"),
        (Err(error), Ok(_)) => panic!("it is whole, and was refused: {error}"),
        (Ok(Opened { torn: Some(_), .. }) | Err(_), Err(_)) => {}
    }
    assert_eq!(read(&disk, NAME), bytes, "opening writes nothing");
}

fn check_contents(disk: &MemDisk, shelf: &Shelf, whole: &Whole) {
    let tip = whole.links.last().expect("a seal");
    let found = shelf.tip();
    assert_eq!((found.epoch.0, found.seq.0), (tip.epoch, tip.seq));
    assert_eq!((found.offset, found.chain.0), (tip.end, tip.chain));
    assert_eq!(shelf.generation().0, whole.links[0].generation);
    for link in &whole.links {
        let tip = shelf.tip_at(Seq(link.seq)).expect("readable").expect("it is there");
        assert_eq!((tip.offset, tip.chain.0, tip.epoch.0), (link.end, link.chain, link.epoch));
        assert!(shelf.find(&tip).expect("readable"));
        let meta = shelf.meta_at(Seq(link.seq)).expect("readable").expect("it is there");
        assert_eq!((meta.time_us, meta.commit_id.0), (link.time_us, link.commit_id));
        if link.end != found.offset {
            let next = shelf.read_range(link.end, 1).expect("a transaction");
            parse(&next).expect("whole");
        }
    }
    let map = OffsetMap::open(&shelf.file(), whole.map).expect("readable").expect("it is whole");
    let holes = shelf.holes().expect("readable");
    assert_eq!(shelf.is_blank(), whole.objects.is_empty());
    for (oid, record) in &whole.objects {
        let loaded = shelf.load(Oid(*oid));
        if whole.map_is_right {
            let loaded = loaded.expect("readable").expect("it is there");
            assert_eq!(loaded, record, "oid {oid}");
            assert!(!holes.contains(&Oid(*oid)) && shelf.next_free() > Oid(*oid));
        }
        assert!(refs(record).is_ok());
    }
    for oid in [0, 1, 2, map.len(), map.len().wrapping_sub(1), u64::MAX, u64::MAX - 1] {
        let there = shelf.load(Oid(oid));
        if whole.map_is_right {
            assert_eq!(there.expect("readable").is_some(), whole.objects.contains_key(&oid));
        }
    }
    // Cut back as far as it goes, it is the file it was then.
    let seal = &whole.links[0];
    let Opened { mut shelf, .. } = Shelf::open(disk, NAME).expect("as before");
    shelf.cut_to(Seq(seal.seq)).expect("readable");
    assert_eq!((shelf.tip().offset, shelf.tip().chain.0), (seal.end, seal.chain));
}

fn check_verify(bytes: &[u8], judged: &Result<Whole, String>) {
    let disk = disk_with(NAME, bytes);
    let opened = Shelf::open(&disk, NAME);
    let said = examine(&disk, NAME);
    let wanted = match &opened {
        Ok(Opened { torn: None, .. }) => Ok(None),
        Ok(Opened { torn: Some(_), .. }) => Ok(Some("adopt --cut-torn")),
        Err(ShelfError::Plain { .. } | ShelfError::ForeignTail { .. }) => Ok(Some("adopt")),
        Err(error) => Err(error.to_string()),
    };
    match (said, wanted) {
        (Ok(said), Ok(None)) => assert!(said.next.is_none(), "{said:?}"),
        // A file can be both.
        (Ok(said), Ok(Some(next))) => {
            assert!(said.next.is_some_and(|verb| verb.starts_with(next)), "{said:?}: {next}");
            assert!(judged.is_err());
        }
        (Err(said), Err(error)) => assert_eq!(said.to_string(), error),
        (said, wanted) => panic!("verify says {said:?}, and open {wanted:?}"),
    }
}

/// What is torn or damaged is cut off as a node's start does it, and what is left opens.
fn check_mend(bytes: &[u8]) {
    let disk = disk_with(NAME, bytes);
    let Ok((Opened { shelf, torn }, damage)) = Shelf::open_proved(&disk, NAME) else { return };
    let tip = shelf.tip();
    assert!(damage.is_none() || torn.is_some() || tip.offset == bytes.len() as u64, "{damage:?}");
    let Some(torn) = torn else { return };
    check_tear(bytes, &torn);
    Shelf::cut_torn(&disk, NAME, &torn, KEPT).expect("a disk in memory");
    let at = torn.offset as usize;
    assert_eq!(read(&disk, NAME), bytes[..at]);
    assert_eq!(read(&disk, KEPT), bytes[at..]);
    let Opened { shelf, torn } = Shelf::open(&disk, NAME).expect("what was proved");
    assert_eq!((shelf.tip(), torn), (tip, None));
    judge::whole(&bytes[..at]).expect("what was proved");
}

fn check_tear(bytes: &[u8], torn: &Torn) {
    assert_eq!(torn.offset + torn.len, bytes.len() as u64);
    assert!(torn.len > 0);
}

fn check_adopt(bytes: &[u8], judged: &Result<Whole, String>) {
    let disk = disk_with(NAME, bytes);
    let adopted = adopt(&disk, NAME);
    let after = read(&disk, NAME);
    match adopted {
        Ok(adopted) => {
            assert!(judged.is_err(), "it had its chain already");
            assert_eq!(after[..bytes.len()], *bytes);
            let whole = judge::whole(&after).expect("adopted");
            assert!(whole.map_is_right, "stock Durus would not find the objects of the base");
            assert_eq!(adopted.tip.chain.0, whole.links[0].chain);
            check_open(&after, &Ok(whole));
        }
        Err(error) => {
            let chained = matches!(error, ShelfError::AlreadyChained { .. });
            assert_eq!(chained, judged.is_ok(), "{error}");
            assert_eq!(after, bytes, "nothing is written to what is not adopted");
        }
    }
}

// ---- recipes ----

/// A file as the script wants it.
fn cook(script: &mut Script<'_>) -> Vec<u8> {
    let mut file = base(script);
    let mut tip = State::default();
    for _ in 0..script.below(12) {
        match script.below(8) {
            0 => file.extend(plain(script)),
            1 => tip.adopt(&mut file),
            2..=5 => tip.chain(script, &mut file, false),
            6 => tip.chain(script, &mut file, true),
            _ => file.extend(script.piece()),
        }
    }
    damage(&mut file, script.piece());
    file
}

fn object(script: &mut Script<'_>) -> (u64, Vec<u8>) {
    let oid = script.number();
    let data = match script.below(8) {
        0 => PREAMBLE.to_vec(),
        _ => script.piece().to_vec(),
    };
    let mut record = oid.to_be_bytes().to_vec();
    record.extend((data.len() as u32).to_be_bytes());
    record.extend(data);
    for _ in 0..script.below(4) {
        record.extend(script.number().to_be_bytes());
    }
    (oid, record)
}

fn push(out: &mut Vec<u8>, oid: u64, record: &[u8]) {
    out.extend((8 + record.len() as u64).to_be_bytes());
    out.extend(oid.to_be_bytes());
    out.extend(record);
}

/// Base and map. The map is the right one if there can be one for such oids, or one of no slots.
fn base(script: &mut Script<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let mut offsets = std::collections::BTreeMap::new();
    for _ in 0..script.below(6) {
        let (oid, record) = object(script);
        offsets.insert(Oid(oid), 16 + records.len() as u64);
        push(&mut records, oid, &record);
    }
    let mut file = b"SHELF-1\n".to_vec();
    file.extend((records.len() as u64).to_be_bytes());
    file.extend(records);
    let start = file.len() as u64;
    let greatest = offsets.last_key_value().map(|(oid, _)| *oid).filter(|oid| oid.0 < 5000);
    let shape = MapShape::new(start, greatest).expect("a small one");
    file.extend(shape.head());
    let mut stitch = Stitch::new(shape);
    (0..shape.slots)
        .for_each(|slot| stitch.push(slot, offsets.get(&Oid(slot)).copied(), &mut file));
    file
}

fn plain(script: &mut Script<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    for _ in 0..script.below(3) {
        let (oid, record) = object(script);
        push(&mut records, oid, &record);
    }
    let mut bytes = (records.len() as u64).to_be_bytes().to_vec();
    bytes.extend(records);
    bytes
}

#[derive(Default)]
struct State {
    generation: u64,
    epoch: u64,
    seq: u64,
    time_us: u64,
    chain: Chain,
}

impl State {
    /// By the production code, if it will.
    fn adopt(&mut self, file: &mut Vec<u8>) {
        let disk = disk_with(NAME, file);
        if let Ok(adopted) = adopt(&disk, NAME) {
            *file = read(&disk, NAME);
            self.generation = adopted.generation.0;
            (self.epoch, self.seq) = (adopted.tip.epoch.0, adopted.tip.seq.0);
            self.chain = adopted.tip.chain;
        }
    }

    /// A transaction with a good chain; `odd`: every number as the script wants it.
    fn chain(&mut self, script: &mut Script<'_>, file: &mut Vec<u8>, odd: bool) {
        if odd {
            self.generation = script.number();
            self.epoch = script.number();
            self.seq = script.number();
            self.time_us = script.number();
        } else {
            self.seq = self.seq.wrapping_add(1);
            self.time_us = self.time_us.saturating_add(5);
        }
        let kind = match script.below(6) {
            0 if odd => Kind::Seal(SealInfo {
                generation: Generation(self.generation),
                cut: Seq(self.seq),
                previous_chain: self.chain,
            }),
            0 | 1 => {
                self.epoch = self.epoch.saturating_add(u64::from(!odd));
                Kind::EpochStart
            }
            _ => Kind::Commit,
        };
        let mut records = Vec::new();
        if kind == Kind::Commit {
            for _ in 0..script.below(4) {
                let (oid, record) = object(script);
                if packmaster::shelf::check_record(Oid(oid), &record).is_ok() {
                    records.push((Oid(oid), record.into()));
                }
            }
        }
        let meta = TxMeta {
            kind,
            epoch: Epoch(self.epoch),
            seq: Seq(self.seq),
            time_us: self.time_us,
            commit_id: CommitId([self.seq as u8; 16]),
        };
        let before = match kind {
            Kind::Seal(_) => Chain(sha(&[file])),
            _ => self.chain,
        };
        let built = build(&before, &meta, &records);
        assert_eq!(split_transactions(&built.bytes).count(), 1);
        self.chain = built.chain;
        file.extend(&built.bytes);
    }
}
