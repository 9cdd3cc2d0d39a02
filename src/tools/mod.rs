//! Commands beside `node` and `ctl`.

pub mod playground;
