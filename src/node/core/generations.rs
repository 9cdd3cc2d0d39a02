//! Files that are not the current one: older generations, kept as `admin::keep` says, and what is left of packs that
//! came to nothing.
//!
//! What there is is read from the directory, so that a crash or a pack that was called off leaves nothing behind that
//! is not found. Nothing newer than the current generation is removed while it may become of use: while there is a pack
//! or a rebase.

use super::disk::Purpose;
use super::{Action, Core};
use crate::admin::keep::{Old, Rules, why_kept};
use crate::proto::control::OldFile;
use crate::storage::task::DiskTask;
use crate::types::{Generation, Now};

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
        let Ok(names) = self.setup.disk.list() else { return };
        if self.control.pack().is_none() && self.next.is_none() {
            self.remove_leftovers(&names, out);
        }
        self.look_at_old(&names);
        self.remove_old(out);
    }

    /// Of packs that were called off, perhaps while this node was not there.
    fn remove_leftovers(&mut self, names: &[String], out: &mut Vec<Action>) {
        let current = self.shelf.generation();
        let is_left = |name: &&String| {
            is_building(name) || generation_of(name).is_some_and(|it| it > current)
        };
        let left: Vec<String> = names.iter().filter(is_left).cloned().collect();
        if !left.is_empty() {
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
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_generation() {
        assert_eq!(generation_of("g00000001.durus"), Some(Generation(1)));
        assert_eq!(generation_of("g00000012-89abcdef.durus"), Some(Generation(12)));
        assert_eq!(generation_of("g123456789.durus"), Some(Generation(123_456_789)));
        for other in ["garbage.durus", "g1.durus", "g00000001", "orphans/g00000001-torn-at-5-9"] {
            assert_eq!(generation_of(other), None, "{other}");
        }
        assert!(is_building(&building_name(7)) && !is_building("g00000007.durus"));
    }
}
