//! A network namespace of one's own.

use std::process::Command;

use super::unique;

/// A named network namespace, with its loopback device up; removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new one.
    pub fn new() -> Netns {
        let name = unique("rs");
        must(Command::new("ip").args(["netns", "add", &name]));
        let netns = Netns { name };
        netns.run("ip link set lo up");
        netns
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `program`, to be started in it. `ip` becomes the program, so the process id is right.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a command line (words without quotes) in it and returns what it prints; panics when
    /// it fails.
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        must(self.command(words.next().expect("a program")).args(words))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and a panic would hide the test's own.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs a command and returns what it prints; panics when it fails.
pub fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
