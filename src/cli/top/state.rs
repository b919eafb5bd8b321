//! What the viewer chose to see, and what keys do. It knows nothing of terminals but their keys.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Figures, PortRow};

/// The intervals that `+` and `-` go through, seconds.
const INTERVALS: [u32; 7] = [1, 2, 5, 10, 30, 60, 300];
/// How long it is said that another process has taken over.
const NEWS: Duration = Duration::from_secs(10);
/// Rows of a page.
const PAGE: usize = 10;

/// What can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Ports,
    Workers,
    Drops,
    Flows,
}

impl View {
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::Ports, "Ports"),
        (Self::Workers, "Workers"),
        (Self::Drops, "Drops"),
        (Self::Flows, "Flows"),
    ];

    /// The one that is `by` places further.
    fn next(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|(view, _)| *view == self).unwrap_or_default();
        Self::ALL.iter().map(|(view, _)| *view).cycle().nth(at + by).unwrap_or(self)
    }
}

/// What ports are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortBy {
    Name,
    Kind,
    State,
    FramesIn,
    FramesOut,
    BitsIn,
    BitsOut,
    Drops,
    /// The fewest buffers first.
    Ring,
    /// In both directions.
    Traffic,
}

impl SortBy {
    /// Each one's key.
    pub const KEYS: [(char, Self); 10] = [
        ('n', Self::Name),
        ('k', Self::Kind),
        ('s', Self::State),
        ('f', Self::FramesIn),
        ('F', Self::FramesOut),
        ('b', Self::BitsIn),
        ('B', Self::BitsOut),
        ('d', Self::Drops),
        ('r', Self::Ring),
        ('t', Self::Traffic),
    ];

    /// How two ports compare: texts from A, numbers from the largest.
    fn compare(self, a: &PortRow, b: &PortRow) -> Ordering {
        let most = |of: fn(&PortRow) -> f64| of(b).total_cmp(&of(a));
        match self {
            Self::Name => a.name.cmp(&b.name),
            Self::Kind => a.kind.cmp(b.kind),
            Self::State => b.up.cmp(&a.up),
            Self::FramesIn => most(|port| port.frames_in.unwrap_or_default()),
            Self::FramesOut => most(|port| port.frames_out.unwrap_or_default()),
            Self::BitsIn => most(|port| port.bits_in.unwrap_or_default()),
            Self::BitsOut => most(|port| port.bits_out.unwrap_or_default()),
            Self::Drops => most(|port| port.drops.unwrap_or_default()),
            Self::Ring => {
                // Where nothing is known comes last.
                let buffers = |port: &PortRow| port.ring.as_ref().and_then(|ring| ring.buffers);
                buffers(a).unwrap_or(u32::MAX).cmp(&buffers(b).unwrap_or(u32::MAX))
            }
            Self::Traffic => {
                most(|port| port.bits_in.unwrap_or_default() + port.bits_out.unwrap_or_default())
            }
        }
    }
}

/// What the caller of [`App::key`] has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Quit,
    /// Another interval.
    Ask(u32),
}

/// Whether the switch answers.
#[derive(Clone, Debug)]
pub enum Link {
    Up,
    /// Since when not, and why.
    Lost(Instant, String),
}

/// How far a view was scrolled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scroll {
    pub row: usize,
    pub column: usize,
}

/// The whole state.
#[derive(Debug)]
pub struct App {
    pub view: View,
    pub figures: Figures,
    pub link: Link,
    /// When which process was replaced.
    replaced: Option<(Instant, u32)>,
    pub paused: bool,
    /// Seconds.
    pub interval: u32,
    pub filter: String,
    /// Whether keys go to the filter.
    pub typing: bool,
    pub help: bool,
    pub sort: SortBy,
    pub reversed: bool,
    /// Whether flows are a list even where a matrix fits.
    pub list: bool,
    /// Of the view that is shown; drawing keeps it within what there is.
    pub scroll: Scroll,
}

impl App {
    pub fn new(figures: Figures, interval: u32) -> Self {
        Self {
            view: View::Ports,
            figures,
            link: Link::Up,
            replaced: None,
            paused: false,
            interval,
            filter: String::new(),
            typing: false,
            help: false,
            sort: SortBy::Traffic,
            reversed: false,
            list: false,
            scroll: Scroll::default(),
        }
    }

    /// The switch has answered; another process than before, maybe.
    pub fn seen(&mut self, figures: Figures, replaced: Option<u32>, now: Instant) {
        self.link = Link::Up;
        if let Some(pid) = replaced {
            self.replaced = Some((now, pid));
        }
        if !self.paused {
            self.figures = figures;
        }
    }

    /// The switch hasn't.
    pub fn lost(&mut self, why: String, now: Instant) {
        let since = if let Link::Lost(since, _) = self.link { since } else { now };
        self.link = Link::Lost(since, why);
    }

    /// What the viewer must know now.
    pub fn notice(&self, now: Instant) -> Option<String> {
        if let Link::Lost(since, why) = &self.link {
            return Some(format!("{why} for {} s; trying again", (now - *since).as_secs()));
        }
        let (since, old) = self.replaced?;
        (now - since < NEWS)
            .then(|| format!("another process has taken over from {old}: its counters begin anew"))
    }

    /// Ports that pass the filter, sorted.
    pub fn ports(&self) -> Vec<&PortRow> {
        let ports = self.figures.ports.iter().filter(|port| self.passes(&port.name));
        let mut ports: Vec<_> = ports.collect();
        ports.sort_by(|a, b| {
            let order = self.sort.compare(a, b);
            let order = if self.reversed { order.reverse() } else { order };
            // Those of the same rank don't change places.
            order.then_with(|| a.name.cmp(&b.name))
        });
        ports
    }

    /// Whether this name passes the filter.
    pub fn passes(&self, name: &str) -> bool {
        name.to_lowercase().contains(&self.filter.to_lowercase())
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Wish::Quit);
        }
        if self.typing {
            self.type_filter(key.code);
            return None;
        }
        match key.code {
            KeyCode::Char('q') => return Some(Wish::Quit),
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            // Help goes away with any other key.
            _ if self.help => self.help = false,
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('+' | '=') => return self.interval(true),
            KeyCode::Char('-') => return self.interval(false),
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Tab => self.show(self.view.next(1)),
            KeyCode::BackTab => self.show(self.view.next(View::ALL.len() - 1)),
            KeyCode::Char(digit @ '1'..='4') => {
                let number = digit.to_digit(10).unwrap_or(1) as usize;
                self.show(View::Ports.next(number - 1));
            }
            KeyCode::Char('l') if self.view == View::Flows => {
                self.list = !self.list;
                self.scroll = Scroll::default();
            }
            KeyCode::Char(letter) if self.view == View::Ports => self.sort_by(letter),
            code => self.scroll(code),
        }
        None
    }

    fn show(&mut self, view: View) {
        if self.view != view {
            self.view = view;
            self.scroll = Scroll::default();
        }
    }

    fn sort_by(&mut self, letter: char) {
        let Some((_, by)) = SortBy::KEYS.iter().find(|(key, _)| *key == letter) else { return };
        self.reversed = self.sort == *by && !self.reversed;
        self.sort = *by;
    }

    fn interval(&mut self, longer: bool) -> Option<Wish> {
        let other = if longer {
            INTERVALS.into_iter().find(|secs| *secs > self.interval)
        } else {
            INTERVALS.into_iter().rev().find(|secs| *secs < self.interval)
        };
        self.interval = other?;
        other.map(Wish::Ask)
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            // No name has other characters, nor more of them.
            KeyCode::Char(c) if c.is_ascii_graphic() && self.filter.len() < 32 => {
                self.filter.push(c);
            }
            _ => {}
        }
        self.scroll = Scroll::default();
    }

    fn scroll(&mut self, code: KeyCode) {
        let Scroll { row, column } = &mut self.scroll;
        match code {
            KeyCode::Up => *row = row.saturating_sub(1),
            KeyCode::Down => *row = row.saturating_add(1),
            KeyCode::PageUp => *row = row.saturating_sub(PAGE),
            KeyCode::PageDown => *row = row.saturating_add(PAGE),
            KeyCode::Left => *column = column.saturating_sub(1),
            KeyCode::Right => *column = column.saturating_add(1),
            KeyCode::Home => (*row, *column) = (0, 0),
            KeyCode::End => *row = usize::MAX,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::Model;
    use super::super::testing::{port, sample};
    use super::*;
    use ringswitch::api::PortKind;

    fn app() -> App {
        let mut model = Model::default();
        let mut first = sample(0, 1, 0);
        let mut second = sample(1, 1, 1000);
        first.ports.push(port("down", PortKind::VhostUser, false, 0));
        second.ports.push(port("down", PortKind::VhostUser, false, 50));
        model.take(first);
        App::new(model.take(second).0, 1)
    }

    fn press(app: &mut App, keys: &str) -> Option<Wish> {
        let code = |key| match key {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\x1b' => KeyCode::Esc,
            '\x08' => KeyCode::Backspace,
            '^' => KeyCode::Up,
            'v' => KeyCode::Down,
            key => KeyCode::Char(key),
        };
        keys.chars().map(|key| app.key(KeyEvent::from(code(key)))).last().flatten()
    }

    fn names(app: &App) -> String {
        let names: Vec<_> = app.ports().iter().map(|port| port.name.as_str()).collect();
        names.join(" ")
    }

    #[test]
    fn ports_are_sorted_by_the_keys_of_columns() {
        let mut app = app();
        assert_eq!(names(&app), "up0 vm1 down vm2", "by traffic");
        for (keys, order) in [
            ("n", "down up0 vm1 vm2"),
            ("n", "vm2 vm1 up0 down"),
            ("n", "down up0 vm1 vm2"),
            ("k", "down vm1 vm2 up0"),
            ("s", "up0 vm1 vm2 down"),
            ("d", "up0 vm1 down vm2"),
            ("r", "down vm1 vm2 up0"),
            ("b", "up0 vm1 down vm2"),
            ("b", "vm2 down up0 vm1"),
            ("x", "vm2 down up0 vm1"),
            ("t", "up0 vm1 down vm2"),
        ] {
            press(&mut app, keys);
            assert_eq!(names(&app), order, "{keys}");
        }
        press(&mut app, "2n");
        assert_eq!(app.sort, SortBy::Traffic, "there is nothing to sort in another view");
    }

    #[test]
    fn a_filter_is_typed_kept_and_cleared() {
        let mut app = app();
        press(&mut app, "/VMq");
        assert_eq!((names(&app).as_str(), app.typing), ("", true), "q is a letter here");
        press(&mut app, "\x08\n");
        assert_eq!((names(&app).as_str(), app.typing), ("vm1 vm2", false));
        press(&mut app, "2\t\x1b");
        assert_eq!(app.filter, "");
        press(&mut app, "/x\x1b");
        assert_eq!((app.filter.as_str(), app.typing), ("", false));
    }

    #[test]
    fn keys_change_views_and_scroll_in_them() {
        let mut app = app();
        press(&mut app, "vv^");
        assert_eq!(app.scroll.row, 1);
        press(&mut app, "1");
        assert_eq!(app.scroll.row, 1, "it is shown already");
        for (key, view) in [
            ("\t", View::Workers),
            ("3", View::Drops),
            ("\t", View::Flows),
            ("\t", View::Ports),
            ("4", View::Flows),
        ] {
            press(&mut app, key);
            assert_eq!((app.view, app.scroll.row), (view, 0));
        }
        app.key(KeyEvent::from(KeyCode::BackTab));
        assert_eq!(app.view, View::Drops);
    }

    #[test]
    fn help_is_in_the_way_of_no_key_but_the_first() {
        let mut app = app();
        press(&mut app, "?");
        assert!(app.help);
        press(&mut app, "2");
        assert_eq!((app.help, app.view), (false, View::Ports));
        assert_eq!(press(&mut app, "hq"), Some(Wish::Quit));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        press(&mut app, "/");
        assert_eq!(app.key(interrupt), Some(Wish::Quit), "also while a filter is typed");
    }

    #[test]
    fn the_interval_has_ends() {
        let mut app = app();
        assert_eq!(press(&mut app, "-"), None);
        assert_eq!(press(&mut app, "+"), Some(Wish::Ask(2)));
        app.interval = 7;
        assert_eq!(press(&mut app, "+"), Some(Wish::Ask(10)));
        app.interval = 3600;
        assert_eq!(press(&mut app, "+"), None);
        assert_eq!(press(&mut app, "-"), Some(Wish::Ask(300)));
    }

    #[test]
    fn what_is_paused_stays() {
        let mut app = app();
        let now = Instant::now();
        let mut other = app.figures.clone();
        other.ports.clear();
        press(&mut app, "p");
        app.seen(other.clone(), None, now);
        assert_eq!(app.figures.ports.len(), 4);
        press(&mut app, "p");
        app.seen(other, None, now);
        assert_eq!(app.figures.ports.len(), 0);
    }

    #[test]
    fn a_switch_that_is_gone_and_comes_back_is_told() {
        let mut app = app();
        let now = Instant::now();
        assert_eq!(app.notice(now), None);
        app.lost("nobody answers".to_owned(), now);
        app.lost("nobody answers".to_owned(), now + NEWS / 2);
        let text = app.notice(now + NEWS / 2).expect("a notice");
        assert_eq!(text, "nobody answers for 5 s; trying again");
        app.seen(app.figures.clone(), Some(7), now + NEWS);
        let text = app.notice(now + NEWS).expect("a notice");
        assert!(text.starts_with("another process has taken over from 7"), "{text}");
        assert_eq!(app.notice(now + NEWS * 2), None, "no news any more");
    }
}
