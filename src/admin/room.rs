//! How much room on its disk a node needs for a pack, and what a pack would give back.
//!
//! One measure for the preflight of a pack, for the node that is about to build, and for status, so that none of them
//! calls too little what another calls enough.

use super::render;
use crate::proto::control::Beat;

/// With less free than this a node hands over its mastership while there is room for what is under way.
pub const FREE_BYTES_MIN: u64 = 16 << 20;

/// Free bytes that the building of a new base needs, beside the present file: what of it is no garbage, a quarter more
/// for what comes meanwhile (and since garbage is an estimate), and what must be left over in any case.
pub fn for_pack(file_bytes: u64, garbage_bytes: u64) -> u64 {
    let live = file_bytes.saturating_sub(garbage_bytes);
    live.saturating_add(live / 4).saturating_add(FREE_BYTES_MIN)
}

/// The same when it is known how long the base is.
pub fn for_base(base_bytes: u64) -> u64 {
    for_pack(base_bytes, 0)
}

/// How much of a file is garbage.
pub fn garbage_percent(file_bytes: u64, garbage_bytes: u64) -> u64 {
    garbage_bytes.min(file_bytes).saturating_mul(100) / file_bytes.max(1)
}

/// Has this node room for a pack? The error is the end of the sentence "n2 ...", with the remedy.
pub fn check(beat: &Beat) -> Result<(), String> {
    let needed = for_pack(beat.file_bytes, beat.garbage_bytes);
    enough(beat.free_bytes, needed)
}

pub fn enough(free_bytes: u64, needed_bytes: u64) -> Result<(), String> {
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    let (free, needed) = (render::bytes(free_bytes), render::bytes(needed_bytes));
    Err(format!("has {free} free and needs {needed} for a pack: make room on its disk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_garbage_needs_no_room() {
        assert_eq!(for_pack(400 << 20, 200 << 20), (250 << 20) + FREE_BYTES_MIN);
        assert_eq!(for_pack(100, 200), FREE_BYTES_MIN, "an estimate may be too high");
        let beat = |free_bytes, garbage_bytes| Beat {
            file_bytes: 400 << 20,
            free_bytes,
            garbage_bytes,
            ..Beat::default()
        };
        assert_eq!(check(&beat(300 << 20, 200 << 20)), Ok(()));
        let why = check(&beat(300 << 20, 0)).unwrap_err();
        assert_eq!(why, "has 300.0 MiB free and needs 516.0 MiB for a pack: make room on its disk");
    }
}
