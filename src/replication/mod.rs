//! How the master's transactions get into the slaves' files, and how it is known when they are committed.
//!
//! The master pushes (`follower`), the slaves verify every chain and acknowledge what is durable, a majority of
//! acknowledgements commits (`quorum`). Two files that differ find their newest common point by showing each other
//! ends of transactions (`points`); a position is compared by chain, never by number alone. Reads that must be fresh
//! are confirmed by a round to the voters (`confirm`). Which block of a base is fetched from whom: `sources`. A long
//! transaction goes in pieces (`transfer`), as many at a time as the line carries (`window`).
//!
//! Nothing here touches a disk or a socket or knows what a client is.

pub mod confirm;
pub mod follower;
pub mod points;
pub mod quorum;
pub mod sources;
pub mod transfer;
pub mod window;
pub mod wire;
