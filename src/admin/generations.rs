//! Which generations each node has on its disk, and why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::keep::{Old, Rules, why_kept};
use super::view::ClusterView;
use super::{hex, rfc3339};
use crate::control::Settings;
use crate::proto::control::{Beat, Member};
use crate::types::NodeId;

/// `ctl generations --output json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generations {
    /// Of this layout: 1.
    pub version: u32,
    pub cluster: String,
    pub nodes: Vec<NodeGenerations>,
    /// Members that are not in the current generation, or not heard of: what they need is kept on the others.
    pub held_back_by: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeGenerations {
    pub name: String,
    /// False: this is what it last said.
    pub answering: bool,
    /// Oldest first; the last is the one it serves.
    pub generations: Vec<Kept>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub number: u64,
    /// 40 hex digits; `null`: older than what the cluster remembers.
    pub base_hash: Option<String>,
    /// The transaction at which the base was taken.
    pub cut_seq: Option<u64>,
    /// RFC 3339.
    pub since: Option<String>,
    pub bytes: u64,
    /// `current`, or why it is kept; `about to be removed` for a moment.
    pub why: String,
}

/// What is kept on the answering nodes for members that are behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldBack {
    /// Who has not moved on.
    pub by: Vec<String>,
    /// On the node that has most of it.
    pub generations: u64,
    pub bytes: u64,
}

pub fn generations(view: &ClusterView) -> Generations {
    let node = |member: &Member| NodeGenerations {
        name: member.name.clone(),
        answering: view.fresh_beat(NodeId(member.id)).is_some(),
        generations: view
            .beat(NodeId(member.id))
            .map_or(Vec::new(), |beat| held(view, member, beat)),
    };
    Generations {
        version: 1,
        cluster: view.cluster.clone(),
        nodes: view.state.members.iter().map(node).collect(),
        held_back_by: behind(view),
    }
}

/// None if nothing is kept for anybody's sake that would go otherwise.
pub fn held_back(view: &ClusterView) -> Option<HeldBack> {
    let needed = |member: &Member| {
        let beat = view.fresh_beat(NodeId(member.id))?;
        let settings = Settings::from_texts(&view.state.settings);
        let everybody_moved: Vec<(String, Option<u64>)> = Vec::new();
        let free = why(view, beat, &settings, &everybody_moved);
        let held = why(view, beat, &settings, &others(view, member));
        let only_needed = old(beat).into_iter().zip(held.iter().zip(free));
        let bytes: Vec<u64> = only_needed
            .filter(|(_, (held, free))| held.is_some() && free.is_none())
            .map(|(file, _)| file.bytes)
            .collect();
        Some((bytes.iter().sum::<u64>(), bytes.len() as u64))
    };
    let by = behind(view);
    let (bytes, generations) = view.state.members.iter().filter_map(needed).max()?;
    (generations > 0 && !by.is_empty()).then_some(HeldBack { by, generations, bytes })
}

/// Members that are not in the current generation, as far as is known here.
fn behind(view: &ClusterView) -> Vec<String> {
    let current = view.state.generations.last().map_or(0, |it| it.number);
    let is_behind = |member: &&Member| generation_of(view, member).is_none_or(|it| it < current);
    let members = view.state.members.iter().filter(is_behind);
    members.map(|member| member.name.clone()).collect()
}

fn generation_of(view: &ClusterView, member: &Member) -> Option<u64> {
    view.beat(NodeId(member.id))?.position.as_ref().map(|position| position.generation)
}

fn others(view: &ClusterView, member: &Member) -> Vec<(String, Option<u64>)> {
    let others = view.state.members.iter().filter(|other| other.id != member.id);
    others.map(|other| (other.name.clone(), generation_of(view, other))).collect()
}

fn old(beat: &Beat) -> Vec<Old> {
    let files = beat.old_files.iter();
    files.map(|file| Old { generation: file.generation, bytes: file.bytes }).collect()
}

fn why(
    view: &ClusterView,
    beat: &Beat,
    settings: &Settings,
    members: &[(String, Option<u64>)],
) -> Vec<Option<super::keep::Why>> {
    let since: BTreeMap<u64, u64> =
        view.state.generations.iter().map(|it| (it.number, it.since_wall_us)).collect();
    let rules = Rules {
        settings,
        keep_generations: beat.keep_generations,
        members,
        since_wall_us: &since,
        now_wall_us: view.now_wall_us,
    };
    why_kept(&old(beat), &rules)
}

fn held(view: &ClusterView, member: &Member, beat: &Beat) -> Vec<Kept> {
    let settings = Settings::from_texts(&view.state.settings);
    let why = why(view, beat, &settings, &others(view, member));
    let texts = why.into_iter().map(|why| why.map(|why| why.text()));
    let mut files: Vec<Kept> = old(beat)
        .into_iter()
        .zip(texts)
        .map(|(file, why)| {
            kept(view, file.generation, file.bytes, why.unwrap_or("about to be removed".to_owned()))
        })
        .collect();
    if let Some(position) = &beat.position {
        files.push(kept(view, position.generation, beat.file_bytes, "current".to_owned()));
    }
    files
}

fn kept(view: &ClusterView, number: u64, bytes: u64, why: String) -> Kept {
    let record = view.state.generations.iter().find(|record| record.number == number);
    Kept {
        number,
        base_hash: record.map(|record| hex(&record.base_hash)),
        cut_seq: record.map(|record| record.cut_seq),
        since: record.and_then(|record| rfc3339(record.since_wall_us)),
        bytes,
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::Heard;
    use crate::proto::control::{GenerationRecord, OldFile};
    use crate::proto::replication::Position;

    /// Three nodes in generation 3, each with the files of 1 and 2.
    fn view() -> ClusterView {
        let mut view = ClusterView { own: NodeId(1), silence_ms: 500, ..Default::default() };
        let old = |generation| OldFile { generation, bytes: 100 * generation };
        for id in 1..=3 {
            let position = Position { generation: 3, ..Default::default() };
            let beat = Beat {
                position: Some(position),
                file_bytes: 300,
                old_files: vec![old(1), old(2)],
                keep_generations: 1,
                ..Default::default()
            };
            view.heard.insert(NodeId(id), Heard { beat, age_ms: 5 });
            let name = format!("n{id}");
            view.state.members.push(Member { id, name, ..Default::default() });
            let record = GenerationRecord { number: id, cut_seq: 10 * id, ..Default::default() };
            view.state.generations.push(record);
        }
        view
    }

    #[test]
    fn each_node_tells_what_it_has_and_why() {
        let told = generations(&view());
        let of = &told.nodes[1].generations;
        let why: Vec<&str> = of.iter().map(|kept| kept.why.as_str()).collect();
        assert_eq!(why, ["about to be removed", "by number (keep.generations)", "current"]);
        assert_eq!((of[1].number, of[1].bytes, of[1].cut_seq), (2, 200, Some(20)));
        assert!(told.held_back_by.is_empty() && held_back(&view()).is_none());
    }

    #[test]
    fn who_holds_them_back_is_named() {
        let mut late = view();
        let beat = &mut late.heard.get_mut(&NodeId(3)).unwrap().beat;
        beat.position.as_mut().unwrap().generation = 1;
        let told = generations(&late);
        assert_eq!(told.nodes[0].generations[0].why, "needed by n3");
        assert_eq!(told.held_back_by, ["n3"]);
        // One of the two would be kept anyway.
        let by = vec!["n3".to_owned()];
        assert_eq!(held_back(&late), Some(HeldBack { by, generations: 1, bytes: 100 }));
        late.heard.remove(&NodeId(3));
        assert_eq!(generations(&late).nodes[2].generations, []);
        assert_eq!(held_back(&late).unwrap().by, ["n3"], "never heard of: it may need everything");
    }
}
