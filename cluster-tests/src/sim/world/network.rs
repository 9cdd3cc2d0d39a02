//! Between nodes. A connection is a lane: messages on it keep their order, unless it breaks. Where lines are narrow, a message
//! occupies its lane for its size divided by what the lane carries.

use packmaster::node::core::{Input, lane};
use packmaster::proto::admin::admin_request::Verb;
use packmaster::proto::admin::{Pack, PackVerb};
use packmaster::proto::control::peer_message::Kind;
use packmaster::proto::control::{Lane, PeerMessage};
use packmaster::proto::replication::client_reply::Answer;
use packmaster::proto::replication::client_request::Ask;
use packmaster::types::NodeId;
use prost::Message as _;

use super::words::{self, words};
use super::{Event, Flight, World};
use crate::sim::forge;

/// When lines are wide again, what waited for them arrives after so long.
const SOON_US: u64 = 5000;
/// A connection that is lost may deliver so much longer.
const LOST_WITH_US: u64 = 160_000;

impl World {
    pub(super) fn send(&mut self, from: usize, to: usize, message: PeerMessage) {
        let lived_us = self.lived_us(from);
        self.ledger.on_send(from, lived_us, &message);
        self.trace.note((from * 8 + to) as u64, message.encoded_len() as u64);
        if let Some(text) = words(&message) {
            self.trace.line(format_args!("n{} -> n{}: {text}", from + 1, to + 1));
        }
        let link = self.link(from, to);
        if !link.up {
            return;
        }
        let (to_life, era) = (link.to_life, link.era);
        let lane = lane(&message, self.small_commit_max) as usize;
        if self.link(from, to).broken[lane] {
            // Waits for the new connection, if it is lucky.
            if self.rng.chance(500) {
                return;
            }
        } else if self.loss_permille > 0 && self.rng.chance(self.loss_permille) {
            // The connection of this lane broke with the message in it; it is made again.
            self.link(from, to).broken[lane] = true;
            let after = self.rng.delay(500, 30_000);
            self.at(after, Event::LaneAgain { from, to, era, lane });
            return;
        }
        if self.late.permille > 0 && decides(&message) && self.rng.chance(self.late.permille) {
            let twice = self.rng.chance(self.late.twice_permille);
            let after = self.rng.between(1_000, self.late.us_max);
            let copy = message.clone();
            let late = Flight { from, to, to_life, era, fragile: false, message: copy };
            self.at(after, Event::Deliver(Box::new(late)));
            self.count("decision's message held back");
            if !twice {
                return;
            }
            self.count("decision's message repeated late");
        }
        self.repeat_refused(from, to, &message);
        let Some(message) = self.forge(from, to, message) else { return };
        let fragile = self.rng.chance(500);
        let copy = self.twice_permille > 0 && self.rng.chance(self.twice_permille);
        let flight = Flight { from, to, to_life, era, fragile, message };
        let Some(flight) = self.hold(flight) else { return };
        if self.link(from, to).cut {
            self.link(from, to).held.push(flight);
            return;
        }
        if copy {
            // Most copies come soon, some when all that they are about is over.
            let late_us = if self.rng.chance(250) { 3_000_000 } else { 80_000 };
            let after = self.rng.between(100, late_us);
            let message = flight.message.clone();
            let flight = Flight { from, to, to_life, era, fragile, message };
            self.at(after, Event::Deliver(Box::new(flight)));
        }
        self.fly(flight);
    }

    /// A commit that was refused because of a pack comes again, when somebody has called the pack off.
    fn repeat_refused(&mut self, from: usize, to: usize, message: &PeerMessage) {
        match &message.kind {
            Some(Kind::ClientRequest(request)) if matches!(request.ask, Some(Ask::Commit(_))) => {
                self.asked_commits.insert((request.boot, request.id), message.clone());
            }
            Some(Kind::ClientReply(reply)) => {
                let asked = self.asked_commits.remove(&(reply.boot, reply.id));
                let Some(Answer::Conflict(conflict)) = &reply.answer else { return };
                let often = self.options.refused_again_permille;
                if conflict.dead.is_empty() || self.twice_permille == 0 || !self.rng.chance(often) {
                    return;
                }
                let Some(message) = asked else { return };
                self.ask(from, Verb::Pack(Pack { verb: PackVerb::Cancel.into() }));
                self.count("refused commit repeated after its pack");
                let (to_life, era) = (self.hosts[from].life, self.link(to, from).era);
                let again = Flight { from: to, to: from, to_life, era, fragile: false, message };
                let after = self.rng.between(50_000, 1_000_000);
                self.at(after, Event::Deliver(Box::new(again)));
            }
            _ => {}
        }
    }

    /// A message in this node's name with a number that is far ahead: in place of its own one (None), or after it.
    fn forge(&mut self, from: usize, to: usize, message: PeerMessage) -> Option<PeerMessage> {
        /// Of its messages, until the fault is done: a few of the many kinds there are.
        const FORGED_PERMILLE: u64 = 40;
        /// Of the rare ones that bring a snapshot of the state.
        const FORGED_SNAPSHOT_PERMILLE: u64 = 700;
        if self.hosts[from].forge == 0 {
            return Some(message);
        }
        let permille = match &message.kind {
            Some(Kind::Raft(raft)) if raft.snapshot.is_some() => FORGED_SNAPSHOT_PERMILLE,
            _ => FORGED_PERMILLE,
        };
        if !self.rng.chance(permille) {
            return Some(message);
        }
        let Some((forged, what)) = forge::forged(&message, &mut self.rng) else {
            return Some(message);
        };
        self.hosts[from].forge -= 1;
        let kind = words::kind(&message);
        self.trace.line(format_args!("n{} -> n{}: FORGED {kind}: {what}", from + 1, to + 1));
        self.count("message with a forged number");
        let link = self.link(from, to);
        let (to_life, era) = (link.to_life, link.era);
        if !link.cut {
            // After it, so that the lane's order holds.
            let after = 5000 + self.rng.below(20_000);
            let flight = Flight { from, to, to_life, era, fragile: true, message: forged };
            self.at(after, Event::Deliver(Box::new(flight)));
        }
        self.rng.chance(500).then_some(message)
    }

    pub(super) fn fly(&mut self, flight: Flight) {
        let delay = self.rng.delay(30, 3000) + self.rng.below(self.lag_us + 1);
        let lane = lane(&flight.message, self.small_commit_max);
        let number = lane as usize;
        let (now, narrow) = (self.now, self.narrow);
        let link = self.link(flight.from, flight.to);
        // Beats are as large here as anywhere, and transactions much smaller: they would need all that such lines carry.
        let delay = match narrow.filter(|_| is_narrowed(lane)) {
            Some(bytes_per_s) => {
                let takes = flight.message.encoded_len() as u64 * 1_000_000 / bytes_per_s;
                link.free[number] = link.free[number].max(now) + takes;
                link.free[number] - now + delay
            }
            None => delay,
        };
        let at = (now + delay).max(link.last[number] + 1);
        link.last[number] = at;
        self.at(at - now, Event::Deliver(Box::new(flight)));
    }

    /// Lines carry as much as there is again: what waited in front of them is delivered soon, in its order.
    pub(super) fn widen(&mut self) {
        if self.narrow.take().is_none() {
            return;
        }
        let soon = self.now + SOON_US;
        let late = self.queue.range((soon, 0)..);
        let waits = late.filter(|(_, event)| match event {
            Event::Deliver(flight) => is_narrowed(lane(&flight.message, self.small_commit_max)),
            _ => false,
        });
        let waits: Vec<(u64, u64)> = waits.map(|(at, _)| *at).collect();
        for at in waits {
            let event = self.queue.remove(&at).expect("just seen");
            self.at(SOON_US, event);
        }
        for link in &mut self.links {
            for number in [Lane::Live as usize, Lane::Bulk as usize] {
                link.free[number] = link.free[number].min(soon);
                link.last[number] = link.last[number].min(soon);
            }
        }
    }

    pub(super) fn deliver(&mut self, flight: Flight) {
        let Flight { from, to, to_life, era, fragile, message } = flight;
        if self.hosts[to].life != to_life || self.hosts[to].process.is_none() {
            return;
        }
        let narrow = self.narrow.is_some();
        let link = self.link(from, to);
        // What a lost connection had not carried yet is lost with it.
        if link.era != era && (fragile || narrow) {
            return;
        }
        if link.cut {
            link.held.push(Flight { from, to, to_life, era, fragile, message });
            return;
        }
        self.ledger.on_arrival(to, from, &message);
        let from_disk = self.hosts[from].disk_uuid;
        self.put(to, Input::Peer { from: NodeId(from as u64 + 1), from_disk, message });
    }

    /// `from` finds that its connections to `to` are gone.
    pub(super) fn link_lost(&mut self, from: usize, to: usize, era: u64) {
        let link = self.link(from, to);
        if !link.up || link.era != era {
            return;
        }
        link.up = false;
        link.era += 1;
        link.held.clear();
        let life = self.hosts[from].life;
        if self.hosts[from].process.is_some() {
            self.dial(from, life, to);
        }
    }

    /// The connection of a lane was made again.
    pub(super) fn lane_again(&mut self, from: usize, to: usize, era: u64, lane: usize) {
        let control = lane == 0;
        let link = self.link(from, to);
        if link.era == era {
            link.broken[lane] = false;
        }
        if link.up && link.era == era {
            let peer = NodeId(to as u64 + 1);
            if control {
                self.put(from, Input::PeerDown { peer, refused: false });
            }
            self.put(from, Input::PeerUp { peer });
        }
    }

    pub(super) fn dial(&mut self, from: usize, life: u64, to: usize) {
        if self.hosts[from].life != life
            || self.hosts[from].process.is_none()
            || self.link(from, to).up
        {
            return;
        }
        let peer = NodeId(to as u64 + 1);
        let open = !self.link(from, to).cut && !self.link(to, from).cut;
        let now = self.now;
        let (there, stalled, powered, to_life) = {
            let host = &self.hosts[to];
            (host.process.is_some(), host.stalled, host.powered, host.life)
        };
        if open && there && !stalled {
            let link = self.link(from, to);
            let again = link.to_life != 0;
            link.up = true;
            link.era += 1;
            link.broken = Default::default();
            link.free = Default::default();
            // A new connection does not wait for what a lost one has to carry.
            link.last = link.last.map(|last| last.min(now + LOST_WITH_US));
            link.to_life = to_life;
            if again {
                self.put(from, Input::PeerDown { peer, refused: false });
            }
            self.put(from, Input::PeerUp { peer });
            return;
        }
        let refused = open && !there && powered;
        self.put(from, Input::PeerDown { peer, refused });
        let after = self.rng.between(20_000, 250_000);
        self.at(after, Event::Dial { from, life, to });
    }

    pub(super) fn cut(&mut self, way: (usize, usize), us: u64) {
        if way.0 == way.1 {
            return;
        }
        self.link(way.0, way.1).cut = true;
        let era = self.link(way.0, way.1).era;
        // The sender's kernel gives up in the end.
        let gives_up = self.rng.between(100_000, 3_000_000);
        if gives_up < us {
            self.at(gives_up, Event::LinkLost { from: way.0, to: way.1, era });
        }
        self.at(us, Event::Uncut { way });
    }

    pub(super) fn uncut(&mut self, way: (usize, usize)) {
        let link = self.link(way.0, way.1);
        link.cut = false;
        for flight in std::mem::take(&mut link.held) {
            self.fly(flight);
        }
    }
}

/// Something is decided by it, and it names what it acts on: it may come late, out of order, or twice.
fn decides(message: &PeerMessage) -> bool {
    matches!(
        message.kind,
        Some(
            Kind::Propose(_)
                | Kind::AdminForward(_)
                | Kind::PackTurn(_)
                | Kind::FenceRequest(_)
                | Kind::FenceReport(_)
        )
    )
}

/// The lanes of transactions: on the others nothing is long.
fn is_narrowed(lane: Lane) -> bool {
    matches!(lane, Lane::Live | Lane::Bulk)
}
