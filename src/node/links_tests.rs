use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use tokio::net::TcpListener;

use super::*;
use crate::config;
use crate::durus;
use crate::node::limits::Limits;
use crate::proto::control::Beat;
use crate::proto::control::peer_message::Kind;

const SOON: Duration = Duration::from_secs(10);
const SMALL: usize = 4 << 10;

/// A connection that takes little at once, and its other end.
async fn narrow() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    set_socket_recv_buffer_size(&listener, SMALL).unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    set_socket_send_buffer_size(&stream, SMALL).unwrap();
    (stream, listener.accept().await.unwrap().0)
}

fn link(gate: &Arc<Gate>) -> (Link, UnboundedReceiver<Queued>) {
    let (queue, queued) = unbounded_channel();
    let config = config::Limits {
        clients: durus::Limits::default(),
        fetch_bytes_per_s_max: 0,
        peer_queue_bytes_max: gate.queued_bytes_max,
    };
    let limits = Limits::new(&config, Logger::root(slog::Discard, slog::o!()));
    let (round, round_era) = (BytesMut::new(), 0);
    let (peer, lane, gate) = (NodeId(2), Lane::Control, gate.clone());
    (Link { queue, gate, peer, lane, limits, round, round_era }, queued)
}

fn beat(suspect: String) -> PeerMessage {
    PeerMessage { kind: Some(Kind::Beat(Box::new(Beat { suspect, ..Beat::default() }))) }
}

/// Found by reading: the control lane fails, and what waits on the others is dropped, whose connections may live. What was
/// left of a message that had been begun was dropped, too, and the next one went on inside it.
#[tokio::test]
async fn a_message_that_was_begun_is_finished_whatever_its_era() {
    let (stream, mut other_end) = narrow().await;
    let stream = Arc::new(stream);
    let gate = Arc::new(Gate::new(1 << 20));
    let (mut link, mut queued) = link(&gate);
    *gate.stream() = Some(stream.clone());
    link.send(beat("x".repeat(ROUND_BYTES - 1000)));
    link.flush();
    let left = gate.queued_bytes.load(Ordering::Acquire);
    assert!(0 < left && left < ROUND_BYTES - 1000, "{left} bytes are left");
    link.send(beat("dropped".into()));
    link.flush();
    gate.new_era();
    link.send(beat("next".into()));
    link.flush();
    drop(link);
    let (end, mut heard) = (write_queued(&mut queued, &gate, &stream), Vec::new());
    let hears = async {
        let mut frames = FrameReader::new(&mut other_end);
        while let Some(frame) = frames.next(1 << 20).await.unwrap() {
            let message: PeerMessage = frame::decode("message", frame).unwrap();
            let Some(Kind::Beat(beat)) = message.kind else { panic!("{message:?}") };
            heard.push(beat.suspect.len());
        }
    };
    let both = timeout(SOON, async { tokio::join!(end, hears) });
    assert!(matches!(both.await.unwrap().0, End::Finished));
    assert_eq!(heard, [ROUND_BYTES - 1000, "next".len()]);
}

/// It is of no use to any other connection.
#[tokio::test]
async fn what_is_left_of_a_message_is_not_sent_on_another_connection() {
    let gate = Arc::new(Gate::new(1 << 20));
    let (mut link, mut queued) = link(&gate);
    let (lost, _its_end) = narrow().await;
    *gate.stream() = Some(Arc::new(lost));
    link.send(beat("x".repeat(ROUND_BYTES - 1000)));
    link.flush();
    assert!(gate.queued_bytes.load(Ordering::Acquire) > 0);
    *gate.stream() = None;
    gate.new_era();
    link.send(beat("next".into()));
    link.flush();
    drop(link);
    let (stream, mut other_end) = narrow().await;
    let end = write_queued(&mut queued, &gate, &Arc::new(stream)).await;
    assert!(matches!(end, End::Finished));
    let frame = FrameReader::new(&mut other_end).next(1 << 20).await.unwrap().unwrap();
    let wanted = beat("next".into());
    assert_eq!(frame::decode::<PeerMessage>("message", frame).unwrap(), wanted);
}
