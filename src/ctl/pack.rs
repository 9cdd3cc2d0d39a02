//! `ctl pack`: start, follow or call off a pack.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::client::Client;
use super::promote::clients_waited_ms;
use super::{Answer, Failure, POLL, done, unknown};
use crate::admin::model::{PackStatus, Status};
use crate::admin::render::{self, bytes, milliseconds};
use crate::proto::admin;
use crate::proto::admin::PackVerb;
use crate::proto::admin::admin_request::Verb;

/// Without a terminal a line is written at least so often.
const LINE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --wait the pack goes on by itself, and `packmaster ctl status` shows it. With --wait, --timeout is how long no
node may answer and nothing may change; the pack itself takes what it takes. --wait also follows a pack that runs.
Examples: packmaster ctl pack --wait
          packmaster ctl pack --cancel")]
pub struct Args {
    /// Until the new generation is current, or the pack was called off; shows every node's phase, rate and time left
    #[arg(long, conflicts_with = "cancel")]
    wait: bool,
    /// Call off the pack that is running, or that is about to begin again; nothing is left of it
    #[arg(long)]
    cancel: bool,
}

pub(super) fn run(client: &Client, args: &Args) -> Result<Answer, Failure> {
    if args.cancel {
        return ask(client, PackVerb::Cancel);
    }
    if !args.wait {
        return ask(client, PackVerb::Start);
    }
    let before = client.status()?;
    match &before.pack {
        Some(pack) => eprintln!("a pack asked for by {} is running: following it", pack.asked_by),
        None => eprintln!("{}", ask(client, PackVerb::Start)?.text),
    }
    Follow::new(before).run(client)
}

fn ask(client: &Client, verb: PackVerb) -> Result<Answer, Failure> {
    client.change(Verb::Pack(admin::Pack { verb: verb.into() })).map(done)
}

/// Follows one pack from status to status.
struct Follow {
    before: Status,
    /// The newest decision of which any status told; older tellings are stale.
    decisions: u64,
    /// When something was last learnt.
    news: Instant,
    shown: String,
    /// When a line was last written, where there is no terminal.
    said: Instant,
    bar: ProgressBar,
}

impl Follow {
    fn new(before: Status) -> Follow {
        let style = ProgressStyle::with_template("{msg}").expect("the template is right");
        let bar = ProgressBar::new_spinner().with_style(style);
        let (decisions, now) = (before.decisions, Instant::now());
        Follow { before, decisions, news: now, shown: String::new(), said: now, bar }
    }

    fn run(mut self, client: &Client) -> Result<Answer, Failure> {
        let result = self.until_settled(client);
        self.bar.finish_and_clear();
        result
    }

    fn until_settled(&mut self, client: &Client) -> Result<Answer, Failure> {
        loop {
            if let Ok(now) = client.status()
                && now.decisions >= self.decisions
                && let Some(answer) = self.settled(client, &now)?
            {
                return Ok(answer);
            }
            if self.news.elapsed() > client.timeout().max(Duration::from_secs(1)) {
                return Err(unknown("Nothing was heard of the pack for too long."));
            }
            std::thread::sleep(POLL);
        }
    }

    /// `None` while the outcome is open; a pack that was called off is a refusal.
    fn settled(&mut self, client: &Client, now: &Status) -> Result<Option<Answer>, Failure> {
        self.decisions = now.decisions;
        if self.is_switched(now) {
            return Ok(Some(self.success(client, now)));
        }
        if let Some(pack) = &now.pack {
            self.show(pack);
            return Ok(None);
        }
        if let Some(who) = &now.pack_again {
            self.say(&format!("called off by an election; it starts again by itself for {who}"));
            return Ok(None);
        }
        let generation = generation(now);
        if generation > generation_of(&self.before) || now.decisions == self.before.decisions {
            // The new master is about to open, or what was asked for is about to be decided.
            return Ok(None);
        }
        self.called_off(client).map_or(Ok(None), |why| Err(Failure::Refused(why)))
    }

    /// The new generation is current, its master open and its file in place.
    fn is_switched(&self, now: &Status) -> bool {
        let wanted = generation_of(&self.before) + 1;
        let master = now.master.as_deref().and_then(|name| now.node(name));
        generation(now) >= wanted && master.is_some_and(|row| row.generation >= wanted)
    }

    fn success(&self, client: &Client, now: &Status) -> Answer {
        let (old, new) = (file_bytes(&self.before), file_bytes(now));
        let generation = generation(now);
        let waited_ms = clients_waited_ms(client, now.epoch);
        let mut text = format!(
            "generation {generation} is current (epoch {}): the file was {} and is {}",
            now.epoch,
            bytes(old),
            bytes(new)
        );
        let how = how_it_went(client, generation);
        if let Some(how) = &how {
            text.push_str(&format!("; {how}"));
        }
        if let Some(waited_ms) = waited_ms {
            text.push_str(&format!("; clients waited {} for the switch", milliseconds(waited_ms)));
        }
        let json = serde_json::json!({
            "outcome": "done", "message": text, "generation": generation, "epoch": now.epoch,
            "file_bytes_before": old, "file_bytes": new, "clients_waited_ms": waited_ms, "how": how
        });
        Answer { text, json, code: 0 }
    }

    /// Why, if the history has a cancellation since we began.
    fn called_off(&self, client: &Client) -> Option<String> {
        let history = client.history(0).ok()?;
        let since = self.before.decisions;
        let newest_first = history.decisions.into_iter().rev();
        let cancel =
            newest_first.filter(|told| told.number > since).find(|told| told.is_pack_cancel())?;
        Some(format!(
            "the pack was called off: {} (decision {}). The old generation goes on, nothing is lost; start it again \
             with `packmaster ctl pack`.",
            cancel.why, cancel.number
        ))
    }

    /// On a terminal a table that is redrawn; otherwise a line when a node comes to another phase, and now and then.
    fn show(&mut self, pack: &PackStatus) {
        // It is alive as long as somebody tells of it.
        self.news = Instant::now();
        if !self.bar.is_hidden() {
            let (line, nodes) = (render::pack_line(pack), render::pack_nodes(pack));
            self.bar.set_message(format!("{line}{nodes}"));
            return;
        }
        let phases: Vec<&str> = pack.nodes.iter().map(|node| node.phase.as_str()).collect();
        let shown = format!("{} {}", pack.phase, phases.join(" "));
        if self.shown != shown || self.said.elapsed() >= LINE_EVERY {
            (self.shown, self.said) = (shown, Instant::now());
            eprintln!("{}: {}", pack.phase, render::pack_nodes_line(pack));
        }
    }

    fn say(&mut self, text: &str) {
        self.news = Instant::now();
        if self.shown == text {
            return;
        }
        self.shown = text.to_owned();
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.set_message(self.shown.clone());
        }
    }
}

/// "mark 1.2 s, build 8.0 s, switch 0.1 s; ...", by the decision that made the generation current.
fn how_it_went(client: &Client, generation: u64) -> Option<String> {
    let begins = format!("generation {generation} ");
    let history = client.history(0).ok()?;
    let mut newest_first = history.decisions.into_iter().rev();
    let decision =
        newest_first.find(|told| told.what == "generation" && told.why.starts_with(&begins))?;
    decision.why.split_once(": ").map(|(_, how)| how.to_owned())
}

fn generation(status: &Status) -> u64 {
    status.generation.as_ref().map_or(0, |generation| generation.number)
}

/// The same for the status we began with, where a pack that runs says what it started from.
fn generation_of(before: &Status) -> u64 {
    before.pack.as_ref().map_or_else(|| generation(before), |pack| pack.generation - 1)
}

fn file_bytes(status: &Status) -> u64 {
    let master = status.master.as_deref().and_then(|name| status.node(name));
    master.map_or(0, |row| row.disk.file_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::{ClusterView, Heard};
    use crate::admin::{history_reply, status_reply};
    use crate::ctl::fake_node::FakeNode;
    use crate::proto::control::{Beat, Decision, Elect, GenerationRecord, Member, PackState};
    use crate::proto::replication::Position;
    use crate::types::NodeId;

    /// One node, in the generation given; `decisions` were made.
    fn view(generation: u64, epoch: u64, decisions: u64) -> ClusterView {
        let position = Position { generation, ..Default::default() };
        let file_bytes = 3072 / generation;
        let beat = Beat {
            open: true,
            promised: epoch,
            position: Some(position),
            file_bytes,
            ..Default::default()
        };
        let mut view = ClusterView { own: NodeId(1), ..Default::default() };
        view.heard = [(NodeId(1), Heard { beat, age_ms: 0 })].into();
        view.state.members = vec![Member { id: 1, name: "n1".into(), ..Default::default() }];
        view.state.mastership = Some(Elect { master: 1, voters: vec![1], ..Default::default() });
        view.state.generations =
            vec![GenerationRecord { number: generation, ..Default::default() }];
        view.state.opened = true;
        view.state.epoch = epoch;
        view.state.decisions = decisions;
        view
    }

    fn packing(decisions: u64) -> ClusterView {
        let mut view = view(1, 7, decisions);
        view.state.pack = Some(PackState { generation: 2, ..Default::default() });
        view
    }

    fn with_decision(mut view: ClusterView, what: &str, waited: u64) -> ClusterView {
        view.state.history.push(Decision {
            number: view.state.decisions,
            epoch: view.state.epoch,
            what: what.into(),
            why: "the disk of n2 is full".into(),
            clients_waited_us: waited,
            ..Default::default()
        });
        view
    }

    /// Tells one view after the other, one a status; the last again and again.
    fn cluster(views: Vec<ClusterView>) -> (FakeNode, Client) {
        let mut at = 0;
        let node = FakeNode::start(move |request| {
            let view = &views[at.min(views.len() - 1)];
            Some(match request.verb.unwrap() {
                Verb::Status(_) => {
                    at += 1;
                    status_reply(request.id, view)
                }
                Verb::History(ask) => history_reply(request.id, "c", &view.state, ask.number),
                Verb::Pack(_) => FakeNode::done(request.id, "pack to generation 2 started"),
                _ => panic!("not asked for by pack"),
            })
        });
        let client = Client::new(vec![node.address.clone()], Duration::from_secs(1));
        (node, client)
    }

    fn wait(views: Vec<ClusterView>) -> Result<Answer, Failure> {
        let (_node, client) = cluster(views);
        run(&client, &Args { wait: true, cancel: false })
    }

    #[test]
    fn waits_for_the_new_generation_and_tells_sizes_and_pause() {
        let opened = with_decision(view(2, 8, 13), "opened", 12_000);
        let answer = wait(vec![view(1, 7, 10), packing(11), packing(12), opened]).unwrap();
        assert_eq!(
            answer.text,
            "generation 2 is current (epoch 8): the file was 3.0 KiB and is 1.5 KiB; clients waited 12.0 ms for the \
             switch"
        );
    }

    #[test]
    fn a_pack_that_is_over_before_the_first_look_is_seen() {
        assert!(wait(vec![view(1, 7, 10), view(2, 8, 13)]).is_ok());
    }

    #[test]
    fn a_pack_that_runs_is_followed_to_its_generation() {
        assert!(wait(vec![packing(11), packing(11), view(2, 8, 13)]).is_ok());
    }

    #[test]
    fn called_off_is_a_failure_with_the_reason() {
        let cancelled = with_decision(view(1, 7, 12), "pack cancel", 0);
        let failure = wait(vec![view(1, 7, 10), packing(11), cancelled]).unwrap_err();
        assert_eq!(failure.code(), 1);
        assert!(failure.to_string().contains("the disk of n2 is full"), "{failure}");
    }

    #[test]
    fn called_off_by_an_election_goes_on_by_itself() {
        let mut again = with_decision(view(1, 8, 12), "pack cancel", 0);
        again.state.pack_again = "dba@host".into();
        assert!(
            wait(vec![view(1, 7, 10), packing(11), again, packing(14), view(2, 9, 17)]).is_ok()
        );
    }

    #[test]
    fn a_stale_telling_is_not_taken_for_a_cancellation() {
        // The third status comes from a node that does not know of the pack yet.
        let stale = with_decision(view(1, 7, 10), "pack cancel", 0);
        assert!(wait(vec![view(1, 7, 10), packing(11), stale, view(2, 8, 13)]).is_ok());
    }

    #[test]
    fn nothing_heard_is_unknown() {
        assert_eq!(wait(vec![view(1, 7, 10)]).unwrap_err().code(), 4);
    }

    #[test]
    fn start_and_cancel_return_at_once() {
        let (_node, client) = cluster(vec![view(1, 7, 10)]);
        let answer = run(&client, &Args { wait: false, cancel: true }).unwrap();
        assert_eq!(answer.json["outcome"], "done");
        assert!(run(&client, &Args { wait: false, cancel: false }).is_ok());
    }
}
