//! Rules that a test can break on purpose.
//!
//! A checker that has never found anything may be unable to. So every rule that keeps acknowledged data has a switch at
//! the place where the code keeps it: `if mutants::broken(Mutant::X)`. With the switch on, the simulator must find a
//! violation (`cluster-tests/tests/mutants.rs`).
//!
//! A switch is on only inside `with`, for the calling thread, in a build with the feature `mutants` and with debug
//! assertions. There is no flag, no setting and no environment variable: a real process can't break a rule. In every
//! other build `broken` is a constant, and this module does not compile if it is not false.

macro_rules! mutants {
    ($($name:ident: $rule:literal, $source:literal;)*) => {
        /// One broken rule each.
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $(
                #[doc = concat!("Broken: ", $rule, ". ", $source, ".")]
                $name,
            )*
        }

        #[cfg(all(feature = "mutants", debug_assertions))]
        impl Mutant {
            pub const ALL: &'static [Mutant] = &[$(Mutant::$name),*];

            pub fn name(self) -> &'static str {
                match self { $(Mutant::$name => stringify!($name),)* }
            }

            /// What it breaks.
            pub fn rule(self) -> &'static str {
                match self { $(Mutant::$name => $rule,)* }
            }

            /// Where the rule comes from: who lost data by it (pitfalls.md), or the section of the design.
            pub fn source(self) -> &'static str {
                match self { $(Mutant::$name => $source,)* }
            }
        }
    };
}

mutants! {
    // Promises and positions.
    PositionBeforePromise: "a position is reported after the promise is durable", "neon #294";
    PromiseForgotten: "a promise outlives its process", "tikv #8381";
    PromiseNotRechecked: "the promise is checked again after the sync, before the acknowledgement", "neon PR 2109";
    AckBeforePromise: "nothing is acknowledged before the promise is durable", "ZOOKEEPER-4643";
    AppendBelowPromise: "no append below the promise is taken or acknowledged", "cloudnative-pg #7407";
    FencedMasterGoesOn: "a master that has promised a newer epoch is none any more", "redis #4819, orchestrator #854";
    MasterBootIgnored: "another process of the elected node is not the master", "design 5";
    UnsettledReported: "a position is reported when nothing of the file is on its way to the disk", "design 5";
    // Acknowledgements and commits.
    AckBeforeSync: "data is durable before it is acknowledged", "ZOOKEEPER-4646";
    OwnUnsyncedCounts: "the master's own copy counts when it is durable, with one voter too", "etcd #14370";
    AckBySeqOnly: "an acknowledgement counts if its chain is in the master's file", "SERVER-16570";
    CommitBelowMajority: "committed is what a majority has", "cloudnative-pg #7407, repmgr #42";
    CommitByCounting: "an epoch commits only by a transaction of its own", "Raft figure 8, logcabin #44";
    ServeBeforeEpochStart: "a master serves when its epoch start is committed", "design 4";
    // Durability: what is acknowledged and what is committed.
    AllIsMajority: "with durability all every voter has what is acknowledged", "design 4";
    ShownIsTold: "a client hears that its commit is stored when the setting says so, not when its node shows it", "design 4";
    LocalAnnounced: "slaves are told of what is committed, not of what the master has acknowledged alone", "design 4";
    LocalNeverCut: "what the master has acknowledged alone can be cut", "design 4";
    LocalToldElsewhere: "clients of other nodes hear of a commit when it is committed", "design 4";
    LostStillServed: "clients that were shown what was lost don't go on", "ZEO #142";
    // Histories.
    ChainNotCompared: "histories are compared by chain, not by number", "litefs #112, zc.zrs";
    CommitBeforeMatch: "a committed position counts only after its chain matched", "KAFKA-14704";
    CutToCommitted: "a file is cut only where histories are proved to part", "KIP-101, KIP-279";
    LateCutTaken: "a cut is computed anew from what the file holds now", "neon safekeeper";
    CutLeftOut: "after a cut nothing is left of what was cut", "neon PR 9685";
    ForkMatches: "who says that it is in step has a prefix of its master's file", "design 4";
    OrphanNotKept: "what is cut is kept", "litefs #282, postgresql-operator #1153";
    TimeGoesBack: "time never goes back along the chain", "design 2";
    // Elections.
    FenceWithoutMajority: "an election needs the reports of a majority", "bookkeeper #2614";
    OldReportsCounted: "a report counts for its own fence only", "bookkeeper #2614";
    GreatestSeqOnly: "positions are compared by chain epoch first", "Raft figure 8";
    FloorNotFetched: "the elected fetches what the greatest position has", "design 5";
    BaseNotCompared: "who is counted has the current generation's file, by its base hash", "litefs #112, zc.zrs";
    SuspectCounted: "who has lost data is not counted and not elected", "KIP-966, NATS 2.12.1";
    ProvedByTimeAlone: "who has just started hears a majority before it takes part, however long it waits", "design 3";
    AmnesiacTakesPart: "a disk that has forgotten what was promised on it takes no part", "raft-rs to_commit out of range, openraft PR 2002";
    WipedBelieved: "what comes from another disk than the cluster knows is not believed", "raft-rs to_commit out of range, openraft PR 2002";
    UnprovedConfirms: "who may have forgotten a newer promise confirms no reads", "lease read by a paused process";
    UnprovedVotes: "who may have forgotten its vote does not vote", "tikv #8381";
    ProvedWithoutLog: "who has just started knows of Raft's log what the others know before it takes part", "openraft PR 2002";
    LostAcknowledged: "a disk that lacks what it acknowledged takes no part", "KIP-966";
    RecoveringCounts: "who has lost data acknowledges nothing until all of it is back", "KIP-966";
    OpenTimeoutByClock: "an elected node is replaced when nothing moves, not when time is up", "packmaster: 51 MB on a slow line, no master for ever";
    TransferForgotten: "what is there of a transaction outlives the epoch in which it came", "packmaster: 51 MB on a slow line, no master for ever";
    // Raft.
    RaftUnsynced: "Raft's records are durable before their messages leave", "tikv #8381";
    RaftSendsEarly: "Raft's messages wait for their records", "tikv #8381";
    RaftLogMadeAnew: "a Raft log that is gone beside other evidence is lost, not fresh", "packmaster: a lost Raft log";
    FarTermBelieved: "a term far ahead is not believed", "packmaster: one forged number";
    FarIndexBelieved: "a Raft index far ahead is not believed", "packmaster: one forged number";
    FarEpochBelieved: "an epoch far ahead is neither promised nor counted up from", "packmaster: one forged number";
    ViewBelieved: "one message does not prove that a disk has forgotten", "packmaster: one forged number";
    FarSeqBelieved: "a commit position far ahead is not believed", "packmaster: one forged number";
    // Clients.
    VisibleBeforeCommit: "clients see only what is committed", "ZEO #142";
    OldRoundConfirms: "a read is confirmed by answers to a question asked after it came", "lease read by a paused process";
    ConfirmSkipped: "a read is confirmed by a majority", "lease read by a paused process";
    SyncNotAwaited: "a sync waits until its node shows what is committed", "design 7";
    InvalidationLost: "a session hears of every change", "design 7";
    ChangedIsLoaded: "what has changed since the last sync is not loaded", "design 7";
    CommitIdNotChecked: "a commit that is asked for twice is stored once", "SERVER-55305";
    ConflictForgotten: "a commit that was refused is refused when it comes again", "SERVER-55305";
    UnknownSaidAsDone: "an unknown outcome is never called success", "MongoDB 2.4.3";
    ChangesNotChecked: "a commit on changed objects is a conflict", "design 7";
    AheadBelieved: "what a client was told before it was committed counts only if it is in the master's file", "design 7";
    BaseMoved: "a commit is judged as of what its client was told, not of when its data came", "design 7";
    OidsBeforeRaft: "oids are given out of blocks that are committed through Raft", "design 7";
    HolesTooEarly: "an oid is used again when no session can hold it", "design 7";
    // Administrators.
    SaidBeforeDone: "an administrator's request is done when it is applied, not when it is proposed", "MongoDB 2.4.3";
    HeardTwice: "a leader hears a request once", "SERVER-55305";
    LatePromoteTaken: "a promote replaces the master that whoever asked knew", "packmaster: PackSeal of a cancelled pack";
    LateSettingTaken: "a change is made to what whoever asked for it has seen", "packmaster: PackSeal of a cancelled pack";
    GivenTwice: "a request goes to the next leader when the log can't hold it any more", "SERVER-55305";
    // Packs and generations.
    MarkNotRechecked: "a mark is extended by what was appended meanwhile", "design 6";
    DeadNotRefused: "from F on nothing may use what the pack will drop", "design 6";
    RemovedNotRefused: "nobody may use what a pack has dropped", "design 6";
    PackNotTold: "sessions hear of what a pack dropped", "design 6";
    PackSurvivesElection: "an election calls a pack off", "design 6";
    PackIdentityNotChecked: "a command about a pack counts for the pack that it names", "packmaster: PackSeal of a cancelled pack";
    LateSealBuilt: "a master calls off a pack whose seal it has not marked", "packmaster: PackSeal of a cancelled pack";
    LateStartTaken: "a pack begins only as of the last pack that whoever asked knew", "packmaster: PackSeal of a cancelled pack";
    LateCancelTaken: "a cancel ends the pack that it names", "packmaster: PackSeal of a cancelled pack";
    FirstBaseForGood: "two equal bases outvote the first", "one bad node failed every pack";
    TailLeftOut: "what follows the cut is re-chained onto the new base", "design 6";
    BaseUnsynced: "the new file is durable before the old one is left", "VR revisited's state transfer";
    FlipNotDurable: "a flip is durable before anything is appended after it", "etcd #14685, #18810";
    FlipInTwoSteps: "a flip is one rename", "durus file_storage.py";
    NeedlessCopy: "a generation is built from the node's own file where it can be", "redis #5484, litefs #138";
    // One conjunct each, of rules that have several.
    SuspectTakes: "who has lost data takes no appends", "KIP-966";
    AppendWhileCutting: "nothing is appended to a file that is being cut back", "neon safekeeper";
    UnprovedTakes: "who may have forgotten a promise takes no appends", "openraft PR 2002";
    CommitBeyondProved: "a committed position counts up to where the file is proved to be the master's", "KAFKA-14704";
    PieceProvesWhole: "a piece proves nothing of the transaction that it is of", "KAFKA-14704";
    LateMismatchTaken: "what is cut off is what was shown to be different", "neon safekeeper";
    OldEpochReply: "an acknowledgement counts in the epoch in which it was given", "SERVER-16570";
    ConfirmOfNewerEpoch: "who has promised a newer epoch confirms no reads of this one", "lease read by a paused process";
    SuspectConfirms: "who has lost data confirms no reads", "lease read by a paused process";
    AnnouncedBelieved: "a slave's clients are told only of what is committed there", "design 4";
    HeldGoOnEarly: "clients that were shown what is not committed wait until it is", "ZEO #142";
    ServedTooEarly: "after a start clients wait until all that the file shows is committed", "ZEO #142";
    HeldStillAsks: "clients that wait for what becomes of a commit ask for nothing", "ZEO #142";
    ToldWhenInFlight: "a commit that is asked for again is done when it may be told", "ZEO #142";
    AgainIsTold: "a commit whose id comes again is done when it may be told", "ZEO #142";
    ReadsNotChecked: "a commit whose client has read what was changed is a conflict", "design 7";
    DeadReferredTo: "from F on nothing refers to what the pack will drop", "design 6";
    OwnedOidGiven: "an oid that a session holds is given to no other", "design 7";
    UsedOidGiven: "an oid that was committed, and can't be seen yet, is given to nobody", "design 7";
    StoredOidGiven: "an oid that an object has is given to nobody", "design 7";
    HolesBeforeTold: "holes are used when every node was told of what the pack dropped", "design 7";
    UncommittedPacked: "a pack is made of what is committed", "design 6";
    BuiltBeforeCut: "a base is built by who has all of it up to the cut", "design 6";
    RecoveringAccused: "who knows what it has lost is not accused of having forgotten it", "KIP-966";
    ProvedUnheard: "who has just started hears everybody before it takes part", "openraft PR 2002";
    AccusedTakesPart: "who is accused of having forgotten takes no part", "openraft PR 2002";
    ReadJoinsRound: "a read that comes while a round is on its way waits for the next one", "lease read by a paused process";
    CutStillDurable: "nothing that was cut counts as durable", "neon PR 9685";
    CutIdsKept: "a commit that was cut is not known by its id", "SERVER-55305";
    AmnesiaForgotten: "a disk that has forgotten is known as such by the next process, too", "openraft PR 2002";
    LossForgotten: "the next process, too, recovers what was lost", "KIP-966";
    // Disks.
    FailedSyncIgnored: "after a failed sync the node dies and reads its file again", "PostgreSQL 2018";
    CorruptionCutAsTorn: "what was whole and is not any more is corruption, not a tear", "CTRL paper";
}

#[cfg(all(feature = "mutants", debug_assertions))]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
        static REACHED: Cell<u64> = const { Cell::new(0) };
    }

    /// Is this rule to be broken here and now?
    pub fn broken(mutant: Mutant) -> bool {
        let on = ON.get() == Some(mutant);
        if on {
            REACHED.set(REACHED.get() + 1);
        }
        on
    }

    /// Runs something with one rule broken on this thread. Also says how often the place of the rule was reached.
    pub fn with<T>(mutant: Mutant, run: impl FnOnce() -> T) -> (T, u64) {
        struct Off;
        impl Drop for Off {
            fn drop(&mut self) {
                ON.set(None);
            }
        }
        ON.set(Some(mutant));
        REACHED.set(0);
        let _off = Off;
        let result = run();
        (result, REACHED.get())
    }
}

#[cfg(all(feature = "mutants", debug_assertions))]
pub use switch::{broken, with};

/// Every rule is kept.
#[cfg(not(all(feature = "mutants", debug_assertions)))]
#[inline(always)]
pub const fn broken(_: Mutant) -> bool {
    false
}

// Not a test that somebody may forget to run in this profile: no release build is made if a rule could be broken.
#[cfg(not(all(feature = "mutants", debug_assertions)))]
const _: () = assert!(!broken(Mutant::AckBeforeSync), "a rule can be broken in this build");

#[cfg(all(test, feature = "mutants", debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_broken_on_one_thread_and_only_inside() {
        assert!(!broken(Mutant::AckBeforeSync));
        let (elsewhere, reached) = with(Mutant::AckBeforeSync, || {
            assert!(broken(Mutant::AckBeforeSync) && !broken(Mutant::PromiseForgotten));
            std::thread::spawn(|| broken(Mutant::AckBeforeSync)).join().unwrap()
        });
        assert!(!elsewhere && reached == 1);
        assert!(!broken(Mutant::AckBeforeSync));
        let panicked =
            std::panic::catch_unwind(|| with(Mutant::AckBeforeSync, || panic!("on purpose")));
        assert!(panicked.is_err() && !broken(Mutant::AckBeforeSync));
    }
}
