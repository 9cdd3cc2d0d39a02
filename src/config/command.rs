//! `packmaster config`: print an example, check a file.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::single::{self, Single};
use super::{Config, EXAMPLE};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Print a complete configuration with a comment on every key
    #[command(after_help = "Example: packmaster config example >/etc/packmaster.toml")]
    Example,
    /// Print the configuration of a single node, from the options of `durus -s`
    #[command(after_help = single::HELP)]
    Single(Single),
    /// Check a configuration file and say what is wrong with it
    #[command(after_help = "Example: packmaster config check /etc/packmaster.toml")]
    Check {
        file: PathBuf,
        /// Override a key of the file, as the node's own --set does
        #[arg(long = "set", value_name = "KEY=VALUE")]
        overrides: Vec<String>,
    },
}

/// Exit status: 0 fine, 1 the file is wrong.
pub fn run(args: Args) -> ExitCode {
    match args.verb {
        Verb::Example => {
            // Whoever reads it may close early (`| head`).
            match std::io::stdout().write_all(EXAMPLE.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Verb::Single(options) => match single::write(&options) {
            Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            },
            Err(error) => {
                eprintln!("packmaster: {error}");
                ExitCode::FAILURE
            }
        },
        Verb::Check { file, overrides } => match Config::load(&file, &overrides) {
            Ok(config) => {
                let (me, count) = (config.me(), config.members.len());
                println!(
                    "{}: fine; node {} ({}) of cluster {} with {count} members",
                    file.display(),
                    me.name,
                    me.id,
                    config.cluster
                );
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("packmaster: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
