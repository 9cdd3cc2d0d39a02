//! What a run has to tell.

use std::collections::BTreeSet;

use super::World;
use crate::sim::{Counts, Report};

/// Rare branches of the nodes, by the beginning of what they say when they take them.
const SAID: [(&str, &str); 43] = [
    ("torn tail cut", "the file ends inside its last transaction"),
    ("orphan made", "cut back to the common point"),
    ("local rebuild", "rebasing: building the generation from our own file"),
    ("tail fetch", "rebasing: fetching what our generation lacks"),
    ("base fetch", "rebasing: fetching the base"),
    ("fetch resumed after a crash", "fetch: goes on where an earlier process was"),
    ("fetch resumed", "fetch: goes on where it was"),
    ("bad block refused", "fetch: a peer sent a bad block"),
    ("block asked of another peer", "fetch: a block is asked of another peer"),
    ("bad block list refused", "fetch: a peer's list of blocks"),
    ("unfinished base removed", "an unfinished base that nobody wants"),
    ("rebased", "rebased"),
    ("no peer had the base", "rebase: tried every peer"),
    ("floor fetched by the elected", "fetching what the election's greatest position has"),
    ("pack marked", "pack: marked"),
    ("commits held to hand over", "pack: commits are held, to hand over"),
    ("pack called off by an election", "pack: an election called it off"),
    ("pack called off by the master", "pack: called off"),
    ("pack could not be built", "pack: this node can't build"),
    ("another base than agreed noticed", "pack: this node built another base"),
    ("wrong base outvoted", "pack: two equal bases have outvoted the first"),
    ("node's base outvoted", "pack: this node's base was outvoted"),
    ("another base noticed by a rebase", "rebase: our build differs"),
    ("pack due and waiting", "a pack is due and can't begin"),
    ("pack's leftovers removed", "removing what a pack has left"),
    ("older generation removed", "removing older generations"),
    ("flipped to a new generation", "changed to a new generation"),
    ("master opened", "open: serving as master"),
    ("master fenced", "no longer master"),
    ("raft log copy mended", "the Raft log was mended"),
    ("damaged range repair", "the file is damaged: what is proved"),
    ("damaged base repair", "the file's base is damaged"),
    ("recovered", "recovered: this node votes"),
    ("amnesia noticed", "this node has forgotten what it promised"),
    ("lost memory noticed at a start", "this node's disk has lost its memory"),
    ("lost data file noticed at a start", "the data file is gone"),
    ("number not believed", "a peer sends what can't be true"),
    ("raft amnesia noticed", "this node has forgotten what it acknowledged;"),
    ("strange disk not believed", "a node comes with another disk"),
    ("no pack now", "no pack now"),
    (
        "clients held for what a majority may lack",
        "mastership ended with transactions that were acknowledged",
    ),
    ("clients of what was lost disconnected", "transactions that were acknowledged here are lost"),
    ("older generation could not be opened", "an older generation can't be served"),
];

impl World {
    pub fn report(mut self, seed: u64, violation: Option<String>) -> Report {
        for (what, start) in SAID {
            self.sometimes.insert(what, self.trace.said(start));
        }
        let heard = std::mem::take(&mut self.ledger.sometimes);
        for (what, count) in heard {
            *self.sometimes.entry(what).or_default() += count;
        }
        let book = &self.book;
        let clients = [
            ("commit refused", book.refused),
            ("commit in doubt", book.unknown),
            ("commit given up by its client", book.aborted),
            ("load of an invalid object", book.invalid_loads),
            ("load of a missing object", book.missing_loads),
        ];
        self.sometimes.extend(clients);
        self.sometimes.retain(|_, count| *count > 0);
        let commits = self.book.acked;
        let elections: BTreeSet<u64> = self.elections.iter().map(|(epoch, _)| *epoch).collect();
        let packs = self.sometimes.get("generation switch").copied().unwrap_or(0);
        Report {
            seed,
            violation,
            hash: self.trace.hash(),
            faults: std::mem::take(&mut self.faults),
            sometimes: std::mem::take(&mut self.sometimes),
            commits,
            elections: elections.len() as u64,
            packs,
            simulated_ms: self.now / 1000,
            events: self.events,
            trace: self.trace,
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.sometimes.entry(what).or_default() += 1;
    }

    pub(super) fn add(counts: &mut Counts, what: &'static str, count: u64) {
        *counts.entry(what).or_default() += count;
    }
}
