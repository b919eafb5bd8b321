//! `ringswitch completions` and `ringswitch man`: what shells and manuals know of the command line.
//!
//! Both are made from the definition of the arguments, so that they can't differ from it.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell as Complete;
use clap_mangen::Man;

use super::Cli;
use crate::Failure;

const EXAMPLES: &str = "\
Examples:
  ringswitch completions bash > /usr/share/bash-completion/completions/ringswitch
  ringswitch completions zsh > /usr/share/zsh/vendor-completions/_ringswitch
  ringswitch completions fish > /usr/share/fish/vendor_completions.d/ringswitch.fish";

/// The section of the pages: commands for administrators.
const SECTION: &str = "8";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where to write the pages; made if it isn't there
    directory: PathBuf,
}

/// The shells that there are completions for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints what completes the program's arguments in a shell.
///
/// # Errors
///
/// Standard output can't be written.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    Ok(io::stdout().write_all(&script(args.shell))?)
}

fn script(shell: Shell) -> Vec<u8> {
    let shell = match shell {
        Shell::Bash => Complete::Bash,
        Shell::Zsh => Complete::Zsh,
        Shell::Fish => Complete::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut visible(&Cli::command()), "ringswitch", &mut text);
    text
}

/// The definition without what is hidden, as far as completions need it: they would show that.
fn visible(command: &Command) -> Command {
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set());
    let mut shown = Command::new(command.get_name().to_owned())
        .args(arguments.cloned())
        .subcommands(commands.map(visible));
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    shown
}

/// Writes a page for the program and one for each of its commands, `ringswitch-show-ports.8`.
///
/// # Errors
///
/// A page can't be written.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let directory = &args.directory;
    let failed = |source| Failure::Pages { directory: directory.display().to_string(), source };
    fs::create_dir_all(directory).map_err(failed)?;
    for (name, text) in pages().map_err(failed)? {
        fs::write(directory.join(name), text).map_err(failed)?;
    }
    Ok(())
}

/// Names and texts of the pages.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    // `help` has nothing to say that `--help` hasn't.
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut commands = vec![program];
    let mut pages = Vec::new();
    while let Some(command) = commands.pop() {
        commands
            .extend(command.get_subcommands().filter(|command| !command.is_hide_set()).cloned());
        pages.push(page(command)?);
    }
    Ok(pages)
}

fn page(command: Command) -> io::Result<(String, Vec<u8>)> {
    let notes = command.get_after_help().map(ToString::to_string);
    let has_commands = command.has_subcommands();
    let title = command.get_display_name().unwrap_or(command.get_name()).to_uppercase();
    let man = Man::new(command)
        .title(title)
        .section(SECTION)
        .source(concat!("Ringswitch ", env!("CARGO_PKG_VERSION")))
        .manual("System administration");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_commands {
        man.render_subcommands_section(&mut text)?;
    }
    // Not by the renderer: it would fill examples like prose.
    text.extend(sections(&notes.unwrap_or_default()).into_bytes());
    Ok((man.get_filename(), text))
}

/// What stands below a help text: `Examples:` and the like become sections, indented lines stay as
/// they are, the rest is prose.
fn sections(notes: &str) -> String {
    let mut text = String::new();
    let mut verbatim = false;
    for line in notes.lines() {
        let indented = line.starts_with(' ');
        if indented != verbatim && !line.is_empty() {
            text.push_str(if indented { ".PP\n.nf\n" } else { ".fi\n" });
            verbatim = indented;
        }
        match line.strip_suffix(':').filter(|_| !indented) {
            Some(heading) => text.push_str(&format!(".SH \"{}\"\n", heading.to_uppercase())),
            None if line.is_empty() => text.push_str(".PP\n"),
            None => text.push_str(&format!("\\&{}\n", escaped(line))),
        }
    }
    if verbatim {
        text.push_str(".fi\n");
    }
    text
}

/// Text that roff prints as it is.
fn escaped(line: &str) -> String {
    line.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use std::process::{Command as Program, Stdio};

    use super::*;

    /// The names of all commands that are shown, with those above them.
    fn commands(above: &str, command: &Command) -> Vec<String> {
        let name = format!("{above}{}", command.get_name());
        let below = command.get_subcommands().filter(|command| !command.is_hide_set());
        let prefix = format!("{name}-");
        let below: Vec<_> = below.flat_map(|command| commands(&prefix, command)).collect();
        [vec![name], below].concat()
    }

    /// What a program says of a text that it is given. `tests/run` installs what is missing.
    fn said_by(program: &mut Program, text: &[u8]) -> String {
        let program = program.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = program.spawn().unwrap_or_else(|error| panic!("{program:?}: {error}"));
        child.stdin.take().unwrap().write_all(text).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{program:?}: {said}");
        said
    }

    #[test]
    fn each_shell_learns_the_commands_that_are_shown() {
        for shell in Shell::value_variants() {
            let text = String::from_utf8(script(*shell)).unwrap();
            for command in ["run", "upgrade", "check", "args", "show", "ports", "completions"] {
                assert!(text.contains(command), "{shell:?} has no {command}");
            }
            // Fish writes options without the dashes, and knows no values of positional arguments.
            assert!(text.contains("config"), "{shell:?} has no --config");
            assert!(*shell == Shell::Fish || text.contains("cloud-hypervisor"), "{shell:?}");
            for hidden in ["take-over", "DIRECTORY"] {
                assert!(!text.contains(hidden), "{shell:?} has {hidden}");
            }
        }
    }

    #[test]
    fn shells_accept_their_completions() {
        for (name, shell) in [("bash", Shell::Bash), ("zsh", Shell::Zsh), ("fish", Shell::Fish)] {
            assert_eq!(said_by(Program::new(name).arg("-n"), &script(shell)), "", "{name}");
        }
    }

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let mut wanted: Vec<_> =
            commands("", &Cli::command()).iter().map(|name| format!("{name}.8")).collect();
        let pages = pages().unwrap();
        let mut names: Vec<_> = pages.iter().map(|(name, _)| name.clone()).collect();
        wanted.sort();
        names.sort();
        assert_eq!(names, wanted);
        assert!(names.contains(&"ringswitch-show-ports.8".to_owned()), "{names:?}");
        for (name, text) in &pages {
            let text = String::from_utf8(text.clone()).unwrap();
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{name}: {text}");
            assert!(!text.contains("take\\-over"), "{name} shows what is hidden");
            let mut groff = Program::new("groff");
            let said = said_by(groff.args(["-man", "-ww", "-z"]), text.as_bytes());
            assert_eq!(said, "", "{name}");
        }
    }

    #[test]
    fn examples_keep_their_lines() {
        assert_eq!(
            sections("Examples:\n  a --b\n  .c \\\n\nIt ends."),
            ".SH \"EXAMPLES\"\n.PP\n.nf\n\\&  a \\-\\-b\n\\&  .c \\e\n.PP\n.fi\n\\&It ends.\n"
        );
        assert_eq!(sections(""), "");
    }

    #[test]
    fn pages_that_cannot_be_written_are_an_error_of_the_system() {
        let args = ManArgs { directory: "/dev/null/pages".into() };
        let failure = man(&args).unwrap_err();
        assert!(failure.to_string().contains("/dev/null/pages"), "{failure}");
        assert_eq!(failure.exit_code(), 1);
    }
}
