//! Runs without chance but for the seed of their timing: a script of steps, nothing goes wrong but one crash, at a given
//! change of one node's disk.
//!
//! Changes are counted from `Step::Arm` on. A step that waits for something waits a bounded time: after a crash it may
//! not come about as the script has it (a pack is called off, another node is master), and the script goes on. What must
//! hold then is what holds of every run: the ledger's properties all the time, and in the end liveness, equal files and
//! the judged history. Whether a script does what it is for is asserted of the run without a crash.

mod held;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use packmaster::node::core::FIRST;
use packmaster::node::prepare;
use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{Pack, PackVerb, Promote, SetPause};
use packmaster::storage::Disk;
use tempfile::NamedTempFile;

pub use held::{Held, LATE_SEAL, LOST_ELSEWHERE};

use super::{Event, World};
use crate::crash::watched::{Lies, Watched};
use crate::sim::disk::SimDisk;
use crate::sim::disk::crash::Fate;
use crate::sim::faults::Options;
use crate::sim::parse;
use crate::sim::trace::Trace;

/// More changes than any script should make on one disk.
const CHANGES_MAX: u32 = 1_000_000;
/// How long a step waits for what it waits for.
const PATIENCE_US: u64 = 25_000_000;
/// How long clients may take to come to rest; one on a node that is cut off does not.
const REST_US: u64 = 500_000;
/// Down until the script says otherwise.
const FOR_NOW_US: u64 = 1 << 40;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    Master,
    /// The lowest node that isn't master.
    Slave,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Comes first: nodes import a plain file without objects when they start, and changes count from the beginning.
    Import,
    /// From here on changes count.
    Arm,
    /// Clients, one on each node, until so many more commits were acknowledged; then they rest.
    Commits(u64),
    /// The same, and they do not rest.
    Busy(u64),
    /// They rest.
    Rest,
    CutOff(Who),
    Down(Who),
    /// Who was cut off or is down is back.
    Back,
    Pack,
    /// Until it is decided what the new generation holds.
    PackSealed,
    /// Until every node that is there is in the new generation.
    Switched,
    /// The others lose their first generation's file, and are restarted.
    ForgetFirst,
    Promote,
    /// Commands for Raft, until its log has this index.
    RaftIndex(u64),
    /// Until every Raft log was rewritten.
    Compacted,
    /// Until all files are equal.
    Equal,
    /// The master is a node that does not lead Raft.
    Apart,
    /// A client removes the last link to an object, and keeps the object.
    Unlink,
    /// The same client links the object again.
    LinkAgain,
    /// From here on such messages do not arrive.
    Hold(Held),
    /// Until a message was held back.
    SomeHeld,
    /// Messages arrive, first those that were held back.
    Release,
    /// Messages arrive, and those that were held back do not.
    Drop,
    /// Durability is `local`.
    Local,
    /// A client of a node that is not master commits; until the master's disk has it.
    CommitOnSlave,
    /// Cancels the pack, and waits until every node knows that.
    CancelPack,
    /// Until the master knows of a pack.
    Packing,
}

pub struct Script {
    pub name: &'static str,
    pub steps: &'static [Step],
    /// Sometimes-points that the run without a crash must reach.
    pub reaches: &'static [&'static str],
}

#[derive(Clone, Copy, Debug)]
pub struct CrashAt {
    pub node: usize,
    /// The crash comes before this one, counted from 0.
    pub change: u32,
    pub fate: Fate,
    pub down_us: u64,
}

/// The state of a scripted run.
#[derive(Default)]
pub(super) struct Run {
    armed: bool,
    /// By node.
    changes: Vec<u32>,
    crash: Option<CrashAt>,
    happened: bool,
    /// The crash's fate would be that of another: nothing is left to be seen.
    moot: bool,
    away: Option<usize>,
    generation: u64,
    sealed: u64,
    paused: bool,
    import: Option<NamedTempFile>,
    lying: bool,
    /// Disks that are honest until the script is armed.
    liars: Vec<Arc<Watched>>,
    holding: held::Holding,
}

/// How a scripted run went.
pub struct Scripted {
    pub violation: Option<String>,
    /// Changes of each node's disk while armed.
    pub changes: Vec<u32>,
    /// The crash came. False also if its fate could not differ from a kill's.
    pub crashed: bool,
    pub counts: std::collections::BTreeMap<&'static str, u64>,
    trace: Trace,
}

impl Scripted {
    pub fn tail(&self, lines: usize) -> String {
        self.trace.last(lines).join("\n")
    }
}

/// Runs a script. Never panics for what the cluster does.
pub fn run(script: &Script, seed: u64, crash: Option<CrashAt>) -> Scripted {
    run_on(script, seed, crash, false)
}

/// From `Arm` on no file is synced when a node says so.
pub fn run_on_disks_that_lie(script: &Script, seed: u64) -> Scripted {
    run_on(script, seed, None, true)
}

fn run_on(script: &Script, seed: u64, crash: Option<CrashAt>, lying: bool) -> Scripted {
    let trace = Trace::new(false);
    let options = Options { clients: 3, faults: false, ..Options::default() };
    let mut world = World::new(seed, &options, trace.clone());
    world.keep_generations = 1;
    // A base in a few blocks: a crash comes before every one.
    world.block_bytes = 1024;
    let changes = vec![0; options.nodes];
    world.script = Some(Run { changes, crash, lying, ..Run::default() });
    let result = catch_unwind(AssertUnwindSafe(|| world.run_script(script)));
    let violation = result.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        text.unwrap_or_else(|| "a panic without words".into())
    });
    let run = world.script.take().expect("a script");
    let crashed = run.happened && !run.moot;
    let report = world.report(seed, violation);
    let (violation, mut counts) = (report.violation, report.sometimes);
    counts.insert("commit acknowledged", report.commits);
    Scripted { violation, changes: run.changes, crashed, counts, trace }
}

impl World {
    fn script(&mut self) -> &mut Run {
        self.script.as_mut().expect("a scripted run")
    }

    fn run_script(&mut self, script: &Script) {
        if script.steps.first() == Some(&Step::Import) {
            self.script().armed = true;
            self.script().import = Some(plain_file(1));
        }
        for node in 0..self.hosts.len() {
            self.at(1000 * node as u64, Event::Start { node, down: 0 });
        }
        for client in &mut self.clients {
            client.quiet = true;
        }
        if script.steps.first() != Some(&Step::Import) {
            self.wait(|world| world.ledger.master().is_some());
        }
        for step in script.steps {
            self.trace.line(format_args!("STEP {step:?}"));
            self.step(*step);
            if self.script().moot {
                return;
            }
        }
        self.script().armed = false;
        self.come_to_rest();
        let all = (0..self.hosts.len()).all(|node| self.takes_part(node));
        assert!(all, "a node stands aside after a crash on a good disk");
    }

    /// Until `done`, or for so long as a step waits.
    fn wait(&mut self, done: impl FnMut(&mut World) -> bool) {
        self.wait_for(PATIENCE_US, done);
    }

    fn wait_for(&mut self, us: u64, mut done: impl FnMut(&mut World) -> bool) {
        let end = self.now + us;
        self.until(end, |world| world.script().moot || done(world));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Import => {}
            Step::Arm => {
                self.script().armed = true;
                self.script().liars.drain(..).for_each(|liar| liar.begin(Lies::Syncs));
            }
            Step::Commits(count) => {
                self.busy(count);
                self.rest();
            }
            Step::Busy(count) => self.busy(count),
            Step::Rest => self.rest(),
            Step::CutOff(who) => {
                let node = self.goes_away(who);
                for other in 0..self.hosts.len() {
                    self.cut((node, other), FOR_NOW_US);
                    self.cut((other, node), FOR_NOW_US);
                }
            }
            Step::Down(who) => {
                let node = self.goes_away(who);
                if self.hosts[node].process.is_some() {
                    self.dies(node, false, FOR_NOW_US);
                }
            }
            Step::Back => self.comes_back(),
            Step::Pack => {
                self.script().generation = self.generations().into_iter().max().unwrap_or(0);
                self.script().sealed = self.sometimes.get("pack sealed").copied().unwrap_or(0);
                let by = self.somebody();
                self.ask(by, Verb::Pack(Pack { verb: PackVerb::Start.into() }));
            }
            Step::PackSealed => {
                let before = self.script().sealed;
                self.wait(|world| world.sometimes.get("pack sealed").is_some_and(|n| *n > before));
            }
            Step::Switched => self.wait(|world| {
                let before = world.script().generation;
                world.generations().into_iter().all(|generation| generation > before)
            }),
            Step::ForgetFirst => self.forget_first(),
            Step::Promote => {
                let to = self.who(Who::Slave);
                let by = self.somebody();
                let node = format!("n{}", to + 1);
                self.ask(by, Verb::Promote(Promote { node, ..Promote::default() }));
                self.wait(|world| world.ledger.master() == Some(to));
            }
            Step::RaftIndex(index) => self.raft_index(index),
            Step::Compacted => {
                self.wait(|world| world.raft_rewritten() >= 2);
                if self.raft_rewritten() >= 2 {
                    self.count("raft logs compacted");
                }
            }
            Step::Equal => self.wait(World::is_equal),
            Step::Apart => self.move_apart(),
            Step::Unlink => self.unlink(),
            Step::LinkAgain => self.link_again(),
            Step::Hold(what) => self.hold_back(what),
            Step::SomeHeld => self.wait_for_held(),
            Step::Release => self.release(),
            Step::Drop => self.drop_held(),
            Step::Local => self.set_local(),
            Step::CommitOnSlave => self.commit_on_slave(),
            Step::CancelPack => self.cancel_pack(),
            Step::Packing => self.wait_for_pack(),
        }
    }

    // ---- what steps are made of ----

    /// As `node::prepare` does it before the core starts; nothing if this node begins without an import.
    pub(super) fn import(&mut self, node: usize) {
        let scripted = self.script.as_ref().and_then(|run| run.import.as_ref());
        let brings = self.brings.as_ref().filter(|(by, _)| *by == node && self.script.is_none());
        let brings = brings.filter(|_| !self.hosts[node].damaged).map(|(_, file)| file);
        let Some(source) = scripted.or(brings) else { return };
        let disk = self.hosts[node].disk.clone().expect("a disk");
        let imported = prepare::import(&*disk, source.path());
        let broken = self.hosts[node].medium.lock().is_broken();
        assert!(broken || imported.is_ok(), "node {} can't import: {imported:?}", node + 1);
    }

    /// The disk that a node is started with.
    pub(super) fn scripted_disk(&mut self, disk: Arc<SimDisk>) -> Arc<dyn Disk> {
        let Some(run) = self.script.as_mut().filter(|run| run.lying) else { return disk };
        let liar = Watched::new(disk);
        match run.armed {
            true => liar.begin(Lies::Syncs),
            false => run.liars.push(liar.clone()),
        }
        liar
    }

    fn busy(&mut self, count: u64) {
        for client in 0..self.clients.len() {
            if self.clients[client].quiet {
                self.clients[client].quiet = false;
                self.turn(client, 1000 + 100 * client as u64);
            }
        }
        let wanted = self.book.acked + count;
        self.wait(|world| world.book.acked >= wanted);
    }

    fn rest(&mut self) {
        self.clients.iter_mut().for_each(|client| client.quiet = true);
        let at_rest =
            |world: &mut World| world.clients.iter().all(|client| client.connection.is_none());
        self.wait_for(REST_US, at_rest);
    }

    fn who(&self, who: Who) -> usize {
        let master = self.ledger.master().unwrap_or(0);
        match who {
            Who::Master => master,
            Who::Slave => usize::from(master == 0),
        }
    }

    fn goes_away(&mut self, who: Who) -> usize {
        let node = self.who(who);
        self.script().away = Some(node);
        node
    }

    fn comes_back(&mut self) {
        let Some(node) = self.script().away.take() else { return };
        for other in 0..self.hosts.len() {
            self.uncut((node, other));
            self.uncut((other, node));
        }
        if self.hosts[node].process.is_none() {
            let down = self.hosts[node].downs;
            self.at(1000, Event::Start { node, down });
        }
    }

    /// A node with a process that is not away.
    fn somebody(&mut self) -> usize {
        let away = self.script().away;
        let is_there = |node: &usize| Some(*node) != away && self.hosts[*node].process.is_some();
        (0..self.hosts.len()).find(is_there).unwrap_or(0)
    }

    /// Of the nodes that are not away.
    fn generations(&mut self) -> Vec<u64> {
        let away = self.script().away;
        let there = (0..self.hosts.len()).filter(|node| Some(*node) != away);
        there
            .map(|node| self.ledger.current(node).map_or(0, |(generation, _)| generation))
            .collect()
    }

    fn forget_first(&mut self) {
        let away = self.script().away;
        for node in (0..self.hosts.len()).filter(|node| Some(*node) != away) {
            self.hosts[node].medium.lock().lose(FIRST);
            self.dies(node, false, 10_000);
        }
        self.wait_for(1_000_000, |_| false);
        self.wait(|world| world.hosts.iter().filter(|host| host.process.is_some()).count() >= 2);
    }

    fn raft_index(&mut self, index: u64) {
        let last = |world: &World| world.commands.iter().map(|(_, index)| *index).max();
        let end = self.now + 2 * PATIENCE_US;
        while last(self).unwrap_or(0) < index && self.now < end && !self.script().moot {
            let paused = !self.script().paused;
            self.script().paused = paused;
            let by = self.somebody();
            let asked = self.ask(by, Verb::SetPause(SetPause { paused }));
            // Asked for again before it is applied, it would be so already.
            self.wait_for(300_000, |world| world.askers.is_answered(asked));
        }
    }

    /// The least generation of a Raft log's first copy, as its header says it.
    fn raft_rewritten(&mut self) -> u64 {
        let of = |host: &super::Host| {
            let platter = host.medium.lock();
            let log = platter.durable_file("raft-a.log");
            log.and_then(|inode| parse::be64(inode.durable(), 8)).unwrap_or(0)
        };
        self.hosts.iter().map(of).min().unwrap_or(0)
    }

    // ---- the crash ----

    /// A fuse for what this node does next on its disk.
    pub(super) fn light_scripted_fuse(&mut self, node: usize) {
        let run = self.script();
        let mut changes = CHANGES_MAX;
        if let Some(crash) = run.crash
            && crash.node == node
            && run.armed
            && !run.happened
        {
            changes = crash.change - run.changes[node];
        }
        self.hosts[node].medium.lock().set_fuse(Some(changes));
    }

    /// Counts what the node did, and is true if it died of it.
    pub(super) fn scripted_fuse_burnt(&mut self, node: usize) -> bool {
        let medium = self.hosts[node].medium.clone();
        let left = medium.lock().fuse_left().unwrap_or(CHANGES_MAX);
        let broken = medium.lock().is_broken();
        medium.lock().set_fuse(None);
        let run = self.script();
        let lit = match run.crash {
            Some(crash) if crash.node == node && run.armed && !run.happened => {
                crash.change - run.changes[node]
            }
            _ => CHANGES_MAX,
        };
        if run.armed {
            run.changes[node] += lit - left;
        }
        if !broken {
            return false;
        }
        let crash = run.crash.expect("a fuse has a reason");
        run.happened = true;
        run.moot = !medium.lock().fates().contains(&crash.fate);
        medium.lock().crash(crash.fate);
        self.trace.line(format_args!("CRASH {crash:?}"));
        self.dies(node, false, crash.down_us);
        true
    }
}

/// No base objects, an offset map without slots, no transactions: the judges know everything that is in it.
/// A stock file without objects. `width`: of the places in its map, of which there are none: any makes a base of its own.
pub(super) fn plain_file(width: u64) -> NamedTempFile {
    let mut plain = b"SHELF-1\n".to_vec();
    for number in [0u64, 16, width, 0] {
        plain.extend(number.to_be_bytes());
    }
    let file = NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), plain).expect("a temporary file");
    file
}
