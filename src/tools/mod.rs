//! Commands beside `node` and `ctl`.

pub mod bench;
pub mod playground;
pub mod shelf;
