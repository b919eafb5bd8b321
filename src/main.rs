//! The one binary: the daemon and the commands beside it.
//!
//! Owns what an operator meets: the command line, the text of errors, exit codes.
//! Everything else is the library's.
//!
//! Exit codes: 0 success; 1 failure at run time; 2 wrong usage or configuration. `cli` explains
//! them to the operator.
#![forbid(unsafe_code)]

mod cli;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ringswitch::config::{ConfigErrors, Settings};
use ringswitch::control::{self, Start};
use ringswitch::logs;

use cli::attach::{AttachError, Attachment};
use cli::client::ClientError;
use cli::trace::TraceError;
use cli::{ArgsArgs, Cli, Command, RunArgs};

/// Why a command failed, sorted by what the operator has to look at.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", mistakes(.0))]
    Config(ConfigErrors),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Run(#[from] control::Error),
    #[error(
        "no upgrade socket is configured: give both processes one, by `socket` in [upgrade] of the \
         configuration, or by --upgrade-socket"
    )]
    NoUpgradeSocket,
    #[error("cannot start the process that is to take over")]
    Spawn(#[source] io::Error),
    #[error("the switch that runs goes on; the reason stands above")]
    NotUpgraded,
    #[error(transparent)]
    Api(#[from] ClientError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error("frames can't be shown on a terminal: add -w FILE, or pipe them: -w - | tcpdump -nr -")]
    Terminal,
    #[error("cannot write frames to {}; those before are there", .0.display())]
    Capture(PathBuf, #[source] io::Error),
    #[error("{0:?} names no table: expected TABLE.KEY=VALUE, such as mac-table.ageing-seconds=60")]
    NoTable(String),
    #[error("cannot read {}", .0.display())]
    File(PathBuf, #[source] io::Error),
    #[error("cannot write the manual's pages to {directory}")]
    Pages { directory: String, source: io::Error },
    #[error(
        "standard output is no terminal: use `ringswitch show ports --watch`, or --json for programs"
    )]
    NoTerminal,
    #[error("cannot write to standard output")]
    Output(#[from] io::Error),
}

impl From<ConfigErrors> for Failure {
    /// By hand, because `#[from]` would make the errors a cause too, and they are printed already.
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(errors)
    }
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Run(_)
            | Failure::Api(_)
            | Failure::Capture(..)
            | Failure::Output(_)
            | Failure::File(..)
            | Failure::Pages { .. }
            | Failure::Spawn(_)
            | Failure::NotUpgraded => 1,
            Failure::Config(_)
            | Failure::Attach(_)
            | Failure::NoUpgradeSocket
            | Failure::Terminal
            | Failure::NoTable(_) => 2,
            Failure::NoTerminal | Failure::Trace(_) => 2,
        }
    }
}

fn main() -> ExitCode {
    // clap ends the process with 2 on wrong usage and with 0 after --help and --version.
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::Run(args) => run(args),
        Command::Upgrade(args) => cli::upgrade::run(&args.run),
        Command::Check { file } => check(file),
        Command::Args(args) => attach(args),
        Command::Show(args) => cli::show::run(args),
        Command::Port(args) => cli::change::port(args),
        Command::Mac(args) => cli::change::mac(args),
        Command::Mirror(args) => cli::change::mirror(args),
        Command::Set(args) => cli::change::set(args),
        Command::Reload(args) => cli::change::reload(args),
        Command::Capture(args) => cli::capture::run(args),
        Command::Completions(args) => cli::generate::completions(args),
        Command::Man(args) => cli::generate::man(args),
        Command::Top(args) => cli::top::run(args),
        Command::LogLevel(args) => cli::log_level::run(args),
        Command::Extcap(args) => cli::extcap::run(args),
        Command::Trace(args) => cli::trace::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprint!("{}", report(&failure));
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(args: &RunArgs) -> Result<(), Failure> {
    let settings = args.settings()?;
    logs::start(&settings.log);
    let start = if args.take_over { Start::TakeOver } else { Start::Fresh };
    Ok(control::run(settings, args.reread()?, start)?)
}

fn check(file: &std::path::Path) -> Result<(), Failure> {
    let settings = Settings::load(file)?;
    let ports = count(settings.ports.len(), "port");
    Ok(writeln!(io::stdout(), "{}: ok, {ports}", file.display())?)
}

fn attach(args: &ArgsArgs) -> Result<(), Failure> {
    let settings = args.settings()?;
    let text = Attachment::new(&settings, args)?.text(args.vmm)?;
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// `failure` and what caused it, a line each.
fn report(failure: &Failure) -> String {
    let mut text = format!("ringswitch: {failure}\n");
    let mut cause = failure.source();
    while let Some(error) = cause {
        text.push_str(&format!("  because: {error}\n"));
        cause = error.source();
    }
    text
}

fn mistakes(errors: &ConfigErrors) -> String {
    let number = count(errors.problems().len(), "mistake");
    format!("the configuration has {number} to correct:\n{errors}")
}

fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn mistakes_are_listed_below_their_number() {
        let text = "[workers]\ncount = 0\n[[port]]\nname = \"a\"\ntype = \"tap\"\n";
        let errors = Settings::from_toml(text, Path::new("rs.toml")).expect_err("two mistakes");
        let failure = Failure::from(errors);
        assert_eq!(failure.exit_code(), 2);
        assert_eq!(
            report(&failure),
            "ringswitch: the configuration has 2 mistakes to correct:\n\
             rs.toml:2:9: `count` is 0; expected 1 to 64\n\
             2 | count = 0\n  \
             |         ^\n\
             rs.toml:3:1: port \"a\" has no `device`; expected the name of a TAP interface\n\
             3 | [[port]]\n  \
             | ^^^^^^^^\n"
        );
    }

    #[test]
    fn causes_follow_on_lines_of_their_own() {
        let failure = Failure::from(io::Error::from_raw_os_error(32));
        assert_eq!(failure.exit_code(), 1);
        let text = report(&failure);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ringswitch: cannot write to standard output");
        assert_eq!(lines[1], "  because: Broken pipe (os error 32)");
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn one_thing_is_singular() {
        assert_eq!(
            [count(0, "port"), count(1, "port"), count(2, "port")],
            ["0 ports", "1 port", "2 ports"]
        );
    }
}
