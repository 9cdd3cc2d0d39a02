//! What this node hears of the others.
//!
//! A process that is gone shows at once: its connections close and its port refuses. A machine that is gone, or a
//! process that is stopped, shows by silence. What the others see of a node comes with their beats, so that no single
//! node's opinion decides.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::proto::control::{Beat, PeerView};
use crate::types::{NodeId, Now};

/// A beat older than this says nothing about third nodes any more.
const VIEW_VALID_MS: u64 = 1000;

#[derive(Debug, Default)]
pub struct Peer {
    pub connected: bool,
    /// Its port refuses connections: the process is gone.
    pub refused: bool,
    /// When anything was heard of it; the start of this process if nothing was.
    pub heard: Now,
    pub beat: Option<(Beat, Now)>,
    /// Greatest epoch it said it had promised durably.
    pub promised: u64,
    /// Greatest seq it had durably in the history of an epoch's master: (epoch, seq).
    pub acked: (u64, u64),
}

#[derive(Debug)]
pub struct Health {
    peers: BTreeMap<NodeId, Peer>,
}

/// How a node looks to one observer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    Alive,
    Refused,
    Silent { ms: u64 },
}

impl Health {
    pub fn new(peers: impl IntoIterator<Item = NodeId>, now: Now) -> Health {
        let fresh = |id| (id, Peer { heard: now, ..Peer::default() });
        Health { peers: peers.into_iter().map(fresh).collect() }
    }

    pub fn peer(&self, id: NodeId) -> Option<&Peer> {
        self.peers.get(&id)
    }

    pub fn beat(&self, id: NodeId) -> Option<&Beat> {
        self.peers.get(&id)?.beat.as_ref().map(|(beat, _)| beat)
    }

    /// Anything came from the peer. That its port refuses still stands: this may be the last word of a dead process,
    /// and a new process is told apart by the connection to it.
    pub fn on_heard(&mut self, id: NodeId, now: Now) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.heard = now;
        }
    }

    pub fn on_beat(&mut self, id: NodeId, beat: Beat, now: Now) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.beat = Some((beat, now));
        }
    }

    /// It has promised `epoch` durably; the caller has made sure that this can be true.
    pub fn on_promised(&mut self, id: NodeId, epoch: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.promised = peer.promised.max(epoch);
        }
    }

    /// It has `seq` durably, in the history of `epoch`'s master; the caller has made sure of that by its chain.
    pub fn on_acked(&mut self, id: NodeId, epoch: u64, seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.promised = peer.promised.max(epoch);
            peer.acked = peer.acked.max((epoch, seq));
        }
    }

    /// True if that is news.
    pub fn on_up(&mut self, id: NodeId) -> bool {
        match self.peers.get_mut(&id) {
            Some(peer) => {
                let news = !peer.connected || peer.refused;
                peer.connected = true;
                peer.refused = false;
                news
            }
            None => false,
        }
    }

    /// True if that is news.
    pub fn on_down(&mut self, id: NodeId, refused: bool) -> bool {
        match self.peers.get_mut(&id) {
            Some(peer) => {
                let news = peer.connected || peer.refused != refused;
                peer.connected = false;
                peer.refused = refused;
                news
            }
            None => false,
        }
    }

    /// How the peer looks from here.
    pub fn look(&self, id: NodeId, silence_ms: u64, now: Now) -> Look {
        match self.peers.get(&id) {
            Some(peer) if peer.refused => Look::Refused,
            Some(peer) if now.since_ms(peer.heard) >= silence_ms => {
                Look::Silent { ms: now.since_ms(peer.heard) }
            }
            _ => Look::Alive,
        }
    }

    /// For our own beat.
    pub fn views(&self, now: Now) -> Vec<PeerView> {
        let view = |(id, peer): (&NodeId, &Peer)| PeerView {
            node: id.0,
            refused: peer.refused,
            silent_ms: now.since_ms(peer.heard),
            promised: peer.promised,
            acked_epoch: peer.acked.0,
            acked_seq: peer.acked.1,
            disk_uuid: Bytes::new(),
        };
        self.peers.iter().map(view).collect()
    }

    /// How `whom` looks to `observer`, by its last beat; `None` if that is too old to tell.
    fn look_of(&self, observer: NodeId, whom: NodeId, silence_ms: u64, now: Now) -> Option<Look> {
        let (beat, at) = self.peers.get(&observer)?.beat.as_ref()?;
        let age_ms = now.since_ms(*at);
        if age_ms > VIEW_VALID_MS {
            return None;
        }
        let view = beat.views.iter().find(|view| view.node == whom.0)?;
        let silent_ms = view.silent_ms;
        Some(match view.refused {
            true => Look::Refused,
            false if silent_ms >= silence_ms => Look::Silent { ms: silent_ms },
            false => Look::Alive,
        })
    }

    /// How many of `voters` (this node, `me`, among them) see `whom` refuse, and how many see it refuse or be silent.
    pub fn count(
        &self,
        me: NodeId,
        whom: NodeId,
        voters: &[NodeId],
        silence_ms: u64,
        now: Now,
    ) -> Opinions {
        let mut opinions = Opinions::default();
        for &voter in voters.iter().filter(|voter| **voter != whom) {
            let look = match voter == me {
                true => Some(self.look(whom, silence_ms, now)),
                false => self.look_of(voter, whom, silence_ms, now),
            };
            match look {
                Some(Look::Refused) => opinions.refused += 1,
                Some(Look::Silent { ms }) => {
                    opinions.silent += 1;
                    opinions.silent_ms = opinions.silent_ms.max(ms);
                }
                _ => {}
            }
        }
        opinions
    }
}

/// What the voters think of one of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Opinions {
    pub refused: usize,
    pub silent: usize,
    pub silent_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn at(ms: u64) -> Now {
        Now { mono_us: ms * 1000, wall_us: 0 }
    }

    fn beat_about(node: u64, refused: bool, silent_ms: u64) -> Beat {
        Beat {
            views: vec![PeerView { node, refused, silent_ms, ..PeerView::default() }],
            ..Beat::default()
        }
    }

    #[test]
    fn opinions_are_counted_and_old_ones_are_not() {
        let mut health = Health::new([NodeId(2), NodeId(3)], at(0));
        health.on_up(NodeId(3));
        assert!(health.on_down(NodeId(3), true));
        assert!(!health.on_down(NodeId(3), true), "no news");
        let alone = health.count(NodeId(1), NodeId(3), &IDS, 500, at(10));
        assert_eq!((alone.refused, alone.silent), (1, 0));
        health.on_beat(NodeId(2), beat_about(3, true, 10), at(10));
        assert_eq!(health.count(NodeId(1), NodeId(3), &IDS, 500, at(20)).refused, 2);
        assert_eq!(health.count(NodeId(1), NodeId(3), &IDS, 500, at(1200)).refused, 1);
    }

    #[test]
    fn silence_is_seen_and_any_word_ends_it() {
        let mut health = Health::new([NodeId(2), NodeId(3)], at(0));
        health.on_beat(NodeId(2), beat_about(3, false, 700), at(690));
        let opinions = health.count(NodeId(1), NodeId(3), &IDS, 500, at(700));
        assert_eq!((opinions.silent, opinions.silent_ms), (2, 700));
        health.on_heard(NodeId(3), at(701));
        assert_eq!(health.look(NodeId(3), 500, at(702)), Look::Alive);
    }
}
