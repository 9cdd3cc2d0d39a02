//! What the playground says.

use serde_json::json;

use super::nodes::{CLUSTER, Node, NodePlan};
use crate::admin::model::Status;

/// The line that scripts wait for.
pub fn json(nodes: &[Node]) -> String {
    let told: Vec<_> = nodes.iter().map(|node| line(&node.plan, node.pid())).collect();
    json!({"cluster": CLUSTER, "nodes": told}).to_string()
}

fn line(plan: &NodePlan, pid: u32) -> serde_json::Value {
    json!({
        "name": plan.name, "durus": plan.durus, "peer": plan.peer, "http": plan.http, "pid": pid,
        "data": plan.data.display().to_string()
    })
}

/// The nodes, a way in, and what to try next.
pub fn welcome(nodes: &[Node], status: &Status, kept: bool) -> String {
    let told: Vec<(&NodePlan, u32)> = nodes.iter().map(|node| (&node.plan, node.pid())).collect();
    text(&told, status, kept)
}

fn text(nodes: &[(&NodePlan, u32)], status: &Status, kept: bool) -> String {
    let master = status.master.as_deref().unwrap_or("nobody");
    let mut out = format!("A cluster of {} is up; {master} is master.\n\n", nodes.len());
    for (plan, pid) in nodes {
        let (name, durus, http) = (&plan.name, &plan.durus, &plan.http);
        out.push_str(&format!(
            "  {name}  durus {durus}  http://{http}/  pid {pid}  {}\n",
            plan.data.display()
        ));
    }
    let (host, port) = nodes[0].0.durus.split_once(':').expect("we made it");
    out.push_str(&format!(
        "
From Python (pip install durus); every node serves every client:

  from durus.client_storage import ClientStorage
  from durus.connection import Connection
  connection = Connection(ClientStorage(address=(\"{host}\", {port})))
  root = connection.get_root()
  root[\"greeting\"] = \"hello\"
  connection.commit()

Try next:

"
    ));
    out.push_str(&next(nodes, status));
    if !kept {
        out.push_str("\nThe data goes away with the playground; --data DIR keeps it. ");
    }
    out.push_str("\nCtrl-C stops everything.\n");
    out
}

fn next(nodes: &[(&NodePlan, u32)], status: &Status) -> String {
    let peers: Vec<&str> = nodes.iter().map(|(plan, _)| plan.peer.as_str()).collect();
    // ctl finds the first three default ports by itself.
    let usual = ["127.0.0.1:3972", "127.0.0.1:3973", "127.0.0.1:3974"];
    let node = match peers.iter().all(|peer| usual.contains(peer)) {
        true => String::new(),
        false => format!("--node {} ", peers.join(",")),
    };
    let mut tries = vec![
        (format!("packmaster ctl {node}status --watch"), "the cluster, every second"),
        (format!("packmaster ctl {node}pack --wait"), "drop garbage while clients go on"),
        (format!("packmaster ctl {node}history"), "what was decided, and why"),
    ];
    let is_master = |plan: &NodePlan| status.master.as_ref() == Some(&plan.name);
    let master = nodes.iter().find(|(plan, _)| is_master(plan));
    let slave = nodes.iter().find(|(plan, _)| !is_master(plan));
    if let (Some((_, pid)), Some((plan, _))) = (master, slave) {
        let promote = format!("packmaster ctl {node}promote {}", plan.name);
        tries.insert(1, (promote, "hand mastership over"));
        tries.insert(1, (format!("kill -9 {pid}"), "the master dies; commits go on elsewhere"));
    }
    let width = tries.iter().map(|(command, _)| command.len()).max().unwrap_or(0);
    tries.iter().map(|(command, what)| format!("  {command:width$}  # {what}\n")).collect()
}

/// What of a status is worth a line where lines are not refreshed in place.
pub fn gist(status: &Status) -> String {
    let nodes: Vec<_> =
        status.nodes.iter().map(|node| (&node.name, node.answering, node.in_step)).collect();
    let generation = status.generation.as_ref().map(|generation| generation.number);
    let pack = status.pack.as_ref().map(|pack| &pack.phase);
    let (master, epoch, paused) = (&status.master, status.epoch, status.paused);
    format!("{:?} {master:?} {epoch} {generation:?} {nodes:?} {paused} {pack:?}", status.verdict)
}

#[cfg(test)]
mod tests {
    use super::super::nodes::Plan;
    use super::*;
    use crate::admin::status::status;
    use crate::admin::view::ClusterView;
    use std::path::Path;

    fn told(port_base: u16, master: &str) -> String {
        let plan = Plan::new(3, port_base, Path::new("/play"), None).unwrap();
        let nodes: Vec<(&NodePlan, u32)> = plan.nodes.iter().zip(501..).collect();
        let mut status = status(&ClusterView::default());
        status.master = Some(master.to_owned());
        text(&nodes, &status, false)
    }

    #[test]
    fn the_welcome_says_how_to_get_in_and_what_to_try() {
        let text = told(2972, "n2");
        for part in [
            "n2 is master",
            "n3  durus 127.0.0.1:2974  http://127.0.0.1:4974/  pid 503",
            "address=(\"127.0.0.1\", 2972)",
            "kill -9 502 ",
            "ctl promote n1",
            "packmaster ctl pack --wait",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains("--node"), "ctl finds these by itself");
    }

    #[test]
    fn other_ports_are_told_to_ctl() {
        let text = told(12972, "n1");
        let wanted = "ctl --node 127.0.0.1:13972,127.0.0.1:13973,127.0.0.1:13974 promote n2";
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn the_json_line_has_the_promised_fields() {
        let plan = Plan::new(1, 2972, Path::new("/play"), None).unwrap();
        let told = line(&plan.nodes[0], 7);
        assert_eq!(
            told,
            json!({"name": "n1", "durus": "127.0.0.1:2972", "peer": "127.0.0.1:3972", "http": "127.0.0.1:4972",
                   "pid": 7, "data": "/play/n1"})
        );
    }

    #[test]
    fn progress_alone_is_not_worth_a_line() {
        let mut told = status(&ClusterView::default());
        let before = gist(&told);
        told.decisions += 1;
        assert_eq!(gist(&told), before);
        told.epoch += 1;
        assert_ne!(gist(&told), before);
    }
}
