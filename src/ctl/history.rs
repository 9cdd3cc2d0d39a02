//! `ctl history`: what was decided, and why.

use super::client::Client;
use super::{Answer, Failure};
use crate::admin::render;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples: packmaster ctl history
          packmaster ctl history --explain 12")]
pub struct Args {
    /// One decision in full, with the others of its epoch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    explain: Option<u64>,
}

pub(super) fn run(client: &Client, args: &Args) -> Result<Answer, Failure> {
    let history = client.history(args.explain.unwrap_or(0))?;
    let text = match args.explain {
        Some(number) => render::explain(&history, number),
        None => render::history(&history),
    };
    let json = serde_json::to_value(&history).expect("a history is always representable");
    Ok(Answer { text: text.trim_end().to_owned(), json, code: 0 })
}
