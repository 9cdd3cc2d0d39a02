//! Files that are not the current one: older generations, kept as `admin::keep` says, and what is left of packs that
//! came to nothing.
//!
//! What there is is read from the directory, so that a crash or a pack that was called off leaves nothing behind that
//! is not found: it shows by a generation that is not there yet, or by another base than was agreed for one that is.
//! None of that is removed while it may become of use: while there is a pack or a rebase.

use std::cmp::Ordering;

use super::disk::Purpose;
use super::packing::file_name;
use super::start::FIRST;
use super::{Action, Core};
use crate::admin::keep::{Old, Rules, why_kept};
use crate::proto::control::OldFile;
use crate::replication::wire;
use crate::storage::task::DiskTask;
use crate::types::{Chain, Generation, Now};

/// The directory is looked through so often, and after every change of generation.
const LOOK_EVERY_MS: u64 = 5000;
/// What every base is called while it is built begins so.
const BUILDING: &str = "building";

/// Where this job builds a base before it has a name. Its own, so that a job that was called off can't get into the
/// way of the next.
pub(super) fn building_name(job: u64) -> String {
    format!("{BUILDING}-{job}.durus")
}

pub(super) fn is_building(name: &str) -> bool {
    name.starts_with(BUILDING)
}

/// Of "g00000012.durus" and "g00000012-89abcdef.durus".
fn generation_of(name: &str) -> Option<Generation> {
    let digits = name.strip_prefix('g')?.strip_suffix(".durus")?;
    let digits = digits.split('-').next().filter(|digits| digits.len() >= 8)?;
    digits.parse().ok().map(Generation)
}

/// Has a pack left this that was called off? A pack makes no first generation, and what is not known to have been agreed is
/// nobody's to judge.
fn is_left(
    name: &str,
    current: (Generation, &str),
    agreed: impl Fn(Generation) -> Option<Chain>,
) -> bool {
    let Some(generation) = generation_of(name) else { return is_building(name) };
    match generation.cmp(&current.0) {
        Ordering::Greater => true,
        _ if generation == Generation(1) => false,
        Ordering::Equal => name != current.1,
        Ordering::Less => {
            agreed(generation).is_some_and(|base| name != file_name(generation, base))
        }
    }
}

/// The file of this base among these; the first generation's has any name that begins as it does.
pub(super) fn file_of_base(
    names: &[String],
    generation: Generation,
    base_hash: &[u8],
) -> Option<String> {
    let base = wire::chain("base hash", base_hash).ok()?;
    let exact = file_name(generation, base);
    let named = |wanted: &str| names.iter().find(|name| *name == wanted);
    let first =
        || named(FIRST).or_else(|| names.iter().find(|it| generation_of(it) == Some(generation)));
    let found = named(&exact).or_else(|| if generation == Generation(1) { first() } else { None });
    found.cloned()
}

#[derive(Default)]
pub(super) struct OldFiles {
    looked: Option<Now>,
    files: Vec<Known>,
}

struct Known {
    name: String,
    generation: Generation,
    bytes: u64,
}

impl OldFiles {
    pub(super) fn look_soon(&mut self) {
        self.looked = None;
    }

    /// For our beat.
    pub(super) fn told(&self) -> Vec<OldFile> {
        let told = |file: &Known| OldFile { generation: file.generation.0, bytes: file.bytes };
        self.files.iter().map(told).collect()
    }
}

impl Core {
    pub(super) fn drive_generations(&mut self, out: &mut Vec<Action>) {
        let due = self.old_files.looked.is_none_or(|at| self.now.since_ms(at) >= LOOK_EVERY_MS);
        let settled = self.is_current_file()
            && self.suspect.is_empty()
            && self.recovering.is_none()
            && self.rebase.is_none()
            && self.pull.is_none();
        if !due || !settled {
            return;
        }
        self.old_files.looked = Some(self.now);
        // A disk that does not answer is noticed elsewhere.
        let Ok(mut names) = self.setup.disk.list() else { return };
        if self.control.pack().is_none() && self.next.is_none() {
            self.remove_leftovers(&mut names, out);
        }
        self.look_at_old(&names);
        self.remove_old(out);
    }

    /// Of packs that were called off, perhaps while this node was not there. `names` is without them afterwards.
    fn remove_leftovers(&mut self, names: &mut Vec<String>, out: &mut Vec<Action>) {
        let current = (self.shelf.generation(), self.shelf.name());
        let agreed = |of| self.control.generation_record(of).map(|record| record.base_hash);
        let left: Vec<String> =
            names.extract_if(.., |name| is_left(name, current, agreed)).collect();
        if !left.is_empty() {
            self.old.retain(|_, shelf| !left.iter().any(|name| name == shelf.name()));
            slog::info!(self.log, "removing what a pack has left"; "files" => left.join(" "));
            self.remove(left, out);
        }
    }

    fn look_at_old(&mut self, names: &[String]) {
        let current = self.shelf.generation();
        let before = std::mem::take(&mut self.old_files.files);
        for name in names {
            let Some(generation) = generation_of(name).filter(|it| *it < current) else { continue };
            // It does not change any more.
            let known = before.iter().find(|file| file.name == *name).map(|file| file.bytes);
            let measured = || self.setup.disk.open(name).and_then(|file| file.len()).unwrap_or(0);
            let bytes = known.unwrap_or_else(measured);
            self.old_files.files.push(Known { name: name.clone(), generation, bytes });
        }
        self.old_files.files.sort_by_key(|file| file.generation);
    }

    fn remove_old(&mut self, out: &mut Vec<Action>) {
        let others = self.control.members().filter(|member| member.id != self.setup.id);
        let members: Vec<(String, Option<u64>)> = others
            .map(|member| {
                let beat = self.health.beat(member.id);
                let position = beat.and_then(|beat| beat.position.as_ref());
                (member.name.clone(), position.map(|position| position.generation))
            })
            .collect();
        let since = self.control.generations().map(|it| (it.number.0, it.since_wall_us)).collect();
        let rules = Rules {
            settings: &self.settings,
            keep_generations: u64::from(self.setup.keep_generations),
            members: &members,
            since_wall_us: &since,
            now_wall_us: self.now.wall_us,
        };
        let old: Vec<Old> = self
            .old_files
            .files
            .iter()
            .map(|file| Old { generation: file.generation.0, bytes: file.bytes })
            .collect();
        let mut kept = why_kept(&old, &rules).into_iter();
        let files = std::mem::take(&mut self.old_files.files);
        let (keep, gone): (Vec<Known>, Vec<Known>) =
            files.into_iter().partition(|_| kept.next().flatten().is_some());
        self.old_files.files = keep;
        if gone.is_empty() {
            return;
        }
        for file in &gone {
            self.old.remove(&file.generation);
        }
        let oldest =
            self.old_files.files.first().map_or(self.shelf.generation(), |old| old.generation);
        self.drop_lists_below(oldest);
        let names: Vec<String> = gone.into_iter().map(|file| file.name).collect();
        slog::info!(self.log, "removing older generations that nothing keeps"; "files" => names.join(" "));
        self.remove(names, out);
    }

    pub(super) fn remove(&mut self, names: Vec<String>, out: &mut Vec<Action>) {
        self.disk(Purpose::Housekeeping, DiskTask::Remove { names }, out);
    }
}

#[cfg(test)]
#[path = "generations_tests.rs"]
mod tests;
