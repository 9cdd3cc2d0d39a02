//! Commands beside `node` and `ctl`.

pub mod playground;
pub mod shelf;
