//! Clients that are driven together: one thread sends for whichever of its clients was answered, so that the bench takes
//! little of the machine that it measures. Each client has one request under way at a time.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use super::client::{RECORD_BYTES_MAX, Socket, broken, commit_data};

/// How long a client waits for an answer: longer than any pause a cluster may make.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How often the word to stop is looked for while nothing is answered.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 256 << 10;

/// What a client does next.
pub enum Request {
    Load(Vec<u64>),
    /// Stores (oid, record) pairs, at least one, whatever the invalidations in between say.
    Commit(Vec<(u64, Vec<u8>)>),
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub objects: u64,
    /// Of records.
    pub bytes: u64,
    pub conflict: bool,
}

/// One client's side of the conversation; `fed` goes on with whatever has come.
struct Conversation {
    awaits: Awaits,
    done: Outcome,
    /// Of a commit: sent when the invalidations have come.
    data: Vec<u8>,
    stores: Outcome,
    /// Bytes of the answer that are not understood yet, from `read` on.
    buf: Vec<u8>,
    read: usize,
}

enum Awaits {
    Nothing,
    Objects(usize),
    Invalid,
    Stored,
}

impl Conversation {
    fn new() -> Conversation {
        let done = Outcome::default();
        Conversation {
            awaits: Awaits::Nothing,
            done,
            data: Vec::new(),
            stores: done,
            buf: Vec::new(),
            read: 0,
        }
    }

    /// The first bytes to be sent.
    fn begin(&mut self, request: Request) -> io::Result<Vec<u8>> {
        self.done = Outcome::default();
        match request {
            Request::Load(oids) => {
                self.awaits = Awaits::Objects(oids.len());
                let mut ask = Vec::with_capacity(5 + 8 * oids.len());
                match &oids[..] {
                    [_] => ask.push(b'L'),
                    _ => {
                        ask.push(b'B');
                        ask.extend_from_slice(&(oids.len() as u32).to_be_bytes());
                    }
                }
                ask.extend(oids.iter().flat_map(|oid| oid.to_be_bytes()));
                Ok(ask)
            }
            Request::Commit(records) => {
                self.awaits = Awaits::Invalid;
                self.data = commit_data(&records)?;
                let bytes = records.iter().map(|(_, record)| record.len() as u64).sum();
                self.stores = Outcome { objects: records.len() as u64, bytes, conflict: false };
                Ok(vec![b'C'])
            }
        }
    }

    /// More has come. What is to be sent now, and the outcome if that was all.
    fn fed(&mut self, bytes: &[u8]) -> io::Result<(Vec<u8>, Option<Outcome>)> {
        self.buf.extend_from_slice(bytes);
        let mut send = Vec::new();
        let outcome = loop {
            match self.awaits {
                Awaits::Nothing if self.left() == 0 => break None,
                Awaits::Nothing => return Err(broken("it answers what was not asked".into())),
                Awaits::Objects(0) => break Some(self.done),
                Awaits::Objects(missing) => {
                    if !self.object()? {
                        break None;
                    }
                    self.awaits = Awaits::Objects(missing - 1);
                }
                Awaits::Invalid => {
                    let Some(count) = self.number(0) else { break None };
                    let whole = 4 + 8 * count as usize;
                    if self.left() < whole {
                        break None;
                    }
                    self.read += whole;
                    send = std::mem::take(&mut self.data);
                    self.awaits = Awaits::Stored;
                }
                Awaits::Stored => {
                    let Some(answer) = self.buf.get(self.read).copied() else { break None };
                    self.read += 1;
                    break Some(match answer {
                        b'O' => self.stores,
                        b'I' => Outcome { conflict: true, ..Outcome::default() },
                        other => return Err(broken(format!("a commit was answered {other:#04x}"))),
                    });
                }
            }
        };
        if self.read == self.buf.len() {
            self.buf.clear();
            self.read = 0;
        }
        if outcome.is_some() {
            self.awaits = Awaits::Nothing;
        }
        Ok((send, outcome))
    }

    fn left(&self) -> usize {
        self.buf.len() - self.read
    }

    fn number(&self, at: usize) -> Option<u32> {
        let bytes = self.buf.get(self.read + at..self.read + at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().expect("four")))
    }

    /// Takes one object's answer; false if it is not whole yet.
    fn object(&mut self) -> io::Result<bool> {
        match self.buf.get(self.read) {
            None => Ok(false),
            Some(b'K' | b'I') => {
                self.read += 1;
                self.done.objects += 1;
                Ok(true)
            }
            Some(b'O') => {
                let Some(len) = self.number(1) else { return Ok(false) };
                if len > RECORD_BYTES_MAX {
                    return Err(broken(format!("a record of {len} bytes was announced")));
                }
                let whole = 5 + len as usize;
                if self.left() < whole {
                    return Ok(false);
                }
                self.read += whole;
                self.done.objects += 1;
                self.done.bytes += u64::from(len);
                Ok(true)
            }
            Some(other) => Err(broken(format!("a load was answered {other:#04x}"))),
        }
    }
}

struct Driven {
    socket: Socket,
    conversation: Conversation,
    /// When its request was sent.
    began: Option<Instant>,
    /// Did not go out at once.
    unsent: VecDeque<u8>,
}

impl Driven {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.unsent.is_empty() {
            let mut rest = bytes;
            while !rest.is_empty() {
                match self.socket.write(rest) {
                    Ok(len) => rest = &rest[len..],
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            self.unsent.extend(rest);
            return Ok(());
        }
        self.unsent.extend(bytes);
        Ok(())
    }

    fn send_rest(&mut self) -> io::Result<()> {
        let rest: Vec<u8> = std::mem::take(&mut self.unsent).into();
        self.send(&rest)
    }
}

/// Keeps every client busy until the word to stop, then waits for what is under way. `next` says what the client of that
/// number does next, `done` hears of every outcome and how long it took.
pub fn drive(
    sockets: Vec<Socket>,
    stop: &AtomicBool,
    requests: &AtomicU64,
    mut next: impl FnMut(usize) -> Request,
    mut done: impl FnMut(Outcome, Duration) -> io::Result<()>,
) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut scratch = vec![0; READ_BYTES];
    let mut clients = Vec::with_capacity(sockets.len());
    for (nth, mut socket) in sockets.into_iter().enumerate() {
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut socket, Token(nth), interest)?;
        let conversation = Conversation::new();
        clients.push(Driven { socket, conversation, began: None, unsent: VecDeque::new() });
    }
    let mut busy = 0;
    for (nth, client) in clients.iter_mut().enumerate() {
        let first = client.conversation.begin(next(nth))?;
        client.began = Some(Instant::now());
        client.send(&first)?;
        busy += 1;
    }
    let mut heard = Instant::now();
    while busy > 0 {
        poll.poll(&mut events, Some(LOOK_EVERY)).or_else(|error| match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        })?;
        if !events.is_empty() {
            heard = Instant::now();
        } else if heard.elapsed() > ANSWER_WITHIN {
            let why = format!("no answer for {} s", ANSWER_WITHIN.as_secs());
            return Err(io::Error::new(ErrorKind::TimedOut, why));
        }
        for event in &events {
            let nth = event.token().0;
            let client = &mut clients[nth];
            if !client.unsent.is_empty() {
                client.send_rest()?;
            }
            loop {
                let len = match client.socket.read(&mut scratch) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(len) => len,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                };
                let (send, outcome) = client.conversation.fed(&scratch[..len])?;
                client.send(&send)?;
                if let Some(outcome) = outcome {
                    let began = client.began.take().expect("a request was under way");
                    done(outcome, began.elapsed())?;
                    requests.fetch_add(1, Ordering::Relaxed);
                    busy -= 1;
                    if !stop.load(Ordering::Relaxed) {
                        let first = client.conversation.begin(next(nth))?;
                        client.began = Some(Instant::now());
                        client.send(&first)?;
                        busy += 1;
                    }
                }
                // A short read has emptied the socket: what comes next is told.
                if len < scratch.len() && !event.is_read_closed() {
                    break;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome, and what was sent, however the answer is cut into pieces.
    fn converse(request: impl Fn() -> Request, answer: &[u8]) -> (Vec<u8>, Outcome) {
        let mut all = Vec::new();
        for cut in 0..answer.len() {
            let mut conversation = Conversation::new();
            let mut sent = conversation.begin(request()).unwrap();
            let (more, early) = conversation.fed(&answer[..cut]).unwrap();
            assert_eq!(early, None, "after {cut} bytes");
            sent.extend(more);
            let (more, outcome) = conversation.fed(&answer[cut..]).unwrap();
            sent.extend(more);
            all.push((sent, outcome.expect("that was all")));
        }
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
        all.remove(0)
    }

    #[test]
    fn answers_are_understood_in_any_pieces() {
        let (sent, outcome) = converse(|| Request::Load(vec![7]), b"O\0\0\0\x03abc");
        assert_eq!(sent, b"L\0\0\0\0\0\0\0\x07");
        assert_eq!(outcome, Outcome { objects: 1, bytes: 3, conflict: false });
        let (sent, outcome) = converse(|| Request::Load(vec![1, 2, 3]), b"KO\0\0\0\x02abI");
        assert_eq!(sent[..6], *b"B\0\0\0\x03\0");
        assert_eq!(outcome, Outcome { objects: 3, bytes: 2, conflict: false });
        let store = || Request::Commit(vec![(5, b"record".to_vec())]);
        let (sent, outcome) = converse(store, b"\0\0\0\x01\0\0\0\0\0\0\0\x09O");
        assert_eq!(sent, b"C\0\0\0\x12\0\0\0\x0e\0\0\0\0\0\0\0\x05record");
        assert_eq!(outcome, Outcome { objects: 1, bytes: 6, conflict: false });
        let (_, outcome) = converse(store, b"\0\0\0\0I");
        assert_eq!(outcome, Outcome { objects: 0, bytes: 0, conflict: true });
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut conversation = Conversation::new();
        assert!(conversation.fed(b"x").is_err());
        let mut conversation = Conversation::new();
        conversation.begin(Request::Load(vec![1])).unwrap();
        assert!(conversation.fed(b"O\xff\xff\xff\xff").is_err());
        let mut conversation = Conversation::new();
        conversation.begin(Request::Commit(vec![(1, vec![])])).unwrap();
        assert!(conversation.fed(b"\0\0\0\0?").is_err());
    }
}
