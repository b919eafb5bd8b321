//! Numbers and names as they stand in columns, and how things look.

use ratatui::style::{Color, Modifier, Style};

use crate::cli::numbers::scaled;
use crate::cli::top::model::Rate;
use crate::cli::way::Way;

/// How things look. Nothing is told by colour alone.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    colours: bool,
}

impl Look {
    /// As the environment wants it: <https://no-color.org>.
    pub fn of_environment() -> Self {
        Self { colours: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    #[cfg(test)]
    pub fn plain() -> Self {
        Self { colours: false }
    }

    fn colour(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    /// What explains, and isn't what one looks for.
    pub fn faint(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What is chosen, and what must be seen.
    pub fn marked(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub fn good(self) -> Style {
        self.colour(Color::Green)
    }

    pub fn bad(self) -> Style {
        self.colour(Color::Red)
    }

    pub fn way(self, way: Way) -> Style {
        match way {
            Way::Guests => self.colour(Color::Green),
            Way::Uplink => self.colour(Color::Yellow),
            Way::Tap => self.colour(Color::Cyan),
        }
    }

    /// Of a number: none and nothing are faint.
    pub fn rate(self, rate: Rate) -> Style {
        if rate.is_some_and(|rate| rate > 0.0) { Style::new() } else { self.faint() }
    }

    /// Of a number that had better be 0.
    pub fn drops(self, rate: Rate) -> Style {
        if rate.is_some_and(|rate| rate > 0.0) { self.bad() } else { self.faint() }
    }
}

/// What tells the ways apart where there are no colours.
pub fn mark(way: Way) -> char {
    match way {
        Way::Guests => '=',
        Way::Uplink => '^',
        Way::Tap => '~',
    }
}

/// For a column of numbers: prefixes stand below each other.
pub fn number(rate: Rate) -> String {
    let text = rate.map_or_else(|| "-".to_owned(), scaled);
    if text.contains(' ') { text } else { text + "  " }
}

/// For a line: `12.3 Gbit/s`.
pub fn with_unit(rate: Rate, unit: &str) -> String {
    let text = rate.map_or_else(|| "-".to_owned(), scaled);
    let space = if text.contains(' ') || unit.starts_with('/') { "" } else { " " };
    format!("{text}{space}{unit}")
}

/// A name in `width` columns: if it is too long, its middle goes, for names differ at their ends.
pub fn fitted(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    let head: String = name.chars().take(room / 2).collect();
    let tail: String = name.chars().skip(length - room.div_ceil(2)).collect();
    format!("{head}…{tail}")
}

/// A text in lines of `width` columns, cut between words.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// `1 d 02:03:04`.
pub fn age(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days == 0 { clock } else { format!("{days} d {clock}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_below_each_other() {
        for (rate, text) in
            [(None, "-  "), (Some(0.0), "0  "), (Some(999.0), "999  "), (Some(1e9), "1.00 G")]
        {
            assert_eq!(number(rate), text);
        }
        assert_eq!(with_unit(Some(1.23e10), "bit/s"), "12.3 Gbit/s");
        assert_eq!(with_unit(Some(12.0), "bit/s"), "12 bit/s");
        assert_eq!(with_unit(Some(12.0), "/s"), "12/s");
    }

    #[test]
    fn long_names_lose_their_middle() {
        assert_eq!(fitted("vm1", 3), "vm1");
        assert_eq!(fitted("tenant-a-web-01", 8), "ten…b-01");
        assert_eq!(fitted("abc", 1), "…");
        assert_eq!(fitted("abc", 0), "");
    }

    #[test]
    fn texts_are_cut_between_words() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("one two three", 13), ["one two three"]);
        assert_eq!(wrapped("one-two three", 3), ["one-two", "three"]);
    }

    #[test]
    fn ages_have_days_if_any() {
        assert_eq!((age(61), age(93_784)), ("00:01:01".to_owned(), "1 d 02:03:04".to_owned()));
    }

    #[test]
    fn without_colours_there_are_none() {
        let look = Look::plain();
        for style in [look.good(), look.bad(), look.way(Way::Guests), look.drops(Some(1.0))] {
            assert_eq!((style.fg, style.bg), (None, None));
        }
        assert!(Look { colours: true }.way(Way::Uplink).fg.is_some());
    }
}
