//! The messages of `proto/`, as prost makes them.

pub mod replication {
    include!(concat!(env!("OUT_DIR"), "/packmaster.replication.rs"));
}

pub mod control {
    include!(concat!(env!("OUT_DIR"), "/packmaster.control.rs"));
}

pub mod admin {
    include!(concat!(env!("OUT_DIR"), "/packmaster.admin.rs"));
}
