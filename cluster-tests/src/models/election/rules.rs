//! What a search is told: which rule is off, how far it goes, and what must happen in it.

/// What can be switched off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// Written is not durable: a slave acknowledges after its sync.
    AckAfterSync,
    /// Nor is it on the master, whose own copy is one acknowledgement like any other.
    OwnAckAfterSync,
    /// A node that promised an epoch takes no append of an earlier one.
    PromiseStopsAppends,
    /// The promise is looked at again after the sync, before the acknowledgement.
    RecheckPromise,
    /// Promise and position are one step: nothing is taken after the position was read.
    PositionWithPromise,
    /// A promise is durable before it is told.
    PromiseDurable,
    /// A master that promises a later epoch is none any more.
    FenceStopsMaster,
    /// Elections take the reports of a majority of the voters.
    FenceMajority,
    /// Of positions the greatest (epoch, seq) counts, not the longest.
    GreatestByEpoch,
    /// The elected has the greatest position before it starts.
    FloorFirst,
    /// One election an epoch: the command is refused if there was one.
    ElectOnce,
    /// A process is master if it is the one that was elected, not one that runs in its place.
    BootChecked,
    MajorityCommits,
    /// What an earlier epoch wrote commits only through a transaction of this one.
    OwnEpochCommits,
    /// The master shows nothing before its epoch start is committed.
    ServeAfterStart,
    /// Slaves are told of what a majority has, also if the master has acknowledged more to its clients, as its own disk alone
    /// has it (durability `local`).
    CommittedAnnounced,
    AckCarriesEpoch,
    AckCarriesChain,
    /// An append is taken only onto the tip that it names, by chain.
    AppendNamesTip,
    /// A slave believes what is said to be committed only of a file that matched.
    WatermarkAfterMatch,
    /// A file is cut at the proven divergence, not at what its node knows to be committed.
    CutAtDivergence,
    /// A cut that arrives again later finds nothing to cut.
    LateCutRefused,
    /// A node that lost a damaged tail reports no position ...
    RecoveringNotCounted,
    /// ... until it has all that it may have acknowledged: not only what its master says is committed.
    RecoveredWhole,
    /// A node with another disk than it is known by is not believed: not its position, not its acknowledgements.
    WipedNotCounted,
    WipedNotAcked,
    /// A node with an earlier image of its disk finds out, and is as one with another disk.
    RollBackNoticed,
    /// Sets of voters that follow each other differ by one.
    DifferByOne,
    /// The next change waits until the epoch that made the last one has committed its start.
    OpenedBeforeChange,
    /// A new epoch commits by a majority of its own voters.
    NewVotersCommit,
}

/// How far the search goes. Every number is a bound on how often something happens.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    pub nodes: usize,
    /// Voters at first; the others are learners.
    pub voters: usize,
    pub epochs: u8,
    /// Clients' transactions; each epoch's start comes on top.
    pub writes: u8,
    pub crashes: u8,
    /// Disks damaged.
    pub damages: u8,
    /// Disks replaced by empty ones.
    pub wipes: u8,
    /// Disks replaced by an earlier image of their own.
    pub roll_backs: u8,
    /// Changes of the voters.
    pub changes: u8,
}

impl Scope {
    pub const NONE: Scope = Scope {
        nodes: 3,
        voters: 3,
        epochs: 3,
        writes: 0,
        crashes: 0,
        damages: 0,
        wipes: 0,
        roll_backs: 0,
        changes: 0,
    };
}

/// Steps that must happen somewhere in the search, or it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Point {
    MasterFenced,
    ElectedBelowFloor,
    FloorFetched,
    TailCut,
    UnsyncedLost,
    Recovered,
    VotersChanged,
}
