//! `ringswitch log-level`: how much the switch that runs logs.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use hyper::Method;
use log::Level;
use ringswitch::api::LogLevel;

use super::client::Client;
use super::level;
use super::show::SOCKET;
use crate::Failure;

const EXAMPLES: &str = "\
Examples:
  ringswitch log-level
  ringswitch log-level debug

A change lasts until the switch ends; an upgrade brings the configured level back.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LogLevelArgs {
    /// What is to be logged from now on; without it, shows what is logged
    #[arg(value_name = "LEVEL", value_parser = level())]
    level: Option<Level>,
    /// Print JSON, as the API has it
    #[arg(long)]
    json: bool,
    /// The switch's API socket
    #[arg(long, value_name = "PATH", env = "RINGSWITCH_API", default_value = SOCKET)]
    api_socket: PathBuf,
}

/// Runs the command.
///
/// # Errors
///
/// No switch answers, or it refuses.
pub fn run(args: &LogLevelArgs) -> Result<(), Failure> {
    const PATH: &str = "/log-level";
    let client = Client::new(&args.api_socket)?;
    let now: LogLevel = match args.level {
        Some(level) => client.send(&Method::PUT, PATH, &LogLevel { level: level.into() })?,
        None => client.get(PATH)?,
    };
    if args.json {
        let json = serde_json::to_string_pretty(&now).unwrap_or_default();
        return Ok(writeln!(io::stdout(), "{json}")?);
    }
    let level = Level::from(now.level).as_str().to_lowercase();
    Ok(writeln!(io::stdout(), "{level}")?)
}
