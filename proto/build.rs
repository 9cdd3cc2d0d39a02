//! Compiles the messages in this directory with protox: no protoc needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["proto/control.proto", "proto/replication.proto", "proto/admin.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-changed=proto/build.rs");
    let descriptors = protox::compile(files, ["proto"])?;
    prost_build::Config::new()
        .bytes(["."])
        .btree_map(["."])
        // Long, and in every beat: a message is as long as its longest kind.
        .boxed(".packmaster.control.PeerMessage.kind.beat")
        .boxed(".packmaster.control.Beat.rebases")
        .boxed(".packmaster.control.Beat.promote")
        .boxed(".packmaster.replication.Append.piece")
        .boxed(".packmaster.replication.AppendReply.incoming")
        .compile_fds(descriptors)?;
    Ok(())
}
