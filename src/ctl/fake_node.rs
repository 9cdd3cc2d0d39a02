//! A node for tests: greets, and answers each request by a closure.

use std::net::{TcpListener, TcpStream};

use super::client::{receive, send};
use crate::proto::admin::{AdminReply, AdminRequest, Outcome};
use crate::proto::control::Hello;

pub struct FakeNode {
    pub address: String,
}

impl FakeNode {
    /// `None` closes the connection without an answer. Serves until the process ends.
    pub fn start(
        mut answer: impl FnMut(AdminRequest) -> Option<AdminReply> + Send + 'static,
    ) -> FakeNode {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &mut answer);
            }
        });
        FakeNode { address }
    }

    pub fn done(id: u64, message: &str) -> AdminReply {
        let outcome = Outcome::Done.into();
        AdminReply { id, outcome, message: message.to_owned(), json: Default::default() }
    }
}

fn serve(mut stream: TcpStream, answer: &mut impl FnMut(AdminRequest) -> Option<AdminReply>) {
    let Ok(hello) = receive::<Hello>(&mut stream) else { return };
    assert_eq!((hello.protocol_version, hello.node, hello.cluster.as_str()), (1, 0, ""));
    let ours = Hello { protocol_version: 1, node: 1, cluster: "c".into(), ..Default::default() };
    if send(&mut stream, &ours).is_err() {
        return;
    }
    while let Ok(request) = receive::<AdminRequest>(&mut stream) {
        let Some(reply) = answer(request) else { return };
        if send(&mut stream, &reply).is_err() {
            return;
        }
    }
}

/// An address where nobody listens.
pub fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// An address where connections are accepted by the kernel and nobody ever answers, as with a stopped process.
pub fn stuck_port() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}
