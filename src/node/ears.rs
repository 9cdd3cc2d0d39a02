//! What the core hears: what threads and tasks bring, and the sockets that its own thread reads.
//!
//! Every thread that a message passes through must be woken, and on a machine that is mostly idle that is most of the time
//! an answer takes. So the core's thread waits for its queue and for its sockets at once, and reads what has come. It
//! writes short answers itself, too (`clients`, `links`); tasks accept, dial, and write what a socket does not take.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::core::io::Input;

/// Inputs of one round.
const ROUND_MAX: usize = 256;
/// Bytes that are read from one socket before the next has its turn.
const READ_BYTES: usize = 128 << 10;
const EVENTS_MAX: usize = 256;
const WAKER: Token = Token(usize::MAX);

/// A socket that the core's thread reads.
pub trait Source: Send {
    fn fd(&self) -> BorrowedFd<'_>;

    /// Reads once, into `scratch`. `ending`: the other side has said its last word, which only the end itself is sure of.
    fn hear(&mut self, scratch: &mut [u8], ending: bool, out: &mut Vec<Input>) -> Heard;
}

/// What a source is to be done with.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// There may be more.
    More,
    /// All of it for now, or it is to be left alone until `Feed::resume`.
    Enough,
    /// It is not asked again, and its owner knows.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(u64);

enum Fed {
    Input(Input),
    Attach(SourceId, Box<dyn Source>),
    Detach(SourceId),
    Resume(SourceId),
}

/// Brings things to the core, from any thread or task; never waits. After the core's end they go nowhere.
#[derive(Clone)]
pub struct Feed {
    queue: Sender<Fed>,
    asleep: Arc<AtomicBool>,
    waker: Arc<Waker>,
    sources: Arc<AtomicU64>,
}

impl Feed {
    pub fn channel() -> io::Result<(Feed, Ears)> {
        let (queue, queued) = mpsc::channel();
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let asleep = Arc::new(AtomicBool::new(false));
        let feed = Feed { queue, asleep: asleep.clone(), waker, sources: Arc::default() };
        let ears = Ears {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            queued,
            asleep,
            sources: HashMap::new(),
            ready: VecDeque::new(),
            scratch: vec![0; READ_BYTES],
            busy_poll: Duration::ZERO,
            rests: Rests::default(),
        };
        Ok((feed, ears))
    }

    pub fn put(&self, input: Input) {
        self.send(Fed::Input(input));
    }

    /// From now on the source is heard, after everything that was put before.
    pub fn attach(&self, source: Box<dyn Source>) -> Attached {
        let id = self.number();
        self.attach_as(id, source)
    }

    /// For a source that somebody has to know before it is heard.
    pub fn number(&self) -> SourceId {
        SourceId(self.sources.fetch_add(1, Ordering::Relaxed))
    }

    pub fn attach_as(&self, id: SourceId, source: Box<dyn Source>) -> Attached {
        self.send(Fed::Attach(id, source));
        Attached { id, feed: self.clone() }
    }

    /// After `Heard::Enough`: there may be more.
    pub fn resume(&self, id: SourceId) {
        self.send(Fed::Resume(id));
    }

    fn send(&self, fed: Fed) {
        // Fails only when the core has ended, and then nobody cares.
        let _ = self.queue.send(fed);
        // Pairs with the one in `Ears::sleep`: either this sees that the core sleeps, or the core sees this.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // Fails only when the core has ended.
            let _ = self.waker.wake();
        }
    }
}

/// A source's other end: dropping it ends the hearing, before anything that is put later.
pub struct Attached {
    id: SourceId,
    feed: Feed,
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.feed.send(Fed::Detach(self.id));
    }
}

pub struct Ears {
    poll: Poll,
    events: Events,
    queued: Receiver<Fed>,
    asleep: Arc<AtomicBool>,
    sources: HashMap<SourceId, Attendance>,
    /// Each once, in turn.
    ready: VecDeque<SourceId>,
    scratch: Vec<u8>,
    /// So long it looks before it sleeps; zero: never.
    busy_poll: Duration,
    rests: Rests,
}

/// How long there was nothing to do, lately.
#[derive(Default)]
struct Rests {
    /// In microseconds: the average, in which the last rest counts for an eighth.
    usual_us: u64,
}

impl Rests {
    /// The average is over about so many.
    const COUNTS: u64 = 8;
    /// One long rest among short ones is no end of them.
    const MAX_US: u64 = 1000;

    fn note(&mut self, rest: Duration) {
        let rest_us = (rest.as_micros() as u64).min(Rests::MAX_US);
        self.usual_us = ((Rests::COUNTS - 1) * self.usual_us + rest_us) / Rests::COUNTS;
    }

    /// Will looking that long find something, more often than not? A rest that was slept through has the time of the waking
    /// in it, hence the factor.
    fn end_within(&self, busy_poll: Duration) -> bool {
        u128::from(self.usual_us) < 2 * busy_poll.as_micros()
    }
}

struct Attendance {
    source: Box<dyn Source>,
    /// In `ready`.
    ready: bool,
    ending: bool,
}

impl Ears {
    /// From now on it looks for something to do for so long before it sleeps, while rests are short.
    pub fn set_busy_poll(&mut self, longest: Duration) {
        self.busy_poll = longest;
    }

    /// Waits until something has come, but not longer than `wait`, and appends what is to be stepped now. False: nobody can
    /// bring anything any more.
    pub fn hear(&mut self, wait: Duration, out: &mut Vec<Input>) -> bool {
        let fed = self.take_queued(out);
        let idle = out.is_empty() && self.ready.is_empty();
        if idle && !fed {
            return false;
        }
        if idle {
            self.rest(wait, out)
        } else {
            self.sleep(Duration::ZERO, out)
        }
        for event in &self.events {
            let id = SourceId(event.token().0 as u64);
            if let Some(attendance) = self.sources.get_mut(&id) {
                attendance.ending |= event.is_read_closed() || event.is_error();
                if !std::mem::replace(&mut attendance.ready, true) {
                    self.ready.push_back(id);
                }
            }
        }
        self.read(out);
        true
    }

    /// Nothing is to be done now: waits, awake at first if that is likely to be enough.
    fn rest(&mut self, wait: Duration, out: &mut Vec<Input>) {
        let began = Instant::now();
        let looks = wait > self.busy_poll && self.rests.end_within(self.busy_poll);
        if !(looks && self.look(began, out)) {
            self.sleep(wait, out);
        }
        self.rests.note(began.elapsed());
    }

    /// Looks again and again, for a moment. False: nothing has come.
    fn look(&mut self, began: Instant, out: &mut Vec<Input>) -> bool {
        while began.elapsed() < self.busy_poll {
            self.poll(Duration::ZERO);
            self.take_queued(out);
            if !self.events.is_empty() || !out.is_empty() || !self.ready.is_empty() {
                return true;
            }
            // On a machine with few processors, the one that this waits for may want this very one.
            std::thread::yield_now();
        }
        false
    }

    fn poll(&mut self, wait: Duration) {
        if let Err(error) = self.poll.poll(&mut self.events, Some(wait))
            && error.kind() != io::ErrorKind::Interrupted
        {
            panic!("epoll of the core's own sockets: {error}");
        }
    }

    /// What woke it up may have been queued: that comes before what the sockets say.
    fn sleep(&mut self, wait: Duration, out: &mut Vec<Input>) {
        let mut wait = wait;
        if !wait.is_zero() {
            self.asleep.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            self.take_queued(out);
            if !out.is_empty() || !self.ready.is_empty() {
                wait = Duration::ZERO;
            }
        }
        self.poll(wait);
        if self.asleep.swap(false, Ordering::Relaxed) || !self.events.is_empty() {
            self.take_queued(out);
        }
    }

    /// False if nobody can bring anything any more.
    fn take_queued(&mut self, out: &mut Vec<Input>) -> bool {
        while out.len() < ROUND_MAX {
            match self.queued.try_recv() {
                Ok(Fed::Input(input)) => out.push(input),
                Ok(Fed::Attach(id, source)) => self.attach(id, source),
                Ok(Fed::Detach(id)) => self.detach(id),
                Ok(Fed::Resume(id)) => {
                    if let Some(attendance) = self.sources.get_mut(&id)
                        && !std::mem::replace(&mut attendance.ready, true)
                    {
                        self.ready.push_back(id);
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn attach(&mut self, id: SourceId, source: Box<dyn Source>) {
        let fd = source.fd().as_raw_fd();
        let registered = self.poll.registry().register(
            &mut SourceFd(&fd),
            Token(id.0 as usize),
            Interest::READABLE,
        );
        // Out of memory, or of watches: a socket that is read in vain would be a client that waits for ever.
        registered.unwrap_or_else(|error| panic!("watch a socket: {error}"));
        self.sources.insert(id, Attendance { source, ready: true, ending: false });
        // What came before it was watched.
        self.ready.push_back(id);
    }

    fn detach(&mut self, id: SourceId) {
        if let Some(attendance) = self.sources.remove(&id) {
            // Fails only if the socket is not watched any more, and then that is what is wanted.
            let fd = attendance.source.fd().as_raw_fd();
            let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        }
    }

    /// One turn for everybody that is ready.
    fn read(&mut self, out: &mut Vec<Input>) {
        for _ in 0..self.ready.len() {
            if out.len() >= ROUND_MAX {
                return;
            }
            let id = self.ready.pop_front().expect("counted");
            let Some(attendance) = self.sources.get_mut(&id) else { continue };
            match attendance.source.hear(&mut self.scratch, attendance.ending, out) {
                Heard::More => self.ready.push_back(id),
                Heard::Enough => attendance.ready = false,
                Heard::Ended => self.detach(id),
            }
        }
    }
}

/// Reads once from a socket. Ok(0) is the end; None: nothing is there now.
pub fn read(fd: BorrowedFd<'_>, scratch: &mut [u8]) -> io::Result<Option<usize>> {
    match rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut *scratch)) {
        Ok(len) => Ok(Some(len)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ConnId;
    use bytes::Bytes;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    struct Lines(UnixStream);

    impl Source for Lines {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn hear(&mut self, scratch: &mut [u8], ending: bool, out: &mut Vec<Input>) -> Heard {
            match read(self.0.as_fd(), &mut scratch[..4]).unwrap() {
                None => Heard::Enough,
                Some(0) => Heard::Ended,
                Some(len) => {
                    let bytes = Bytes::copy_from_slice(&scratch[..len]);
                    out.push(Input::ClientData { conn: ConnId(1), bytes });
                    if len == 4 || ending { Heard::More } else { Heard::Enough }
                }
            }
        }
    }

    fn pair(feed: &Feed) -> (UnixStream, Attached) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (theirs, feed.attach(Box::new(Lines(ours))))
    }

    fn said(inputs: &[Input]) -> Vec<u8> {
        let bytes = inputs.iter().filter_map(|input| match input {
            Input::ClientData { bytes, .. } => Some(bytes.to_vec()),
            _ => None,
        });
        bytes.flatten().collect()
    }

    /// Until so many bytes were heard.
    fn hear(ears: &mut Ears, wanted: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let until = Instant::now() + LONG;
        while said(&out).len() < wanted {
            assert!(Instant::now() < until, "heard {:?}", said(&out));
            assert!(ears.hear(LONG, &mut out));
        }
        said(&out)
    }

    #[test]
    fn sockets_and_the_queue_are_waited_for_at_once() {
        let (feed, mut ears) = Feed::channel().unwrap();
        let (mut client, attached) = pair(&feed);
        client.write_all(b"early").unwrap();
        assert_eq!(hear(&mut ears, 5), b"early");
        // Woken by the socket, and by the queue.
        let late = std::thread::spawn(move || {
            std::thread::sleep(SHORT);
            client.write_all(b"0123456789").unwrap();
            std::thread::sleep(SHORT);
            feed.put(Input::Stop);
            (client, feed)
        });
        assert_eq!(hear(&mut ears, 10), b"0123456789");
        let mut out = Vec::new();
        while out.is_empty() {
            assert!(ears.hear(LONG, &mut out));
        }
        assert!(matches!(out[..], [Input::Stop]));
        let (mut client, feed) = late.join().unwrap();
        // After the detachment nothing is heard, and what is put later comes.
        drop(attached);
        client.write_all(b"lost").unwrap();
        feed.put(Input::Stop);
        let mut out = Vec::new();
        ears.hear(SHORT, &mut out);
        ears.hear(SHORT, &mut out);
        assert!(matches!(out[..], [Input::Stop]));
        drop(feed);
        assert!(!ears.hear(SHORT, &mut Vec::new()) && ears.sources.is_empty());
    }

    /// While it looks, and does not sleep: nobody wakes it.
    #[test]
    fn what_comes_soon_is_found_by_looking() {
        let (feed, mut ears) = Feed::channel().unwrap();
        let (mut client, _attached) = pair(&feed);
        ears.set_busy_poll(LONG);
        let late = std::thread::spawn(move || {
            for _ in 0..3 {
                std::thread::sleep(SHORT);
                client.write_all(b"0123456789").unwrap();
                std::thread::sleep(SHORT);
                feed.put(Input::Stop);
            }
            assert!(!feed.asleep.load(Ordering::Relaxed));
            client
        });
        let (mut heard, mut stops) = (Vec::new(), 0);
        while stops < 3 {
            let mut out = Vec::new();
            assert!(ears.hear(2 * LONG, &mut out));
            heard.extend(said(&out));
            stops += out.iter().filter(|input| matches!(input, Input::Stop)).count();
        }
        assert_eq!(heard, b"0123456789".repeat(3));
        late.join().unwrap();
    }

    #[test]
    fn after_long_rests_it_sleeps_at_once() {
        let mut rests = Rests::default();
        let busy_poll = Duration::from_micros(100);
        let many = |rests: &mut Rests, us| {
            for _ in 0..20 {
                rests.note(Duration::from_micros(us));
            }
        };
        assert!(rests.end_within(busy_poll) && !rests.end_within(Duration::ZERO));
        many(&mut rests, 400);
        assert!(!rests.end_within(busy_poll));
        many(&mut rests, 150);
        assert!(rests.end_within(busy_poll));
        // One beat's worth of silence is not the end of it.
        rests.note(LONG);
        rests.note(Duration::from_micros(20));
        many(&mut rests, 20);
        assert!(rests.end_within(busy_poll));
    }

    /// The last words and the end have come together: both are heard.
    #[test]
    fn the_end_is_heard_after_the_last_words() {
        let (feed, mut ears) = Feed::channel().unwrap();
        let (mut client, _attached) = pair(&feed);
        client.write_all(b"by").unwrap();
        drop(client);
        assert_eq!(hear(&mut ears, 2), b"by");
        let mut out = Vec::new();
        ears.hear(SHORT, &mut out);
        assert!(ears.sources.is_empty());
    }

    #[test]
    fn one_that_talks_does_not_keep_others_from_being_heard() {
        let (feed, mut ears) = Feed::channel().unwrap();
        let (mut loud, _loud) = pair(&feed);
        let (mut quiet, _quiet) = pair(&feed);
        loud.write_all(&[b'x'; 4000]).unwrap();
        quiet.write_all(b"hi").unwrap();
        let mut out = Vec::new();
        ears.hear(LONG, &mut out);
        assert!(said(&out).ends_with(b"hi"), "{:?}", said(&out).len());
    }
}
