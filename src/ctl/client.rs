//! Asks nodes, blocking: a Hello each way, then a request and its reply, each in a frame (length as u32be, message).

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use prost::Message;
use serde::de::DeserializeOwned;

use super::{Failure, accepted, unknown};
use crate::admin::history::History;
use crate::admin::model::Status;
use crate::proto::admin::admin_request::Verb;
use crate::proto::admin::{self, AdminReply, AdminRequest};
use crate::proto::control::{Hello, Lane};

const PROTOCOL_VERSION: u32 = 1;
/// A reply is never larger.
const FRAME_LEN_MAX: usize = 64 << 20;
/// A node that does not accept and greet within this time is passed over: it may be stopped or cut off.
const GREETING_MAX: Duration = Duration::from_secs(2);
/// A node that greets and does not tell its status within this time is passed over too.
const READING_MAX: Duration = Duration::from_secs(3);

/// The verdict of a node that sees no way to commit.
const UNAVAILABLE: &str = "unavailable";

/// Asks one of several nodes. Each request has a connection of its own, so that a node that comes or goes in between
/// does not matter.
#[derive(Clone)]
pub struct Client {
    nodes: Vec<String>,
    timeout: Duration,
    asked_by: String,
}

/// Where a request failed on one node.
enum Trouble {
    /// The request was not sent: another node may be asked.
    Before(String),
    /// It was sent, and no answer came.
    After(String),
}

impl Client {
    /// `nodes` are HOST:PORT of the peers' ports; `timeout` is for one request with all its attempts.
    pub fn new(nodes: Vec<String>, timeout: Duration) -> Client {
        Client { nodes, timeout, asked_by: whoami() }
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks for something to be done: sent to one node only, and an answer that does not come is an unknown outcome.
    pub fn change(&self, verb: Verb) -> Result<AdminReply, Failure> {
        self.ask(verb, true)
    }

    pub fn status(&self) -> Result<Status, Failure> {
        understood(self.status_raw()?)
    }

    /// 0: all decisions that are kept; otherwise those of the epoch that decision `number` belongs to.
    pub fn history(&self, number: u64) -> Result<History, Failure> {
        self.read(Verb::History(admin::History { number }))
    }

    /// Data of another verb.
    pub fn read<T: DeserializeOwned>(&self, verb: Verb) -> Result<T, Failure> {
        let reply = self.ask(verb, false)?;
        serde_json::from_slice(&reply.json).map_err(not_understood).and_then(understood)
    }

    /// The JSON as the node made it, with fields that this version may not know.
    pub fn raw(&self, verb: Verb) -> Result<serde_json::Value, Failure> {
        self.read(verb)
    }

    /// The status, as JSON. A node that is cut off, or whose disk is stuck, knows less than the others: if the first to
    /// answer calls the cluster unavailable, all are asked, and who knows of the latest epoch is believed.
    pub fn status_raw(&self) -> Result<serde_json::Value, Failure> {
        let status = || Verb::Status(admin::Status {});
        let rank = |status: &serde_json::Value| {
            (status["epoch"].as_u64(), status["verdict"].as_str() != Some(UNAVAILABLE))
        };
        let mut best: serde_json::Value = self.raw(status())?;
        if best["verdict"].as_str() != Some(UNAVAILABLE) || self.nodes.len() == 1 {
            return Ok(best);
        }
        for node in &self.nodes {
            let alone = Client { nodes: vec![node.clone()], ..self.clone() };
            // Who does not answer has nothing better to say.
            if let Ok(other) = alone.raw(status())
                && rank(&other) > rank(&best)
            {
                best = other;
            }
        }
        Ok(best)
    }

    fn ask(&self, verb: Verb, changes: bool) -> Result<AdminReply, Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut troubles = Vec::new();
        let mut silent = false;
        for node in &self.nodes {
            match self.ask_one(node, verb.clone(), changes, deadline) {
                Ok(reply) => return accepted(reply),
                Err(Trouble::After(why)) if changes => {
                    return Err(unknown(&format!("{node}: {why}")));
                }
                Err(Trouble::After(why)) => {
                    silent = true;
                    troubles.push(format!("{node}: {why}"));
                }
                Err(Trouble::Before(why)) => troubles.push(format!("{node}: {why}")),
            }
        }
        let told = troubles.join("; ");
        if silent {
            return Err(Failure::Unknown(format!(
                "no node answered ({told})\nTry a longer --timeout, and look at the nodes' logs."
            )));
        }
        Err(Failure::Unreachable(format!(
            "nobody could be reached ({told})\nIs a node running? Name peer addresses with --node HOST:PORT,... or in \
             PACKMASTER_NODES."
        )))
    }

    fn ask_one(
        &self,
        node: &str,
        verb: Verb,
        changes: bool,
        deadline: Instant,
    ) -> Result<AdminReply, Trouble> {
        let mut stream = greet(node, deadline).map_err(Trouble::Before)?;
        let request = AdminRequest { id: 1, asked_by: self.asked_by.clone(), verb: Some(verb) };
        let patience = if changes { left(deadline) } else { left(deadline).min(READING_MAX) };
        let limits = stream.set_read_timeout(Some(patience));
        limits.map_err(|error| Trouble::Before(error.to_string()))?;
        // From here on the node may have the request.
        send(&mut stream, &request).map_err(Trouble::After)?;
        let reply: AdminReply = receive(&mut stream).map_err(Trouble::After)?;
        match reply.id == request.id {
            true => Ok(reply),
            false => Err(Trouble::After(format!("answered request {} instead", reply.id))),
        }
    }
}

fn understood<T: DeserializeOwned>(json: serde_json::Value) -> Result<T, Failure> {
    serde_json::from_value(json).map_err(not_understood)
}

fn not_understood(error: serde_json::Error) -> Failure {
    Failure::Refused(format!(
        "the answer is not understood ({error}): use the ctl of the node's own version"
    ))
}

/// Connects and exchanges hellos.
fn greet(node: &str, deadline: Instant) -> Result<TcpStream, String> {
    let addresses = node.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut why = "the name has no address".to_owned();
    for address in addresses {
        let patience = left(deadline).min(GREETING_MAX);
        match TcpStream::connect_timeout(&address, patience) {
            Ok(mut stream) => {
                stream.set_nodelay(true).map_err(|error| error.to_string())?;
                stream.set_read_timeout(Some(patience)).map_err(|error| error.to_string())?;
                stream.set_write_timeout(Some(patience)).map_err(|error| error.to_string())?;
                hello(&mut stream)?;
                return Ok(stream);
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

fn hello(stream: &mut TcpStream) -> Result<(), String> {
    let ours = Hello {
        protocol_version: PROTOCOL_VERSION,
        node: 0,
        lane: Lane::Control.into(),
        ..Default::default()
    };
    send(stream, &ours)?;
    let theirs: Hello = receive(stream)?;
    match theirs.protocol_version {
        PROTOCOL_VERSION => Ok(()),
        other => {
            Err(format!("speaks protocol version {other}, this ctl speaks {PROTOCOL_VERSION}"))
        }
    }
}

/// Never zero, which the socket calls would take for "for ever".
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

pub(super) fn send(stream: &mut TcpStream, message: &impl Message) -> Result<(), String> {
    let body = message.encode_to_vec();
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    stream.write_all(&frame).map_err(|error| words(&error))
}

pub(super) fn receive<M: Message + Default>(stream: &mut TcpStream) -> Result<M, String> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).map_err(|error| words(&error))?;
    let len = u32::from_be_bytes(len) as usize;
    if len > FRAME_LEN_MAX {
        return Err(format!("sends a frame of {len} bytes: that is no packmaster node"));
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).map_err(|error| words(&error))?;
    M::decode(body.as_slice()).map_err(|_| "sends nonsense: that is no packmaster node".to_owned())
}

fn words(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer in time".to_owned(),
        ErrorKind::UnexpectedEof => "closed the connection".to_owned(),
        _ => error.to_string(),
    }
}

/// user@host, for the history.
fn whoami() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let host = host.as_deref().map_or("unknown", str::trim);
    format!("{}@{host}", user.as_deref().unwrap_or("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fake_node::{FakeNode, closed_port, stuck_port};
    use crate::proto::admin::Outcome;

    const SHORT: Duration = Duration::from_millis(400);

    fn client(nodes: &[&str]) -> Client {
        Client::new(nodes.iter().map(|&node| node.to_owned()).collect(), SHORT)
    }

    fn pause() -> Verb {
        Verb::SetPause(admin::SetPause { paused: true })
    }

    #[test]
    fn the_next_address_is_tried_when_one_refuses() {
        let node = FakeNode::start(|request| {
            assert!(request.asked_by.contains('@'));
            Some(FakeNode::done(request.id, "so be it"))
        });
        let reply = client(&[&closed_port(), &node.address]).change(pause()).unwrap();
        assert_eq!(reply.message, "so be it");
    }

    #[test]
    fn a_node_that_accepts_and_says_nothing_is_passed_over() {
        let node = FakeNode::start(|request| Some(FakeNode::done(request.id, "here")));
        let (_listener, stuck) = stuck_port();
        let nodes = vec![stuck, node.address.clone()];
        let client = Client::new(nodes, GREETING_MAX + Duration::from_secs(2));
        assert_eq!(client.change(pause()).unwrap().message, "here");
    }

    #[test]
    fn nobody_there_is_3_with_the_remedy() {
        let failure = client(&[&closed_port()]).status().unwrap_err();
        assert_eq!(failure.code(), 3);
        assert!(failure.to_string().contains("PACKMASTER_NODES"), "{failure}");
    }

    /// A Raft leader whose disk was stuck had beaten on and applied nothing: it did not know that it was replaced, and
    /// `ctl status`, which asked it first, said for as long that commits wait (real faults, slow disk).
    #[test]
    fn who_calls_the_cluster_unavailable_is_not_believed_if_another_knows_better() {
        let node = |epoch: u64, verdict: &'static str| {
            FakeNode::start(move |request| {
                let json = format!(r#"{{"epoch":{epoch},"verdict":"{verdict}"}}"#);
                Some(AdminReply { json: json.into(), ..FakeNode::done(request.id, "") })
            })
        };
        let told = |nodes: &[&FakeNode]| {
            let nodes: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
            let status = client(&nodes).status_raw().unwrap();
            (status["epoch"].as_u64().unwrap(), status["verdict"].as_str().unwrap().to_owned())
        };
        let (stuck, fine) = (node(5, UNAVAILABLE), node(6, "degraded"));
        assert_eq!(told(&[&stuck, &fine]), (6, "degraded".into()));
        // A slave that is cut off is in the same epoch.
        let same_epoch = node(5, "healthy");
        assert_eq!(told(&[&stuck, &same_epoch]), (5, "healthy".into()));
        assert_eq!(told(&[&same_epoch, &fine]), (5, "healthy".into()), "nobody else is asked");
    }

    #[test]
    fn a_change_without_an_answer_is_unknown_and_never_sent_twice() {
        let mute = FakeNode::start(|_| None);
        let other = FakeNode::start(|_| panic!("a change must not be sent twice"));
        let failure = client(&[&mute.address, &other.address]).change(pause()).unwrap_err();
        assert_eq!(failure.code(), 4);
    }

    #[test]
    fn a_question_without_an_answer_goes_to_the_next() {
        let mute = FakeNode::start(|_| None);
        let other = FakeNode::start(|request| {
            let json = br#"{"version":1,"cluster":"c","decisions":[]}"#.to_vec();
            Some(AdminReply { json: json.into(), ..FakeNode::done(request.id, "") })
        });
        let history = client(&[&mute.address, &other.address]).history(0).unwrap();
        assert_eq!(history.cluster, "c");
    }

    #[test]
    fn a_refusal_is_1_and_is_not_taken_elsewhere() {
        let node = FakeNode::start(|request| {
            let message = "no such node: see `packmaster ctl status`".to_owned();
            let outcome = Outcome::Refused.into();
            Some(AdminReply { outcome, message, ..FakeNode::done(request.id, "") })
        });
        let failure = client(&[&node.address]).change(pause()).unwrap_err();
        assert_eq!((failure.code(), failure.to_string().starts_with("no such node")), (1, true));
    }

    #[test]
    fn something_else_on_the_port_is_recognised() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        });
        let failure = client(&[&address]).status().unwrap_err();
        assert!(failure.to_string().contains("no packmaster node"), "{failure}");
    }
}
