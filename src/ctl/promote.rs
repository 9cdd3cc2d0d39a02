//! `ctl promote`: hand mastership to a node, and see that it took it.

use std::time::Instant;

use super::client::Client;
use super::{Answer, Failure, POLL, done, unknown};
use crate::admin::model::{PromoteStatus, Status};
use crate::admin::render::milliseconds;
use crate::proto::admin;
use crate::proto::admin::admin_request::Verb;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples: packmaster ctl promote n2 --dry-run
          packmaster ctl promote n2 --reason 'kernel update of n1'")]
pub struct Args {
    /// Name of the member that is to be master
    // The id is not the field's name: every verb has a flag `--node` beside.
    #[arg(id = "target", value_name = "NODE")]
    node: String,
    /// Say what would happen, by the same code, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Also if it is not in step or not meant to be master; never at the cost of acknowledged data
    #[arg(long)]
    force: bool,
    /// For the history
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

pub(super) fn run(client: &Client, args: &Args) -> Result<Answer, Failure> {
    let started = Instant::now();
    let before = client.status()?;
    let reply = client.change(Verb::Promote(admin::Promote {
        node: args.node.clone(),
        dry_run: args.dry_run,
        force: args.force,
        reason: args.reason.clone(),
    }))?;
    if args.dry_run || before.master.as_deref() == Some(&args.node) {
        return Ok(done(reply));
    }
    // What the others tell may be a moment older than what the leader did: wait until it is seen. A target that lacks much
    // catches up first, which takes its time: that is waited for as long as the leader says that it goes on.
    let (mut heard, mut said) = (started, false);
    while heard.elapsed() < client.timeout() {
        if let Ok(now) = client.status() {
            if let Some(answer) = settled(client, args, &before, &now)? {
                return Ok(answer);
            }
            if let Some(promote) = ours(args, &before, &now) {
                heard = Instant::now();
                if !std::mem::replace(&mut said, true) {
                    eprintln!(
                        "{} lacks {} bytes of the master's file and catches up first; the master goes on meanwhile",
                        args.node, promote.lacks_bytes
                    );
                }
            }
        }
        std::thread::sleep(POLL);
    }
    Err(unknown(&format!("{} was asked to take over and is not seen as master yet.", args.node)))
}

/// This promote, as the Raft leader tells of it.
fn ours<'a>(args: &Args, before: &Status, now: &'a Status) -> Option<&'a PromoteStatus> {
    let known = before.promote.as_ref().map(|promote| promote.id);
    now.promote.as_ref().filter(|promote| promote.node == args.node && Some(promote.id) != known)
}

/// `None` while the outcome is open.
fn settled(
    client: &Client,
    args: &Args,
    before: &Status,
    now: &Status,
) -> Result<Option<Answer>, Failure> {
    let Some(master) = now.master.as_deref().filter(|_| now.epoch > before.epoch) else {
        let called_off = ours(args, before, now).and_then(|promote| promote.called_off.as_ref());
        return match called_off {
            None => Ok(None),
            Some(why) => Err(Failure::Refused(format!(
                "the promote was called off: {why}. The master goes on, and nothing is lost; see how far {} is with \
                 `packmaster ctl status`, and ask again.",
                args.node
            ))),
        };
    };
    if master != args.node {
        return Err(Failure::Refused(format!(
            "{master} is master (epoch {}), not {}. `packmaster ctl history` says why; nothing is lost, try again.",
            now.epoch, args.node
        )));
    }
    let waited_ms = clients_waited_ms(client, now.epoch);
    let mut text = format!("{master} is master (epoch {})", now.epoch);
    if let Some(waited_ms) = waited_ms {
        text.push_str(&format!("; clients waited {}", milliseconds(waited_ms)));
    }
    let json = serde_json::json!({
        "outcome": "done", "message": text, "master": master, "epoch": now.epoch, "clients_waited_ms": waited_ms
    });
    Ok(Some(Answer { text, json, code: 0 }))
}

/// As the decision that opened the epoch has it; `None` if that is not known.
pub(super) fn clients_waited_ms(client: &Client, epoch: u64) -> Option<f64> {
    let history = client.history(0).ok()?;
    let newest_first = history.decisions.into_iter().rev();
    let opened = newest_first.filter(|told| told.is_opened() && told.epoch == epoch);
    opened.filter_map(|told| told.clients_waited_ms).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::{ClusterView, Heard};
    use crate::admin::{history_reply, refusal, status_reply};
    use crate::ctl::fake_node::FakeNode;
    use crate::proto::control::{Beat, Decision, Elect, Member, PromoteProgress};
    use crate::types::NodeId;
    use std::time::Duration;

    fn view(master: u64, epoch: u64) -> ClusterView {
        let members = [(1, "n1"), (2, "n2")];
        let member = |(id, name): (u64, &str)| Member {
            id,
            name: name.into(),
            role: "voter".into(),
            ..Default::default()
        };
        let beat =
            |id| Beat { open: id == master, in_step: true, promised: epoch, ..Default::default() };
        let heard = |id| (NodeId(id), Heard { beat: beat(id), age_ms: 0 });
        let mut view = ClusterView { silence_ms: 500, ..Default::default() };
        view.heard = [1, 2].map(heard).into();
        view.state.members = members.map(member).into();
        view.state.mastership =
            Some(Elect { master, epoch, voters: vec![1, 2], ..Default::default() });
        view.state.opened = true;
        view.state.epoch = epoch;
        view.state.history = vec![Decision {
            number: 5,
            epoch,
            what: "opened".into(),
            clients_waited_us: 7_500,
            ..Default::default()
        }];
        view
    }

    /// A cluster whose mastership goes to `heir` two status requests after a promote.
    fn cluster(heir: u64) -> (FakeNode, Client) {
        let mut asked = None;
        let node = FakeNode::start(move |request| {
            let moved = asked.is_some_and(|count| count >= 2);
            let view = if moved { view(heir, 8) } else { view(1, 7) };
            Some(match request.verb.unwrap() {
                Verb::Promote(ask) if ask.node == "n9" => refusal(request.id, "no such node: n9"),
                Verb::Promote(ask) => {
                    asked = (!ask.dry_run).then_some(0);
                    FakeNode::done(request.id, "on its way")
                }
                Verb::Status(_) => {
                    asked = asked.map(|count| count + 1);
                    status_reply(request.id, &view)
                }
                Verb::History(ask) => history_reply(request.id, "c", &view.state, ask.number),
                _ => panic!("not asked for by promote"),
            })
        });
        let client = Client::new(vec![node.address.clone()], Duration::from_secs(1));
        (node, client)
    }

    fn args(node: &str, dry_run: bool) -> Args {
        Args { node: node.into(), dry_run, force: false, reason: String::new() }
    }

    #[test]
    fn waits_until_the_new_master_is_seen_and_tells_the_pause() {
        let (_node, client) = cluster(2);
        let answer = run(&client, &args("n2", false)).unwrap();
        assert_eq!(answer.text, "n2 is master (epoch 8); clients waited 7.5 ms");
        assert_eq!(answer.json["clients_waited_ms"], 7.5);
    }

    /// The target needs four requests to catch up, much longer than the timeout of one; or does not.
    fn catching_up(comes: bool) -> Result<Answer, Failure> {
        let mut asked = None;
        let node = FakeNode::start(move |request| {
            let mut view = if asked > Some(4) && comes { view(2, 8) } else { view(1, 7) };
            view.raft_leader = Some(NodeId(1));
            // One of somebody else, long over.
            let mut promote = PromoteProgress { id: 1, target: 2, ..Default::default() };
            promote.called_off = "n2 stood still".into();
            if let Some(asked) = asked {
                promote.id = 2;
                promote.called_off = if asked > 4 { "n2 can't".into() } else { String::new() };
            }
            view.heard.get_mut(&NodeId(1)).unwrap().beat.promote = Some(Box::new(promote));
            std::thread::sleep(Duration::from_millis(100));
            Some(match request.verb.unwrap() {
                Verb::Promote(_) => {
                    asked = Some(0);
                    FakeNode::done(request.id, "on its way")
                }
                Verb::Status(_) => {
                    asked = asked.map(|count| count + 1);
                    status_reply(request.id, &view)
                }
                Verb::History(ask) => history_reply(request.id, "c", &view.state, ask.number),
                _ => panic!("not asked for by promote"),
            })
        });
        let client = Client::new(vec![node.address.clone()], Duration::from_millis(400));
        run(&client, &args("n2", false))
    }

    #[test]
    fn a_target_that_catches_up_is_waited_for_however_long_it_takes() {
        assert!(catching_up(true).unwrap().text.starts_with("n2 is master (epoch 8)"));
    }

    #[test]
    fn a_promote_that_is_called_off_is_a_failure_with_the_reason() {
        let failure = catching_up(false).unwrap_err();
        assert_eq!(failure.code(), 1);
        assert!(
            failure.to_string().starts_with("the promote was called off: n2 can't."),
            "{failure}"
        );
    }

    #[test]
    fn another_winner_is_a_failure() {
        let (_node, client) = cluster(1);
        let failure = run(&client, &args("n2", false)).unwrap_err();
        assert_eq!(failure.code(), 1);
        assert!(failure.to_string().starts_with("n1 is master (epoch 8)"), "{failure}");
    }

    #[test]
    fn a_dry_run_and_the_present_master_wait_for_nothing() {
        let (_node, client) = cluster(2);
        assert_eq!(run(&client, &args("n2", true)).unwrap().text, "on its way");
        assert_eq!(run(&client, &args("n1", false)).unwrap().text, "on its way");
    }

    #[test]
    fn refusal_and_standstill_are_told_apart() {
        let (_node, client) = cluster(2);
        assert_eq!(run(&client, &args("n9", false)).unwrap_err().code(), 1);
        let node = FakeNode::start(|request| {
            Some(match request.verb.unwrap() {
                Verb::Status(_) => status_reply(request.id, &view(1, 7)),
                _ => FakeNode::done(request.id, "on its way"),
            })
        });
        let client = Client::new(vec![node.address.clone()], Duration::from_millis(300));
        assert_eq!(run(&client, &args("n2", false)).unwrap_err().code(), 4);
    }
}
