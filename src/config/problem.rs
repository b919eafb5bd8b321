//! What is wrong with a configuration, where, and what was expected.
//!
//! Owns the positions in the text and the form of the messages. The text comes from a file that
//! may hold anything, so nothing of it reaches a terminal unescaped or at unbounded length.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The characters shown of a line.
const SHOWN_WIDTH: usize = 100;

/// Everything that is wrong with a configuration; at least one problem.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}", joined(.problems))]
pub struct ConfigErrors {
    problems: Vec<Problem>,
}

/// One mistake in a configuration. Its text has a first line of the form
/// `FILE:LINE:COLUMN: what is wrong; expected what`, then the line of the file, marked.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The file; `None` for a mistake on the command line.
    pub file: Option<PathBuf>,
    /// Where in the file; `None` if no line is to blame.
    pub position: Option<Position>,
    /// What is wrong and what was expected, in one line.
    pub message: String,
}

/// A place in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Characters to mark, at least 1.
    pub width: usize,
    /// The whole line.
    pub text: String,
}

impl ConfigErrors {
    /// The problems in the order in which they were found.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// `Ok` if there are no problems.
    pub(super) fn none_or(problems: Vec<Problem>) -> Result<(), ConfigErrors> {
        if problems.is_empty() { Ok(()) } else { Err(ConfigErrors { problems }) }
    }
}

impl From<Problem> for ConfigErrors {
    fn from(problem: Problem) -> Self {
        Self { problems: vec![problem] }
    }
}

/// The text that values came from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// A file and what it holds.
    File { name: &'a Path, text: &'a str },
    /// The command line, which has no lines.
    Arguments,
}

impl Source<'_> {
    /// A problem with the bytes `span`, or with the whole if there is no span.
    pub fn problem(&self, span: Option<Range<usize>>, message: &str) -> Problem {
        let (file, position) = match self {
            Source::File { name, text } => {
                (Some(name.to_path_buf()), span.map(|span| Position::find(text, span)))
            }
            Source::Arguments => (None, None),
        };
        Problem { file, position, message: printable(message) }
    }

    /// The port whose value is at `span`, for a sentence about another one.
    pub fn port_at(&self, span: &Range<usize>) -> String {
        match self {
            Source::File { text, .. } => {
                format!("the port at line {}", Position::find(text, span.clone()).line)
            }
            Source::Arguments => "another port".to_owned(),
        }
    }
}

impl Position {
    fn find(text: &str, span: Range<usize>) -> Self {
        let start = text.floor_char_boundary(span.start);
        let end = text.ceil_char_boundary(span.end).max(start);
        let (before, after) = text.split_at(start);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = after.find('\n').map_or(text.len(), |newline| start + newline);
        let chars = |range: Range<usize>| text.get(range).map_or(0, |part| part.chars().count());
        Self {
            line: before.matches('\n').count() + 1,
            column: chars(line_start..start) + 1,
            width: chars(start..end.min(line_end)).max(1),
            text: text.get(line_start..line_end).unwrap_or_default().trim_end().to_owned(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", printable(&file.to_string_lossy()))?;
            if let Some(position) = &self.position {
                write!(f, "{}:{}:", position.line, position.column)?;
            }
            f.write_str(" ")?;
        }
        f.write_str(&self.message)?;
        self.position.as_ref().map_or(Ok(()), |position| position.show(f))
    }
}

impl Position {
    /// The line with its number, and below it marks under the faulty part.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.column.saturating_sub(1);
        // Of a very long line, the part around the fault.
        let skipped = before.saturating_sub(SHOWN_WIDTH / 2);
        let shown: String = self.text.chars().skip(skipped).take(SHOWN_WIDTH).collect();
        let indent = before - skipped;
        let width = self.width.min(SHOWN_WIDTH - indent);
        let number = self.line.to_string();
        let gutter = number.len();
        write!(f, "\n{number} | {}", printable(&shown))?;
        write!(f, "\n{:gutter$} | {:indent$}{}", "", "", "^".repeat(width))
    }
}

/// `text` with each control character replaced: one line, harmless on a terminal, and as wide as
/// it was.
pub(super) fn printable(text: &str) -> String {
    let replace = |c: char| match c {
        '\t' | '\n' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(replace).collect()
}

fn joined(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
