//! The first message on every connection, both ways: who is this, and is it the one that is meant?
//!
//! The dialling side speaks first. The accepting side always answers with its own hello, even to one that it turns
//! away, so that both sides can say in words what does not fit.

use crate::config::{Config, Member};
use crate::proto::control::{Hello, Lane};
use crate::types::{BootId, NodeId};

pub const PROTOCOL_VERSION: u32 = 1;

/// Who this process is.
#[derive(Clone)]
pub struct Me {
    pub cluster: String,
    pub node: NodeId,
    pub boot: BootId,
    pub disk_uuid: [u8; 16],
}

/// Who a connection is from.
#[derive(Debug, PartialEq)]
pub enum Visitor {
    /// An administrator's tool.
    Admin,
    Peer {
        node: NodeId,
        lane: Lane,
        disk_uuid: [u8; 16],
    },
}

impl Me {
    pub fn hello(&self, lane: Lane) -> Hello {
        Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster: self.cluster.clone(),
            node: self.node.0,
            boot: self.boot.0,
            disk_uuid: self.disk_uuid.to_vec().into(),
            lane: lane.into(),
        }
    }

    /// What an accepted connection's hello makes of it, or why it is turned away.
    pub fn admit(&self, hello: &Hello, config: &Config) -> Result<Visitor, String> {
        // A tool may leave the cluster's name out: it asks whatever cluster is there.
        let tool = hello.node == 0;
        self.check_version_and_cluster(hello, tool)?;
        if tool {
            return Ok(Visitor::Admin);
        }
        let node = NodeId(hello.node);
        if node == self.node {
            return Err(format!("says it is node {node}, which is this node"));
        }
        if !config.members.iter().any(|member| member.id == node) {
            return Err(format!("says it is node {node}, which is no member of this cluster"));
        }
        let lane =
            Lane::try_from(hello.lane).map_err(|_| format!("no such lane: {}", hello.lane))?;
        if hello.boot == 0 {
            return Err("its hello has no boot id".into());
        }
        let disk_uuid = hello.disk_uuid[..].try_into();
        let disk_uuid =
            disk_uuid.map_err(|_| "its hello's disk uuid is not 16 bytes".to_string())?;
        Ok(Visitor::Peer { node, lane, disk_uuid })
    }

    /// Is what answered at the peer's address the peer?
    pub fn check_answer(&self, hello: &Hello, peer: &Member) -> Result<(), String> {
        self.check_version_and_cluster(hello, false)?;
        if NodeId(hello.node) != peer.id {
            return Err(format!(
                "node {} answers there, not {} (node {}): check the members' addresses",
                hello.node, peer.name, peer.id
            ));
        }
        Ok(())
    }

    fn check_version_and_cluster(&self, hello: &Hello, may_be_empty: bool) -> Result<(), String> {
        let version = hello.protocol_version;
        if version != PROTOCOL_VERSION {
            return Err(format!(
                "speaks protocol version {version}, this node version {PROTOCOL_VERSION}"
            ));
        }
        if hello.cluster != self.cluster && !(may_be_empty && hello.cluster.is_empty()) {
            let theirs: String = hello.cluster.chars().take(64).collect();
            return Err(format!("is of cluster {theirs:?}, this node of {:?}", self.cluster));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EXAMPLE;
    use crate::node::core::io::LANES;

    fn me(node: u64) -> Me {
        let (node, boot) = (NodeId(node), BootId(77));
        Me { cluster: "shop".into(), node, boot, disk_uuid: [7; 16] }
    }

    #[test]
    fn who_is_let_in() {
        let config = Config::parse(EXAMPLE, "example", &[]).unwrap();
        let (one, two) = (me(1), me(2));
        let hello = two.hello(Lane::Live);
        let peer = Visitor::Peer { node: NodeId(2), lane: Lane::Live, disk_uuid: [7; 16] };
        assert_eq!(one.admit(&hello, &config), Ok(peer));
        let tool = Hello { protocol_version: 1, ..Hello::default() };
        assert_eq!(one.admit(&tool, &config), Ok(Visitor::Admin));

        let wrong = [
            (Hello { protocol_version: 2, ..hello.clone() }, "speaks protocol version 2"),
            (Hello { cluster: "other".into(), ..hello.clone() }, "is of cluster \"other\""),
            (Hello { cluster: "other".into(), ..tool }, "is of cluster \"other\""),
            (Hello { cluster: String::new(), ..hello.clone() }, "is of cluster \"\""),
            (Hello { node: 1, ..hello.clone() }, "which is this node"),
            (Hello { node: 9, ..hello.clone() }, "no member"),
            (Hello { lane: LANES.len() as i32, ..hello.clone() }, "no such lane"),
            (Hello { boot: 0, ..hello.clone() }, "no boot id"),
            (Hello { disk_uuid: bytes::Bytes::new(), ..hello.clone() }, "not 16 bytes"),
        ];
        for (hello, wanted) in wrong {
            let why = one.admit(&hello, &config).unwrap_err();
            assert!(why.contains(wanted), "{why}");
        }
        two.check_answer(&one.hello(Lane::Live), &config.members[0]).unwrap();
        let why = two.check_answer(&one.hello(Lane::Live), &config.members[2]).unwrap_err();
        assert!(why.contains("node 1 answers there, not n3 (node 3)"), "{why}");
    }
}
