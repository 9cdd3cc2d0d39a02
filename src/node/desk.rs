//! Where administrators' requests wait for the core's answers, whoever brought them: `ctl` or the HTTP pages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::core::io::Input;
use super::ears::Feed;
use crate::proto::admin::{AdminReply, AdminRequest, Outcome};

/// The core answers sooner, or says that it can't; this is for a core that is stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Desk(Arc<Inner>);

struct Inner {
    feed: Feed,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<AdminReply>>>,
}

/// Takes a request off the desk when whoever waits for it goes away.
struct Waiting {
    inner: Arc<Inner>,
    request: u64,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.inner.waiting().remove(&self.request);
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<AdminReply>>> {
        self.waiting.lock().expect("a thread panicked while it held the desk")
    }
}

impl Desk {
    pub fn new(feed: Feed) -> Desk {
        let waiting = Mutex::default();
        Desk(Arc::new(Inner { feed, next: AtomicU64::new(1), waiting }))
    }

    /// Brings the request to the core and waits for its answer.
    pub async fn ask(&self, message: AdminRequest) -> AdminReply {
        self.ask_within(message, ANSWER_WITHIN).await
    }

    async fn ask_within(&self, message: AdminRequest, within: Duration) -> AdminReply {
        let request = self.0.next.fetch_add(1, Ordering::Relaxed);
        let id = message.id;
        let (answer, answered) = oneshot::channel();
        self.0.waiting().insert(request, answer);
        let _waiting = Waiting { inner: self.0.clone(), request };
        self.0.feed.put(Input::Admin { request, message });
        match timeout(within, answered).await {
            Ok(Ok(reply)) => reply,
            // No answer, or the desk was cleared at shutdown.
            _ => AdminReply {
                id,
                outcome: Outcome::Unknown.into(),
                message:
                    "the node did not answer in time, or is stopping; it may still happen: see \
                          `packmaster ctl status`"
                        .into(),
                ..AdminReply::default()
            },
        }
    }

    /// The core's answer; nobody may be waiting for it any more.
    pub fn answer(&self, request: u64, reply: AdminReply) {
        let waiting = self.0.waiting().remove(&request);
        if let Some(answer) = waiting {
            // Fails if the asker has gone away in this very moment.
            let _ = answer.send(reply);
        }
    }

    /// At shutdown: nobody waits for what won't come.
    pub fn close(&self) {
        self.0.waiting().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_finds_its_asker_and_silence_is_unknown() {
        let (feed, _inputs) = Feed::channel().unwrap();
        let desk = Desk::new(feed);
        let asked = desk.ask(AdminRequest { id: 9, ..AdminRequest::default() });
        let answering = async {
            tokio::task::yield_now().await;
            desk.answer(7, AdminReply::default());
            desk.answer(1, AdminReply { id: 9, message: "yes".into(), ..AdminReply::default() });
        };
        let (reply, ()) = tokio::join!(asked, answering);
        assert_eq!((reply.id, reply.message.as_str()), (9, "yes"));

        let request = AdminRequest { id: 5, ..AdminRequest::default() };
        let reply = desk.ask_within(request, Duration::from_millis(1)).await;
        assert_eq!((reply.id, reply.outcome()), (5, Outcome::Unknown));
        assert!(desk.0.waiting().is_empty());
    }
}
