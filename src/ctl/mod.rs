//! `packmaster ctl`: what an administrator types.
//!
//! One file a verb. Each asks a node over the peers' port (any node; it finds the leader itself) and turns the answer
//! into an [`Answer`] or a [`Failure`]; only [`run`] prints. Standard output is data, standard error is talk. A verb
//! that changes something is never sent twice: if its answer does not come, the outcome is unknown and is said to be.

pub mod client;
mod config;
mod generations;
mod history;
mod pack;
mod pause;
mod promote;
mod status;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use crate::proto::admin::{AdminReply, Outcome};
use client::Client;

/// The peer ports of a playground.
const PLAYGROUND: &str = "127.0.0.1:3972,127.0.0.1:3973,127.0.0.1:3974";

/// Follows what was started by asking this often.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 done; 1 refused or failed; 2 usage; 3 nobody could be reached; 4 timed out, outcome unknown.
Example: packmaster ctl --node db1:3972,db2:3972,db3:3972 status")]
pub struct Args {
    /// Peer addresses to try, one after the other
    #[arg(long, global = true, env = "PACKMASTER_NODES", value_name = "HOST:PORT", value_delimiter = ',',
          default_value = PLAYGROUND)]
    node: Vec<String>,
    /// What standard output is for
    #[arg(long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// How long to wait for an answer, such as 10s or 1m
    #[arg(long, global = true, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For scripts
    Json,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// The cluster at a glance
    Status(status::Args),
    /// Hand mastership to a node
    Promote(promote::Args),
    /// Start, follow or call off a pack
    Pack(pack::Args),
    /// Decisions: when, what, why, by whom, how long clients waited
    History(history::Args),
    /// Settings that hold for the whole cluster, at once
    #[command(subcommand)]
    Config(config::Verb),
    /// Which generations each node has on its disk, and why
    #[command(after_help = generations::HELP)]
    Generations,
    /// No automatic elections until `resume`
    #[command(after_help = pause::PAUSE_HELP)]
    Pause,
    /// Automatic elections again
    #[command(after_help = pause::RESUME_HELP)]
    Resume,
}

/// What is left to say when a verb is through.
#[derive(Debug, Default)]
struct Answer {
    /// For people; ends without a newline.
    text: String,
    /// For scripts.
    json: serde_json::Value,
    /// Exit status; other than 0 only where the verb's purpose is to tell by it.
    code: u8,
}

/// Why a verb is not done; the text ends in the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Unknown(String),
}

impl Failure {
    /// Exit status, as `interface.md` has it.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Refused(_) => 1,
            Failure::Unreachable(_) => 3,
            Failure::Unknown(_) => 4,
        }
    }

    fn outcome(&self) -> &'static str {
        match self {
            Failure::Refused(_) => "refused",
            Failure::Unreachable(_) => "unreachable",
            Failure::Unknown(_) => "unknown",
        }
    }
}

/// Does what was typed, prints the outcome and says it by the exit status.
pub fn run(args: Args) -> ExitCode {
    let Args { node, output, timeout, verb } = args;
    let client = Client::new(node, timeout);
    let result = match verb {
        Verb::Status(args) => status::run(&client, &args, output),
        Verb::Promote(args) => promote::run(&client, &args),
        Verb::Pack(args) => pack::run(&client, &args),
        Verb::History(args) => history::run(&client, &args),
        Verb::Config(verb) => config::run(&client, &verb),
        Verb::Generations => generations::run(&client),
        Verb::Pause => pause::run(&client, true),
        Verb::Resume => pause::run(&client, false),
    };
    match result {
        Ok(answer) => {
            match output {
                Output::Table => print(&answer.text),
                Output::Json => print(&format!("{:#}", answer.json)),
            }
            ExitCode::from(answer.code)
        }
        Err(failure) => {
            eprintln!("packmaster ctl: {failure}");
            if output == Output::Json {
                let told = failure.to_string();
                print(
                    &serde_json::json!({"outcome": failure.outcome(), "message": told}).to_string(),
                );
            }
            ExitCode::from(failure.code())
        }
    }
}

/// To standard output, with a newline. Whoever reads it may have gone (`| head`): that is no error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// The answer to a verb that has no more to show than that it is done.
fn done(reply: AdminReply) -> Answer {
    let data = serde_json::from_slice(&reply.json).unwrap_or(serde_json::Value::Null);
    let json = serde_json::json!({"outcome": "done", "message": reply.message, "data": data});
    Answer { text: reply.message, json, code: 0 }
}

/// A reply is good only if it says so; an outcome of a later version is not taken for success.
fn accepted(reply: AdminReply) -> Result<AdminReply, Failure> {
    match Outcome::try_from(reply.outcome) {
        Ok(Outcome::Done) => Ok(reply),
        Ok(Outcome::Refused) => Err(Failure::Refused(reply.message)),
        Ok(Outcome::Unknown) | Err(_) => Err(unknown(&reply.message)),
    }
}

/// It may or may not have happened, or may still.
fn unknown(why: &str) -> Failure {
    Failure::Unknown(format!(
        "{why}\nWhether it happened is not known. `packmaster ctl history` and `packmaster ctl status` tell."
    ))
}

#[cfg(test)]
mod fake_node;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        ctl: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        let words = std::iter::once("ctl").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.ctl)
    }

    #[test]
    fn common_flags_stand_before_or_after_the_verb() {
        let args = parse("--timeout 3s status --check --output json --node a:1,b:2").unwrap();
        assert_eq!(args.node, ["a:1", "b:2"]);
        assert_eq!((args.timeout, args.output), (Duration::from_secs(3), Output::Json));
        let args = parse("promote n2 --node a:1").unwrap();
        assert_eq!(args.node, ["a:1"], "the node to promote is not one to ask");
        let args = parse("pause").unwrap();
        assert_eq!(args.node, ["127.0.0.1:3972", "127.0.0.1:3973", "127.0.0.1:3974"]);
        assert_eq!((args.timeout, args.output), (Duration::from_secs(10), Output::Table));
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "",
            "dance",
            "promote",
            "status --wait",
            "--timeout soon status",
            "config",
            "config set x",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert_eq!(parse("pack --wait --cancel").unwrap_err().exit_code(), 2);
    }

    #[test]
    fn replies_and_exit_codes() {
        let reply = |outcome| AdminReply { outcome, message: "so".into(), ..Default::default() };
        assert_eq!(accepted(reply(0)).unwrap().message, "so");
        assert_eq!(accepted(reply(1)).unwrap_err().code(), 1);
        let unknown = accepted(reply(2)).unwrap_err();
        assert_eq!(unknown.code(), 4);
        assert!(unknown.to_string().contains("ctl history"), "the remedy is told");
        assert_eq!(accepted(reply(99)).unwrap_err().code(), 4, "an outcome of a later version");
        assert_eq!(Failure::Unreachable(String::new()).code(), 3);
    }
}
