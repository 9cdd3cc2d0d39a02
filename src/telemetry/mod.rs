//! What the node tells people about itself.

pub mod http;
mod metrics;
