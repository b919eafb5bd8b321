//! Draws the state: a header, one of the views, keys.

mod flows;
mod tables;
mod text;

use std::time::Instant;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::state::{App, Link, View};
pub use text::Look;
use text::{age, with_unit};

/// The least that a screen must have: below it tables can't be read.
const LEAST: (u16, u16) = (72, 12);

const HELP: &str = "\
1-4 Tab     the views: ports, workers, drops, flows
arrows      scroll; PgUp PgDn Home End, too
/           show only ports whose name has these letters; Esc: all
p           pause: the switch goes on, the picture stays
+ -         look less or more often
q Ctrl-C    quit

Ports       sort by n name, k kind, s state, f F frames in and out,
            b B bits in and out, d drops, r ring, t traffic; twice: reversed
Flows       l: list or matrix; rows are senders, columns receivers

IN is what comes from the port into the switch, OUT what leaves by it,
RING BUFS how many receive buffers the guest has left: 0 is too slow.
P50, P99: half of the frames, or 99 of 100, were in the switch no longer.
Prefixes are those of the SI: 1 k is 1000. Any key closes this.";

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, app: &mut App, look: Look, now: Instant) {
    let area = frame.area();
    let (width, height) = LEAST;
    if area.width < width || area.height < height {
        let text = format!("too small: {width} columns and {height} lines are the least (q quits)");
        return frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
    }
    let parts = [1, 1, 1, 1].map(Constraint::Length);
    let [head, sums, tabs, notice] = Layout::vertical(parts).areas(Rect { height: 4, ..area });
    let body = Rect { y: area.y + 4, height: area.height - 5, ..area };
    let foot = Rect { y: area.bottom() - 1, height: 1, ..area };
    header(frame, head, app, look);
    totals(frame, sums, app, look);
    let range = match app.view {
        View::Ports => tables::ports(frame, body, app, look),
        View::Workers => tables::workers(frame, body, app, look),
        View::Drops => tables::drops(frame, body, app, look),
        View::Flows => flows::draw(frame, body, app, look),
    };
    views(frame, tabs, app, look);
    extent(frame, notice, app, look, &range);
    if let Some(text) = app.notice(now) {
        frame.render_widget(Line::styled(format!(" {text} "), look.marked()), notice);
    }
    if matches!(app.link, Link::Lost(..)) {
        // It is not what the switch does now.
        frame.buffer_mut().set_style(body, look.faint());
    }
    frame.render_widget(keys(app, look), foot);
    if app.help {
        help(frame, area, look);
    }
}

/// The process, and how often it is asked.
fn header(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) {
    let process = &app.figures.process;
    let text = format!(
        " {} {}   process {}   up {}",
        process.program,
        process.version,
        process.pid,
        age(process.uptime_seconds)
    );
    frame.render_widget(Line::styled(text, look.strong()), area);
    let plural = if app.interval == 1 { "" } else { "s" };
    let mut right = vec![Span::raw(format!("every {} second{plural} ", app.interval))];
    if app.paused {
        right.insert(0, Span::styled(" PAUSED ", look.marked()));
        right.insert(1, Span::raw("  "));
    }
    frame.render_widget(Line::from(right).alignment(Alignment::Right), area);
}

fn totals(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) {
    let sums = &app.figures.sums;
    let guests = if area.width < 96 { " guests " } else { " guest to guest " };
    let mut line = vec![
        Span::styled(guests, look.faint()),
        Span::styled(with_unit(sums.guests, "bit/s"), look.strong()),
    ];
    if sums.has_uplink {
        line.extend([
            Span::styled("   uplink in ", look.faint()),
            Span::styled(with_unit(sums.uplink_in, "bit/s"), look.strong()),
            Span::styled(" out ", look.faint()),
            Span::styled(with_unit(sums.uplink_out, "bit/s"), look.strong()),
        ]);
    }
    line.extend([
        Span::styled("   drops ", look.faint()),
        Span::styled(with_unit(sums.drops, "/s"), look.drops(sums.drops).patch(look.strong())),
    ]);
    frame.render_widget(Line::from(line), area);
}

/// The names of the views.
fn views(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) {
    let mut line = vec![Span::raw(" ")];
    for (number, (view, name)) in (1..).zip(View::ALL) {
        let style = if view == app.view { look.marked() } else { look.faint() };
        line.push(Span::styled(format!(" {number} {name} "), style));
        line.push(Span::raw(" "));
    }
    frame.render_widget(Line::from(line), area);
}

/// The filter, and what part of the view is seen.
fn extent(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look, range: &str) {
    let filter = match app.filter.as_str() {
        "" => String::new(),
        text => format!("/{text}  "),
    };
    let line =
        vec![Span::styled(filter, look.strong()), Span::styled(format!("{range} "), look.faint())];
    frame.render_widget(Line::from(line).alignment(Alignment::Right), area);
}

fn keys(app: &App, look: Look) -> Line<'static> {
    const ALL: [(&str, &str); 5] =
        [("/", "filter"), ("p", "pause"), ("+ -", "interval"), ("?", "help"), ("q", "quit")];
    const TYPING: [(&str, &str); 2] = [("Enter", "keep the filter"), ("Esc", "show all")];
    let own = match app.view {
        View::Ports => ("n k s f F b B d r t", "sort"),
        View::Flows => ("l", "list or matrix"),
        View::Workers | View::Drops => ("1-4 Tab", "views"),
    };
    let keys = if app.typing { TYPING.to_vec() } else { [vec![own], ALL.to_vec()].concat() };
    let typed = app.typing.then(|| Span::styled(format!(" /{}_   ", app.filter), look.strong()));
    let keys = keys.into_iter().flat_map(|(key, what)| {
        [
            Span::styled(format!(" {key} "), look.strong()),
            Span::styled(format!("{what}  "), look.faint()),
        ]
    });
    Line::from(typed.into_iter().chain(keys).collect::<Vec<_>>())
}

fn help(frame: &mut Frame<'_>, area: Rect, look: Look) {
    let lines = HELP.lines().count() as u16;
    let [_, across, _] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(70 + 2), Constraint::Fill(1)])
            .areas(area);
    let [_, place, _] = Layout::vertical([
        Constraint::Fill(1),
        Constraint::Length((lines + 2).min(area.height)),
        Constraint::Fill(1),
    ])
    .areas(across);
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(Span::styled(" Keys ", look.strong()));
    frame.render_widget(Paragraph::new(HELP).block(block), place);
}

/// Says why there is nothing to see.
fn nothing(frame: &mut Frame<'_>, area: Rect, text: &str) {
    let area =
        Rect { y: area.y + area.height.min(2), height: area.height.saturating_sub(2), ..area };
    let text = Paragraph::new(text.to_owned()).alignment(Alignment::Center);
    frame.render_widget(text.wrap(Wrap { trim: true }), area);
}

/// The part of `count` rows that is seen in `room` lines, after `first` was brought into what there
/// is.
fn window(first: &mut usize, count: usize, room: usize) -> std::ops::Range<usize> {
    *first = (*first).min(count.saturating_sub(room));
    *first..(*first + room).min(count)
}

/// `3-20 of 40 ports`, or how many there are if all are seen.
fn range(seen: &std::ops::Range<usize>, count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    if seen.len() == count {
        format!("{count} {what}{plural}")
    } else {
        format!("{}-{} of {count} {what}{plural}", seen.start + 1, seen.end)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
