use super::*;
use crate::types::{Chain, Epoch};

const LONG: u64 = 10 << 20;

fn pacing() -> Pacing {
    Pacing { window_start: 1000, window_min: 1000, window_max: 1000, ..Pacing::default() }
}

fn tip(seq: u64) -> Tip {
    Tip { epoch: Epoch(1), seq: Seq(seq), offset: seq * 100, chain: Chain([seq as u8; 20]) }
}

/// The same place with a long transaction before it.
fn long_tip(seq: u64) -> Tip {
    Tip { offset: (seq - 1) * 100 + LONG, ..tip(seq) }
}

fn at(ms: u64) -> Now {
    Now { mono_us: ms * 1000, wall_us: 0 }
}

fn follower() -> Follower {
    Follower::new(tip(5), pacing(), at(0))
}

fn plan(slave: &mut Follower, tip: Tip, committed: u64, ms: u64) -> Option<Plan> {
    let end_of = |seq: Seq| Some(if seq == tip.seq { tip.offset } else { seq.0 * 100 });
    slave.plan(tip, Seq(committed), end_of, at(ms))
}

fn said(durable: u64, written: u64, number: u64) -> Said {
    Said { durable: tip(durable), written: tip(written), number, incoming: 0 }
}

fn whole_bytes(plan: &Plan) -> u64 {
    match plan.brings {
        Brings::Whole { bytes_max, .. } => bytes_max,
        _ => 0,
    }
}

/// It has answered the first probe, and has everything up to 5.
fn streamed_to() -> Follower {
    let mut slave = follower();
    plan(&mut slave, tip(5), 5, 0).unwrap();
    slave.sent(tip(5), 0, Seq(5), at(0));
    slave.matched(said(5, 5, 1), at(0));
    slave.commit_sent = Seq(5);
    slave
}

#[test]
fn a_slave_is_probed_before_it_is_streamed_to() {
    let mut slave = follower();
    let probe = plan(&mut slave, tip(9), 4, 0).unwrap();
    let bytes = PROBE_BYTES.min(slave.window.whole_max());
    assert_eq!((probe.prev, probe.want_reply, whole_bytes(&probe)), (tip(5), true, bytes));
    slave.sent(tip(9), 400, Seq(4), at(0));
    assert_eq!(plan(&mut slave, tip(9), 4, 50), None, "one probe at a time");
    let again = plan(&mut slave, tip(9), 4, 100).expect("repeated after silence");
    assert_eq!(again.brings, Brings::Piece { offset: 0, bytes: 0 }, "what comes next is named");
    slave.sent(tip(5), 0, Seq(4), at(100));
    assert_eq!(plan(&mut slave, tip(9), 4, 250), None, "ever more seldom");
    slave.matched(said(6, 6, 1), at(251));
    let next = plan(&mut slave, tip(9), 4, 251).unwrap();
    assert_eq!((next.prev, next.want_reply), (tip(6), false));
}

#[test]
fn a_stream_goes_on_without_waiting_and_stops_at_the_window() {
    let mut slave = streamed_to();
    slave.sent(tip(6), 990, Seq(5), at(1));
    let next = plan(&mut slave, tip(8), 5, 1).unwrap();
    assert_eq!((next.prev, whole_bytes(&next)), (tip(6), 10));
    slave.sent(tip(7), 10, Seq(5), at(1));
    assert_eq!(plan(&mut slave, tip(8), 5, 1), None);
    let news = plan(&mut slave, tip(8), 6, 1).unwrap();
    assert_eq!(news.brings, Brings::Nothing, "news of a commit passes a full window");
    slave.matched(said(6, 6, 2), at(2));
    assert_eq!(plan(&mut slave, tip(8), 5, 2).unwrap().prev, tip(7));
}

#[test]
fn what_is_written_there_is_not_sent_again_and_is_still_waited_for() {
    let mut slave = follower();
    slave.sent(tip(5), 0, Seq(0), at(0));
    slave.matched(said(5, 8, 1), at(0));
    assert_eq!(plan(&mut slave, tip(8), 0, 1), None);
    assert_eq!(plan(&mut slave, tip(9), 0, 1).unwrap().prev, tip(8));
    slave.sent(tip(9), 100, Seq(0), at(1));
    assert!(slave.deadline_us().unwrap() >= STALL_MS * 1000);
    slave.matched(said(9, 9, 2), at(2));
    assert_eq!((slave.deadline_us(), slave.in_flight_bytes), (None, 0));
}

#[test]
fn silence_and_mismatch_lead_back_to_the_newest_common_place() {
    let mut slave = streamed_to();
    slave.sent(tip(9), 100, Seq(5), at(0));
    let stalled = STALL_MS + 100;
    assert_eq!(plan(&mut slave, tip(9), 5, stalled).unwrap().prev, tip(5));
    slave.sent(tip(9), 100, Seq(5), at(stalled));
    assert!(slave.mismatched(tip(3), 3));
    assert_eq!(plan(&mut slave, tip(9), 5, stalled).unwrap().prev, tip(3));
    slave.sent(tip(9), 100, Seq(5), at(stalled));
    slave.mismatched(tip(3), 4);
    assert_eq!(plan(&mut slave, tip(9), 5, stalled + 1), None, "no storm of probes");
    assert!(!slave.mismatched(tip(2), 2), "a late refusal of what was sent before the probe");
}

/// Sends all that goes; offsets and bytes of the pieces.
fn pieces(slave: &mut Follower, tip: Tip, ms: u64) -> Vec<(u64, u64)> {
    let mut sent = Vec::new();
    while let Some(Plan { brings: Brings::Piece { offset, bytes }, .. }) = plan(slave, tip, 5, ms) {
        slave.sent_piece(tip, offset, bytes, Seq(5), at(ms));
        sent.push((offset, bytes));
        assert!(sent.len() < 1000);
    }
    sent
}

fn has(incoming: u64, number: u64) -> Said {
    Said { incoming, ..said(5, 5, number) }
}

fn with_pieces() -> Follower {
    let pacing = Pacing { piece_min: 250, piece_max: 250, ..pacing() };
    let mut slave = Follower { window: Window::new(pacing, at(0)), ..streamed_to() };
    assert_eq!(pieces(&mut slave, long_tip(6), 0), [(0, 250), (250, 250), (500, 250), (750, 250)]);
    slave
}

#[test]
fn a_long_transaction_goes_in_pieces_as_they_are_answered() {
    let mut slave = with_pieces();
    slave.matched(has(250, 2), at(10));
    assert_eq!(pieces(&mut slave, long_tip(6), 10), [(1000, 250)]);
    slave.matched(has(750, 4), at(20));
    assert_eq!(pieces(&mut slave, long_tip(6), 20), [(1250, 250), (1500, 250)]);
    assert_eq!(slave.moved_bytes(), 750);
}

#[test]
fn what_follows_a_gap_is_sent_again_once() {
    let mut slave = with_pieces();
    // The second piece was lost with its connection; the third came by a new one.
    slave.matched(has(250, 2), at(10));
    slave.matched(has(250, 4), at(11));
    let again = pieces(&mut slave, long_tip(6), 11);
    assert_eq!(again, [(250, 250), (500, 250), (750, 250), (1000, 250)]);
    slave.matched(has(250, 5), at(12));
    assert_eq!(pieces(&mut slave, long_tip(6), 12), [], "of what was sent before");
    slave.matched(has(500, 6), at(13));
    assert_eq!(pieces(&mut slave, long_tip(6), 13), [(1250, 250)]);
}

/// Replies to the pieces of a broken stream come while the probe is behind them on the line.
#[test]
fn what_is_on_its_way_before_a_probe_is_not_sent_again() {
    let mut slave = with_pieces();
    let ms = STALL_MS_MAX;
    let probe = plan(&mut slave, long_tip(6), 5, ms).unwrap();
    assert_eq!((probe.number, probe.brings), (6, Brings::Piece { offset: 0, bytes: 0 }));
    slave.sent_piece(long_tip(6), 0, 0, Seq(5), at(ms));
    slave.matched(has(250, 2), at(ms + 1));
    assert_eq!(plan(&mut slave, long_tip(6), 5, ms + 1), None);
    slave.matched(has(1000, 6), at(ms + 2));
    assert_eq!(pieces(&mut slave, long_tip(6), ms + 2)[0], (1000, 250));
}

#[test]
fn a_transfer_goes_on_where_an_earlier_epoch_left_it() {
    let mut slave = follower();
    let probe = plan(&mut slave, long_tip(6), 5, 0).unwrap();
    assert_eq!(probe.brings, Brings::Piece { offset: 0, bytes: 0 });
    slave.sent_piece(long_tip(6), 0, 0, Seq(5), at(0));
    slave.matched(has(LONG - 300, 1), at(1));
    assert_eq!(pieces(&mut slave, long_tip(6), 1), [(LONG - 300, 300)]);
    // All of it was there and did not verify: it begins anew.
    slave.matched(has(0, 2), at(2));
    assert!(plan(&mut slave, long_tip(6), 5, 2).unwrap().want_reply);
    slave.sent_piece(long_tip(6), 0, 0, Seq(5), at(2));
    slave.matched(has(0, 3), at(3));
    assert_eq!(pieces(&mut slave, long_tip(6), 3)[0].0, 0);
}

#[test]
fn the_last_piece_is_followed_by_what_comes_next() {
    let mut slave = follower();
    slave.sent_piece(long_tip(6), 0, 0, Seq(5), at(0));
    slave.matched(has(LONG, 1), at(1));
    assert_eq!(pieces(&mut slave, long_tip(6), 1), [(LONG, 0)], "it is told to take it");
    let seventh = Tip { offset: long_tip(6).offset + 100, ..tip(7) };
    let end_of = |_| Some(seventh.offset);
    let next = slave.plan(seventh, Seq(5), end_of, at(1)).unwrap();
    assert_eq!((next.prev, whole_bytes(&next)), (long_tip(6), 999));
    slave.sent(seventh, 100, Seq(5), at(1));
    let written = Said { durable: tip(5), written: long_tip(6), number: 2, incoming: 0 };
    slave.matched(written, at(2));
    assert!(!slave.is_sent_pieces() && slave.is_streaming());
    let all = Said { durable: seventh, written: seventh, number: 3, incoming: 0 };
    slave.matched(all, at(3));
    assert_eq!((slave.acked(), slave.in_flight_bytes), (seventh, 0));
}
