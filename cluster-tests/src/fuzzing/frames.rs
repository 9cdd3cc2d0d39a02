//! Bytes of a connection between nodes: frames, hello, and every message by itself.
//!
//! The stream is cut where the script says, and the frames found must be those that a reader of a few lines finds. Each
//! frame is then taken for every message there is: decoded, converted, applied to a replicated state that has a history.

use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use packmaster::config::{Config, EXAMPLE};
use packmaster::control::State;
use packmaster::node::core::io::{LANES, SMALL_COMMIT_BYTES_MAX, lane};
use packmaster::node::frame::{self, FrameError, FrameReader};
use packmaster::node::hello::{Me, Visitor};
use packmaster::proto::admin::{AdminReply, AdminRequest};
use packmaster::proto::control::peer_message::Kind;
use packmaster::proto::control::{Command, Hello, PeerMessage, RaftMessage};
use packmaster::raft::convert;
use packmaster::types::{BootId, NodeId};
use prost::Message;
use tokio::io::{AsyncRead, ReadBuf};

use super::recorded::{members, recorded};
use super::script::Script;

/// Longest frame here.
const MAX: u32 = 2000;

pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let cut = script.byte();
    let stream = script.rest();
    let frames = read_all(stream, cut);
    let mut state = known_state().clone();
    for frame in &frames {
        check_hello(frame);
        check_peer(frame);
        check_admin(frame);
        check_raft(frame);
        check_state(frame);
        state.apply_bytes(state.applied() + 1, frame);
        let again = State::decode(&state.encode()).expect("our own state");
        assert_eq!(again.encode(), state.encode());
    }
}

/// A stream that comes in pieces of a few bytes.
struct Pieces<'a> {
    rest: &'a [u8],
    cut: u8,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let len = usize::from(self.cut).max(1).min(self.rest.len()).min(out.remaining());
        let (piece, rest) = self.rest.split_at(len);
        out.put_slice(piece);
        self.rest = rest;
        self.cut = self.cut.rotate_left(3) ^ 0x15;
        Poll::Ready(Ok(()))
    }
}

fn read_all(stream: &[u8], cut: u8) -> Vec<Bytes> {
    let mut reader = FrameReader::new(Pieces { rest: stream, cut });
    let mut context = Context::from_waker(Waker::noop());
    let mut found = Vec::new();
    let end = loop {
        let Poll::Ready(next) = pin!(reader.next(MAX)).poll(&mut context) else {
            panic!("it waits, and everything is there")
        };
        match next {
            Ok(Some(frame)) => found.push(frame),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let (wanted, rest) = split(stream);
    assert_eq!(found, wanted);
    match end {
        Ok(()) => assert!(rest.is_empty()),
        Err(FrameError::Truncated { got }) => assert_eq!(got, rest.len()),
        Err(FrameError::TooLong { len, .. }) => {
            assert!(len > MAX && rest[..4] == len.to_be_bytes());
        }
        Err(error) => panic!("{error}"),
    }
    found
}

/// The frames that are there, and what follows them.
fn split(mut stream: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut frames = Vec::new();
    while let Some((head, rest)) = stream.split_first_chunk::<4>() {
        let len = u32::from_be_bytes(*head);
        if len > MAX || rest.len() < len as usize {
            break;
        }
        let (frame, after) = rest.split_at(len as usize);
        frames.push(frame);
        stream = after;
    }
    (frames, stream)
}

fn check_hello(frame: &Bytes) {
    let Ok(hello) = frame::decode::<Hello>("hello", frame.clone()) else { return };
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let config =
        CONFIG.get_or_init(|| Config::parse(EXAMPLE, "example", &[]).expect("the example"));
    let (node, boot) = (NodeId(1), BootId(7));
    let me = Me { cluster: config.cluster.clone(), node, boot, disk_uuid: [7; 16] };
    match me.admit(&hello, config) {
        Ok(Visitor::Peer { node, disk_uuid, .. }) => {
            assert!(node.0 == 2 || node.0 == 3, "{node} was let in");
            assert_eq!((hello.cluster.as_str(), hello.node), (me.cluster.as_str(), node.0));
            assert_eq!(hello.disk_uuid[..], disk_uuid);
            assert_ne!(hello.boot, 0);
        }
        Ok(Visitor::Admin) => assert_eq!(hello.node, 0),
        Err(why) => assert!(why.len() < 1000, "a stranger's words in our log: {why}"),
    }
    let answers = me.check_answer(&hello, &config.members[1]).is_ok();
    assert!(!answers || (hello.node == 2 && hello.cluster == me.cluster));
}

fn check_peer(frame: &Bytes) {
    let Ok(message) = frame::decode::<PeerMessage>("message", frame.clone()) else { return };
    let by = lane(&message, SMALL_COMMIT_BYTES_MAX);
    assert_eq!(LANES[by as usize], by, "the lane's own number");
    let mut out = BytesMut::new();
    frame::encode(&message, &mut out);
    assert_eq!(PeerMessage::decode(&out[4..]).expect("just encoded"), message);
    if let Some(Kind::Raft(message)) = message.kind {
        check_conversion(&message);
    }
}

fn check_admin(frame: &Bytes) {
    if let Ok(request) = frame::decode::<AdminRequest>("request", frame.clone()) {
        assert_eq!(AdminRequest::decode(&request.encode_to_vec()[..]), Ok(request));
    }
    if let Ok(reply) = frame::decode::<AdminReply>("reply", frame.clone()) {
        assert_eq!(AdminReply::decode(&reply.encode_to_vec()[..]), Ok(reply));
    }
}

fn check_raft(frame: &Bytes) {
    if let Ok(message) = frame::decode::<RaftMessage>("message", frame.clone()) {
        check_conversion(&message);
    }
}

/// What is let through comes back as it was, but for the order of a snapshot's voters.
fn check_conversion(message: &RaftMessage) {
    let voters = [1, 2, 3];
    let Ok(converted) = convert::message_to_raft(message, &voters) else { return };
    assert!(message.term > 0 && message.entries.iter().all(|entry| entry.term <= message.term));
    let mut wanted = message.clone();
    if let Some(state) = wanted.snapshot.as_mut().and_then(|it| it.conf_state.as_mut()) {
        state.voters.sort_unstable();
        state.auto_leave = false;
    }
    assert_eq!(convert::message_from_raft(&converted), wanted);
}

fn check_state(frame: &Bytes) {
    let Ok(state) = State::decode(frame) else { return };
    let encoded = state.encode();
    let mut state = State::decode(&encoded).expect("our own state");
    assert_eq!(state.encode(), encoded);
    if state.applied() > 1 << 62 {
        return;
    }
    // Whatever was taken for a state can be lived with.
    for (_, command) in &recorded().commands {
        let mut command = Command::decode(&command[..]).expect("a command");
        command.on_epoch = state.epoch().0;
        state.apply(state.applied() + 1, &command);
        State::decode(&state.encode()).expect("our own state");
    }
}

/// The replicated state of a cluster that has lived.
fn known_state() -> &'static State {
    static STATE: OnceLock<State> = OnceLock::new();
    STATE.get_or_init(|| {
        let mut state = State::new(members());
        for (index, command) in &recorded().commands {
            state.apply_bytes(*index, command);
        }
        assert!(state.is_open(), "a cluster without a master");
        state
    })
}
