//! `packmaster`: one binary, one subcommand a room.

use std::process::ExitCode;

use clap::Parser;
use packmaster::{config, ctl, node, tools};

/// A Durus storage server that survives the loss of a machine
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example: packmaster playground, then packmaster ctl status in another terminal"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Start a whole cluster on this machine, to play with
    Playground(tools::playground::Args),
    /// Run one node
    Node(node::Args),
    /// Ask and steer a running cluster
    Ctl(ctl::Args),
    /// Work on database files
    Shelf(tools::shelf::Args),
    /// Measure a Durus server, ours or a stock one
    Bench(tools::bench::Args),
    /// Print an example configuration, or check one
    Config(config::Args),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Playground(args) => tools::playground::run(args),
        Command::Node(args) => node::run(args),
        Command::Ctl(args) => ctl::run(args),
        Command::Shelf(args) => tools::shelf::run(args),
        Command::Bench(args) => tools::bench::run(args),
        Command::Config(args) => config::run(args),
    }
}
