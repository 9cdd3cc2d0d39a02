//! Clients' connections: who connects where, and when their bytes arrive.

use bytes::Bytes;
use packmaster::node::core::Input;
use packmaster::types::ConnId;

use super::{Event, World};
use crate::sim::client::{Next, Tag};
use crate::sim::ledger::tag_text;

/// A commit that took so long waited for a node.
const WAITED_US: u64 = 300_000;

impl World {
    /// The client's next turn, and only that.
    pub(super) fn turn(&mut self, client: usize, after_us: u64) {
        self.clients[client].turn += 1;
        let turn = self.clients[client].turn;
        self.at(after_us, Event::ClientTurn { client, turn });
    }

    pub(super) fn client_turn(&mut self, client: usize) {
        if self.clients[client].connection.is_none() {
            if self.clients[client].quiet {
                return;
            }
            let node = match self.clients[client].probing {
                Some(node) => node,
                None if self.script.is_some() => client % self.hosts.len(),
                None => self.rng.index(self.hosts.len()),
            };
            self.connect(client, node);
            return;
        }
        let next = self.clients[client].next(&mut self.rng, &mut self.book);
        match next {
            Next::Say(bytes) => {
                if let Some(tag) = self.clients[client].awaits_commit() {
                    let text = tag_text(&tag);
                    self.sent_at.insert(tag, self.now);
                    self.trace.line(format_args!("c{} sends {text}", self.clients[client].id));
                }
                self.say(client, bytes);
                if self.clients[client].is_idle() {
                    // Nothing is answered to that.
                    let after = self.rng.delay(500, 20_000);
                    self.turn(client, after);
                }
            }
            Next::Think => {
                if self.clients[client].is_idle() {
                    let after = self.rng.delay(500, 200_000);
                    self.turn(client, after);
                }
            }
            Next::Leave => {
                if self.rng.chance(500) {
                    self.say(client, b".".to_vec());
                }
                self.hang_up(client);
            }
        }
    }

    pub(super) fn connect(&mut self, client: usize, node: usize) {
        let there = self.hosts[node].process.is_some();
        if !there {
            let after = self.rng.between(10_000, 100_000);
            self.turn(client, after);
            return;
        }
        self.conns_made += 1;
        let conn = self.conns_made;
        self.process(node).conns.insert(conn, client);
        let address = format!("c{}", self.clients[client].id);
        self.trace.line(format_args!("{address} connects to n{} as {conn}", node + 1));
        self.put(node, Input::ClientOpened { conn: ConnId(conn), address });
        let hello = self.clients[client].connected(node, conn, &mut self.book);
        self.say(client, hello);
    }

    pub(super) fn say(&mut self, client: usize, bytes: Vec<u8>) {
        let Some(connection) = &self.clients[client].connection else { return };
        let (node, conn) = (connection.node, connection.conn);
        let life = self.hosts[node].life;
        let after = self.rng.delay(30, 1000);
        if bytes.len() > 1 && self.rng.chance(150) {
            // Cut somewhere by the network.
            let (first, rest) = bytes.split_at(self.rng.between(1, bytes.len() as u64) as usize);
            let more = self.rng.delay(10, 3000);
            self.at(after, Event::ToNode { node, life, conn, bytes: Some(first.to_vec()) });
            self.at(after + more, Event::ToNode { node, life, conn, bytes: Some(rest.to_vec()) });
        } else {
            self.at(after, Event::ToNode { node, life, conn, bytes: Some(bytes) });
        }
    }

    pub(super) fn hang_up(&mut self, client: usize) {
        let Some(connection) = &self.clients[client].connection else { return };
        let (node, conn) = (connection.node, connection.conn);
        let life = self.hosts[node].life;
        self.trace.line(format_args!("c{} hangs up {conn}", self.clients[client].id));
        self.at(4000, Event::ToNode { node, life, conn, bytes: None });
        self.disconnected(client);
    }

    pub(super) fn disconnected(&mut self, client: usize) {
        self.clients[client].closed(&mut self.book);
        let after = self.rng.delay(1000, 300_000);
        self.turn(client, after);
    }

    pub(super) fn arrive_at_node(
        &mut self,
        node: usize,
        life: u64,
        conn: u64,
        bytes: Option<Vec<u8>>,
    ) {
        if self.hosts[node].life != life || self.hosts[node].process.is_none() {
            return;
        }
        if !self.process(node).conns.contains_key(&conn) {
            return;
        }
        match bytes {
            Some(bytes) => {
                self.put(node, Input::ClientData { conn: ConnId(conn), bytes: bytes.into() });
            }
            None => {
                self.process(node).conns.remove(&conn);
                self.put(node, Input::ClientClosed { conn: ConnId(conn) });
            }
        }
    }

    /// The client has taken what its node has sent.
    pub(super) fn drained(&mut self, node: usize, life: u64, conn: u64) {
        let there = self.hosts[node].life == life && self.hosts[node].process.is_some();
        if there && self.process(node).conns.contains_key(&conn) {
            self.put(node, Input::ClientDrained { conn: ConnId(conn) });
        }
    }

    pub(super) fn client_send(&mut self, node: usize, conn: ConnId, bytes: Bytes) {
        let Some(&client) = self.process(node).conns.get(&conn.0) else { return };
        let current = self.clients[client].connection.as_ref().is_some_and(|c| c.conn == conn.0);
        if current
            && let Some(tag) = self.clients[client].awaits_commit()
            && bytes.first() == Some(&b'O')
        {
            let sent_at = self.sent_at.get(&tag).copied().unwrap_or(0);
            let local = self.local_at.is_some_and(|at| at >= sent_at);
            let (seq, alone) = self.ledger.on_acknowledged(node, &tag, local);
            if self.all_since.is_some_and(|since| since < sent_at) {
                self.ledger.has_everybody(&tag, seq);
                self.count("acknowledged by all");
                if self.now - sent_at > WAITED_US {
                    self.count("commit waited for all");
                }
            }
            if alone {
                self.count("acknowledged by the master alone");
            }
            self.note_carried(&tag);
            self.book.acknowledged(&tag, seq, local, alone);
            self.trace.line(format_args!(
                "n{} acknowledges {} at seq {seq}",
                node + 1,
                tag_text(&tag)
            ));
        }
        let after = self.rng.delay(30, 1000);
        // One connection keeps its order.
        let after = after.max(1);
        self.at_in_order(
            client,
            after,
            Event::ToClient { client, conn: conn.0, bytes: Some(bytes) },
        );
    }

    /// Was there an election between a commit's arrival and its acknowledgement?
    fn note_carried(&mut self, tag: &Tag) {
        let Some(since) = self.sent_at.remove(tag) else { return };
        let fence = self.fences.iter().rev().take_while(|(at, _)| *at > since).last();
        match fence {
            Some((_, true)) => self.count("commit carried over by a promote"),
            Some((_, false)) => self.count("commit carried over by another election"),
            None => {}
        }
    }

    /// Answers to one client arrive in the order in which they were sent.
    pub(super) fn at_in_order(&mut self, client: usize, after_us: u64, event: Event) {
        let now = self.now;
        let after = self.clients[client].arrival(now, after_us);
        self.at(after, event);
    }

    pub(super) fn arrive_at_client(&mut self, client: usize, conn: u64, bytes: Option<Bytes>) {
        let current = self.clients[client].connection.as_ref().is_some_and(|c| c.conn == conn);
        if !current {
            return;
        }
        match bytes {
            None => {
                self.trace.line(format_args!("c{} finds {conn} closed", self.clients[client].id));
                self.disconnected(client);
            }
            Some(bytes) => {
                let answered = self.clients[client].received(&bytes, &mut self.book);
                let answered = answered
                    .unwrap_or_else(|why| panic!("client c{}: {why}", self.clients[client].id));
                self.check_oids(client);
                if answered {
                    let after = match self.rng.chance(40) {
                        true => self.rng.between(10_000, 400_000),
                        false => self.rng.delay(20, 20_000),
                    };
                    self.turn(client, after);
                }
            }
        }
    }

    /// No two sessions that are alive hold the same oid.
    fn check_oids(&self, client: usize) {
        let is_alive = |client: usize| {
            self.clients[client].connection.as_ref().is_some_and(|connection| {
                let process = self.hosts[connection.node].process.as_ref();
                process.is_some_and(|process| process.conns.contains_key(&connection.conn))
            })
        };
        for other in (0..self.clients.len()).filter(|other| *other != client) {
            if let Some(oid) = self.clients[client].shares_oid(&self.clients[other])
                && is_alive(client)
                && is_alive(other)
            {
                let (one, two) = (self.clients[client].id, self.clients[other].id);
                panic!("violated OidUnique: oid {oid} was given to c{one} and to c{two}");
            }
        }
    }
}
