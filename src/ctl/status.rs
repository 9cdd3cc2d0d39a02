//! `ctl status`: the cluster at a glance.

use std::io::IsTerminal;
use std::time::Duration;

use serde::Deserialize;

use super::client::Client;
use super::{Answer, Failure, Output, print};
use crate::admin::model::Status;
use crate::admin::render;

const WATCH_EVERY: Duration = Duration::from_secs(1);
/// Clears the screen and goes home.
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples: packmaster ctl status
          packmaster ctl status --watch
          packmaster ctl status --check --timeout 3s   # for monitoring plugins")]
pub struct Args {
    /// Again every second, until interrupted
    #[arg(long, conflicts_with = "check")]
    watch: bool,
    /// One line; exit status 0 healthy, 1 degraded, 2 unavailable, 3 nobody could be reached
    #[arg(long)]
    check: bool,
}

pub(super) fn run(client: &Client, args: &Args, output: Output) -> Result<Answer, Failure> {
    if args.watch {
        return watch(client, output);
    }
    let (status, json) = ask(client)?;
    if args.check {
        let code = render::check_code(status.verdict);
        return Ok(Answer { text: status.summary, json, code });
    }
    let text = render::status(&status).trim_end().to_owned();
    Ok(Answer { text, json, code: 0 })
}

fn ask(client: &Client) -> Result<(Status, serde_json::Value), Failure> {
    let json = client.status_raw()?;
    let status = Status::deserialize(&json);
    let status = status.map_err(|error| {
        Failure::Refused(format!(
            "the answer is not understood ({error}): use the ctl of the node's own version"
        ))
    })?;
    Ok((status, json))
}

/// For ever: an unreachable cluster is shown as such, since that is when people watch.
fn watch(client: &Client, output: Output) -> Result<Answer, Failure> {
    let clear = if std::io::stdout().is_terminal() { CLEAR } else { "" };
    loop {
        match (ask(client), output) {
            (Ok((_, json)), Output::Json) => print(&json.to_string()),
            (Ok((status, _)), Output::Table) => {
                print(&format!("{clear}{}", render::status(&status)));
            }
            (Err(failure), _) => eprintln!("{clear}packmaster ctl: {failure}"),
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status_reply;
    use crate::admin::view::ClusterView;
    use crate::ctl::fake_node::FakeNode;

    fn client() -> (FakeNode, Client) {
        let node =
            FakeNode::start(|request| Some(status_reply(request.id, &ClusterView::default())));
        let client = Client::new(vec![node.address.clone()], Duration::from_secs(5));
        (node, client)
    }

    #[test]
    fn check_says_unavailable_by_2() {
        let (_node, client) = client();
        let args = Args { watch: false, check: true };
        let answer = run(&client, &args, Output::Table).unwrap();
        assert_eq!(answer.code, 2);
        assert!(answer.text.starts_with("Unavailable"), "{}", answer.text);
    }

    #[test]
    fn without_check_telling_is_success_whatever_is_told() {
        let (_node, client) = client();
        let args = Args { watch: false, check: false };
        let answer = run(&client, &args, Output::Json).unwrap();
        assert_eq!((answer.code, answer.json["verdict"].as_str()), (0, Some("unavailable")));
    }
}
