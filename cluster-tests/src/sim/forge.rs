//! One number of a message set far ahead: what a broken peer may send, or somebody who speaks in its name.
//!
//! Works on the encoded message, by a table of which fields hold messages. So every number that a peer can send is
//! covered, also of messages that are added later, as soon as their fields are in the table; what is in `bytes` (chains,
//! transactions, entries of the Raft log, snapshots) is left alone, since a chain, a hash or the Raft leader answers for it.

use packmaster::proto::control::PeerMessage;
use prost::Message as _;

use super::rng::Rng;

/// Where a number is in the bytes, and what it is.
struct Number {
    start: usize,
    end: usize,
    value: u64,
    /// Length prefixes around it, outermost first: start and end of each.
    around: Vec<(usize, usize)>,
    /// Field numbers, outermost first.
    path: Vec<u64>,
}

/// Does the field at this path hold a message?
fn is_message(path: &[u64]) -> bool {
    match path {
        // Raft's: a snapshot. (Entries are the leader's word on what is agreed, as a whole.)
        [1, inner @ ..] => matches!(inner, [] | [9]),
        // A beat: position with tip, views, a pack's progress.
        [2, inner @ ..] => matches!(inner, [] | [3] | [3, 3] | [10] | [11]),
        [4, inner @ ..] => matches!(inner, [] | [3] | [3, 3]),
        [5, inner @ ..] => matches!(inner, [] | [1] | [1, 19]),
        [20, inner @ ..] => matches!(inner, [] | [5] | [7]),
        [21, inner @ ..] => matches!(inner, [] | [5] | [7] | [10]),
        [22, inner @ ..] => matches!(inner, [] | [5] | [6]),
        [23, inner @ ..] => matches!(inner, [] | [4]),
        [24, inner @ ..] => matches!(inner, [] | [3] | [4]),
        [29, inner @ ..] => inner.is_empty(),
        [31, inner @ ..] => matches!(inner, [] | [5] | [6] | [9]),
        [32, inner @ ..] => inner.is_empty(),
        [3 | 6 | 25..=28 | 30 | 33 | 34] => true,
        _ => false,
    }
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn put_varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn collect(
    bytes: &[u8],
    (mut at, end): (usize, usize),
    around: &[(usize, usize)],
    path: &[u64],
    found: &mut Vec<Number>,
) -> Option<()> {
    while at < end {
        let tag = varint(bytes, &mut at)?;
        let path = [path, &[tag >> 3]].concat();
        match tag & 7 {
            0 => {
                let start = at;
                let value = varint(bytes, &mut at)?;
                found.push(Number { start, end: at, value, around: around.to_vec(), path });
            }
            1 => at += 8,
            5 => at += 4,
            2 => {
                let start = at;
                let len = varint(bytes, &mut at)? as usize;
                if is_message(&path) {
                    let around = [around, &[(start, at)]].concat();
                    collect(bytes, (at, at + len), &around, &path, found)?;
                }
                at += len;
            }
            _ => return None,
        }
    }
    Some(())
}

/// The message with one of its numbers set far ahead, and which: field numbers, and the value. None: it has none.
pub fn forged(message: &PeerMessage, rng: &mut Rng) -> Option<(PeerMessage, String)> {
    let bytes = message.encode_to_vec();
    let mut found = Vec::new();
    collect(&bytes, (0, bytes.len()), &[], &[], &mut found)?;
    // Not a flag, a small enumeration's value, or which kind of Raft message this is, most of the time.
    let chosen = found.get(rng.index(found.len()))?;
    let far = match rng.below(5) {
        0 => (1 << 62) - 1 - rng.below(3),
        1 => (1 << 63) - 1 + rng.below(3),
        2 => u64::MAX - rng.below(3),
        _ => chosen.value.saturating_add(1 << 21),
    };
    let replaced = put_varint(far);
    let mut out = bytes.clone();
    out.splice(chosen.start..chosen.end, replaced.iter().copied());
    let mut grown = replaced.len() as isize - (chosen.end - chosen.start) as isize;
    for (start, end) in chosen.around.iter().rev() {
        let mut at = *start;
        let len = varint(&bytes, &mut at)? as isize + grown;
        let prefix = put_varint(len as u64);
        grown += prefix.len() as isize - (end - start) as isize;
        out.splice(start..end, prefix);
    }
    let message = PeerMessage::decode(&out[..]).ok()?;
    Some((message, format!("{:?} = {far}", chosen.path)))
}

#[cfg(test)]
mod tests {
    use packmaster::proto::control::peer_message::Kind;
    use packmaster::proto::control::{Beat, PeerView, RaftMessage};

    use super::*;

    #[test]
    fn one_number_is_changed_and_nothing_else() {
        let view = PeerView { node: 3, promised: 7, ..PeerView::default() };
        let text = "x".repeat(120);
        let beat = Beat { promised: 9, views: vec![view], state: text, ..Beat::default() };
        let beat = PeerMessage { kind: Some(Kind::Beat(Box::new(beat))) };
        let raft = RaftMessage { term: 5, to: 1, from: 2, msg_type: 8, ..RaftMessage::default() };
        let raft = PeerMessage { kind: Some(Kind::Raft(raft)) };
        let mut rng = Rng::new(1);
        let (mut views, mut terms) = (0, 0);
        for _ in 0..200 {
            let (message, _) = forged(&beat, &mut rng).unwrap();
            let Some(Kind::Beat(found)) = message.kind else { panic!("another kind") };
            assert_eq!(found.state.len(), 120);
            views += u32::from(found.views[0].promised > 1 << 20 && found.promised == 9);
            let (message, _) = forged(&raft, &mut rng).unwrap();
            let Some(Kind::Raft(found)) = message.kind else { panic!("another kind") };
            terms += u32::from(found.term > 1 << 20);
        }
        assert!(views > 10 && terms > 10);
    }
}
