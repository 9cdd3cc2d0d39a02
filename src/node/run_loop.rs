//! The core's thread: takes what happened, steps the core, hands out what is to be done.
//!
//! Everything that waits is stepped before anything is handed out, so that what belongs together (appends that came
//! while the last ones were synced, say) travels together. Nothing in here blocks but the wait for the next input.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use slog::{Logger, debug, warn};

use super::core::io::{Action, Input};
use super::ears::Ears;
use crate::types::Now;

/// A thread that wakes this long after its deadline has been away (a stopped process, a suspended machine): what came
/// meanwhile is let in first, so that a peer isn't called silent for words that lie unread.
const AWAY: Duration = Duration::from_millis(200);
const CATCH_UP: Duration = Duration::from_millis(10);
/// A step that takes longer is worth a line: meanwhile nothing else happens on this node.
const SLOW_STEP: Duration = Duration::from_millis(100);
/// One that clients can feel, for those who look for it.
const FELT_STEP: Duration = Duration::from_millis(5);

/// What the loop drives: the core, or a test's stand-in.
pub trait Machine {
    fn step(&mut self, now: Now, input: Input, out: &mut Vec<Action>);
    /// When to step a `Tick`, on the clock of `Now::mono_us`; `u64::MAX`: never.
    fn deadline(&self) -> u64;
}

/// Where actions go.
pub trait Outlet<E> {
    fn dispatch(&mut self, action: Action) -> ControlFlow<E>;

    /// Nothing more comes for now: what was kept back, so that it travels together, goes out.
    fn flush(&mut self);
}

/// Keeps nothing back.
impl<E, F: FnMut(Action) -> ControlFlow<E>> Outlet<E> for F {
    fn dispatch(&mut self, action: Action) -> ControlFlow<E> {
        self(action)
    }

    fn flush(&mut self) {}
}

/// The clocks of this process.
#[derive(Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            // Never 0: a machine may use 0 for "not yet".
            mono_us: 1 + self.start.elapsed().as_micros() as u64,
            wall_us: wall.as_micros() as u64,
        }
    }
}

/// Runs until `outlet` breaks, or until nobody can feed any more.
pub fn run<M: Machine, E>(
    machine: &mut M,
    clock: Clock,
    ears: &mut Ears,
    log: &Logger,
    outlet: &mut impl Outlet<E>,
) -> Option<E> {
    let (mut inputs, mut out) = (Vec::new(), Vec::new());
    loop {
        let deadline = machine.deadline();
        let wait = Duration::from_micros(deadline.saturating_sub(clock.now().mono_us));
        if !ears.hear(wait, &mut inputs) {
            return None;
        }
        let overdue = Duration::from_micros(clock.now().mono_us.saturating_sub(deadline));
        if overdue > AWAY {
            std::thread::sleep(CATCH_UP);
            ears.hear(Duration::ZERO, &mut inputs);
        }
        for input in inputs.drain(..) {
            step(machine, clock, input, &mut out, log);
        }
        if clock.now().mono_us >= machine.deadline() {
            step(machine, clock, Input::Tick, &mut out, log);
        }
        for action in out.drain(..) {
            if let ControlFlow::Break(end) = outlet.dispatch(action) {
                outlet.flush();
                return Some(end);
            }
        }
        outlet.flush();
    }
}

fn step<M: Machine>(
    machine: &mut M,
    clock: Clock,
    input: Input,
    out: &mut Vec<Action>,
    log: &Logger,
) {
    let now = clock.now();
    let kind = kind(&input);
    machine.step(now, input, out);
    let took = Duration::from_micros(clock.now().mono_us.saturating_sub(now.mono_us));
    let took_ms = took.as_millis() as u64;
    if took > SLOW_STEP {
        warn!(log, "the core was busy with one input"; "input" => kind, "took_ms" => took_ms);
    } else if took > FELT_STEP {
        debug!(log, "the core was busy with one input"; "input" => kind, "took_ms" => took_ms);
    }
}

fn kind(input: &Input) -> &'static str {
    match input {
        Input::Tick => "tick",
        Input::Peer { .. } => "peer message",
        Input::PeerUp { .. } => "peer up",
        Input::PeerDown { .. } => "peer down",
        Input::ClientOpened { .. } => "client opened",
        Input::ClientData { .. } => "client data",
        Input::ClientDrained { .. } => "client drained",
        Input::ClientClosed { .. } => "client closed",
        Input::Admin { .. } => "admin request",
        Input::DiskDone { .. } => "disk done",
        Input::RaftDone { .. } => "raft done",
        Input::JobProgress { .. } => "job progress",
        Input::JobDone { .. } => "job done",
        Input::Stop => "stop",
    }
}

#[cfg(test)]
mod tests {
    use super::super::ears::Feed;
    use super::*;
    use crate::types::{ConnId, NodeId};

    /// Notes what it is given; ends on `Stop`.
    #[derive(Default)]
    struct Notes {
        seen: Vec<&'static str>,
        tick_at: Option<u64>,
        tick_was_due: bool,
    }

    impl Machine for Notes {
        fn step(&mut self, now: Now, input: Input, out: &mut Vec<Action>) {
            self.seen.push(kind(&input));
            match input {
                Input::Tick => {
                    let due = self.tick_at.take().expect("no tick was wanted");
                    self.tick_was_due = now.mono_us >= due;
                    out.push(Action::Exit { reason: "tick".into(), failed: false });
                }
                Input::Stop => out.push(Action::Exit { reason: "stop".into(), failed: false }),
                Input::ClientOpened { conn, .. } => {
                    let reason = String::new();
                    out.push(Action::ClientClose { conn, reason, limit: None });
                }
                _ => {}
            }
        }

        fn deadline(&self) -> u64 {
            self.tick_at.unwrap_or(u64::MAX)
        }
    }

    fn log() -> Logger {
        Logger::root(slog::Discard, slog::o!())
    }

    fn until_exit(machine: &mut Notes, inputs: &mut Ears) -> Option<String> {
        let mut outlet = |action| match action {
            Action::Exit { reason, .. } => ControlFlow::Break(reason),
            _ => ControlFlow::Continue(()),
        };
        run(machine, Clock::start(), inputs, &log(), &mut outlet)
    }

    #[test]
    fn a_tick_comes_at_the_deadline_and_not_before() {
        let (_feed, mut inputs) = Feed::channel().unwrap();
        let mut machine = Notes { tick_at: Some(20_000), ..Notes::default() };
        assert_eq!(until_exit(&mut machine, &mut inputs).as_deref(), Some("tick"));
        assert!(machine.tick_was_due);
    }

    #[test]
    fn what_waits_is_stepped_before_a_deadline_is_judged() {
        let (feed, mut inputs) = Feed::channel().unwrap();
        feed.put(Input::PeerUp { peer: NodeId(2) });
        feed.put(Input::PeerUp { peer: NodeId(3) });
        let mut machine = Notes { tick_at: Some(0), ..Notes::default() };
        until_exit(&mut machine, &mut inputs);
        assert_eq!(machine.seen, ["peer up", "peer up", "tick"]);
    }

    #[test]
    fn a_batch_is_handed_out_together() {
        let (feed, mut inputs) = Feed::channel().unwrap();
        let conn = ConnId(1);
        feed.put(Input::ClientOpened { conn, address: String::new() });
        feed.put(Input::ClientClosed { conn });
        feed.put(Input::Stop);
        let mut machine = Notes::default();
        assert_eq!(until_exit(&mut machine, &mut inputs).as_deref(), Some("stop"));
        assert_eq!(machine.seen, ["client opened", "client closed", "stop"]);
    }

    #[test]
    fn the_loop_ends_when_nobody_can_feed() {
        let (feed, mut inputs) = Feed::channel().unwrap();
        drop(feed);
        assert_eq!(until_exit(&mut Notes::default(), &mut inputs), None);
    }
}
