//! The views that are tables: ports, workers, drops.

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use ringswitch::frame::DropReason;

use super::text::{Look, fitted, number, wrapped};
use super::{nothing, range, window};
use crate::cli::latency::micros;
use crate::cli::numbers::whole;
use crate::cli::slow;
use crate::cli::top::model::{DropRow, PortRow, Rate, WorkerRow};
use crate::cli::top::state::{App, SortBy};

/// From here on there is room for what reasons mean.
const WIDE: u16 = 130;
/// So many guests that are too slow are named.
const SLOW: usize = 3;
/// The longest bar.
const BAR: usize = 40;

/// A column: what stands above it, in two lines, and how wide it is.
pub(super) struct Column {
    pub above: [&'static str; 2],
    pub width: u16,
    pub right: bool,
}

impl Column {
    /// Of texts.
    pub const fn left(above: &'static str, width: u16) -> Self {
        Self { above: ["", above], width, right: false }
    }

    /// Of numbers.
    pub const fn right(above: [&'static str; 2], width: u16) -> Self {
        Self { above, width, right: true }
    }
}

/// Draws rows below their columns' names. The first column is indented by one.
pub(super) fn table<'a>(
    frame: &mut Frame<'_>,
    area: Rect,
    columns: &[Column],
    rows: impl Iterator<Item = Row<'a>>,
    look: Look,
) {
    let head = columns.iter().map(|column| {
        let text = Text::from(column.above.map(Line::from).to_vec());
        Cell::from(if column.right { text.right_aligned() } else { text })
    });
    let head = Row::new(head.collect::<Vec<_>>()).height(2).style(look.strong());
    let widths = columns.iter().map(|column| Constraint::Length(column.width));
    let table = Table::new(rows.collect::<Vec<_>>(), widths).header(head).column_spacing(2);
    frame.render_widget(table, Rect { x: area.x + 1, width: area.width - 1, ..area });
}

/// A number at the right of its column.
pub(super) fn right<'a>(text: String, style: Style) -> Cell<'a> {
    Cell::from(Text::styled(text, style).right_aligned())
}

fn rate<'a>(value: Rate, look: Look) -> Cell<'a> {
    right(number(value), look.rate(value))
}

fn time<'a>(seconds: Option<f64>, look: Look) -> Cell<'a> {
    right(micros(seconds), if seconds.is_some() { Style::new() } else { look.faint() })
}

/// The lines of an area below the columns' names.
pub(super) fn room(area: Rect) -> usize {
    usize::from(area.height.saturating_sub(2))
}

pub(super) fn ports(frame: &mut Frame<'_>, area: Rect, app: &mut App, look: Look) -> String {
    let count = app.ports().len();
    if count == 0 {
        let text = format!("no port has \"{}\" in its name: Esc shows all", app.filter);
        nothing(frame, area, &text);
        return range(&(0..0), 0, "port");
    }
    let seen = window(&mut app.scroll.row, count, room(area));
    let ports = app.ports();
    let longest = ports.iter().map(|port| port.name.len()).max().unwrap_or_default();
    // What the other columns and their spaces leave.
    let width = longest.clamp(6, usize::from(area.width.saturating_sub(66).max(6)));
    let arrow = |by: SortBy, plain: &'static str, [up, down]: [&'static str; 2]| {
        if app.sort != by {
            plain
        } else if app.reversed {
            up
        } else {
            down
        }
    };
    let columns = [
        Column::left(arrow(SortBy::Name, "PORT", ["PORT▲", "PORT▼"]), width as u16),
        Column::left(arrow(SortBy::Kind, "KIND", ["KIND▲", "KIND▼"]), 6),
        Column::left(arrow(SortBy::State, "STATE", ["STATE▲", "STATE▼"]), 6),
        Column::right(["FRAMES", arrow(SortBy::FramesIn, "IN/S", ["▲IN/S", "▼IN/S"])], 6),
        Column::right(["BITS", arrow(SortBy::BitsIn, "IN/S", ["▲IN/S", "▼IN/S"])], 6),
        Column::right(["FRAMES", arrow(SortBy::FramesOut, "OUT/S", ["▲OUT/S", "▼OUT/S"])], 6),
        Column::right(["BITS", arrow(SortBy::BitsOut, "OUT/S", ["▲OUT/S", "▼OUT/S"])], 6),
        Column::right(["DROPS", arrow(SortBy::Drops, "/S", ["▲/S", "▼/S"])], 6),
        Column::right(["RING", arrow(SortBy::Ring, "BUFS", ["▲BUFS", "▼BUFS"])], 5),
    ];
    let row = |port: &PortRow| {
        let state = if port.up { ("up", look.good()) } else { ("down", look.bad()) };
        Row::new([
            Cell::from(fitted(&port.name, width)),
            Cell::from(port.kind),
            Cell::from(Text::styled(state.0, state.1)),
            rate(port.frames_in, look),
            rate(port.bits_in, look),
            rate(port.frames_out, look),
            rate(port.bits_out, look),
            right(number(port.drops), look.drops(port.drops)),
            buffers(port, look),
        ])
    };
    let shown = ports.get(seen.clone()).unwrap_or_default().iter();
    table(frame, area, &columns, shown.map(|port| row(port)), look);
    let by = if app.sort == SortBy::Traffic { ", most traffic first" } else { "" };
    let by = if app.reversed && !by.is_empty() { ", least traffic first" } else { by };
    range(&seen, count, "port") + by
}

/// How many receive buffers the guest has left.
fn buffers<'a>(port: &PortRow, look: Look) -> Cell<'a> {
    match &port.ring {
        Some(ring) if ring.buffers == Some(0) => right(ring.free(), look.bad()),
        Some(ring) => right(ring.free(), Style::new()),
        None => right("-".to_owned(), look.faint()),
    }
}

pub(super) fn workers(frame: &mut Frame<'_>, area: Rect, app: &mut App, look: Look) -> String {
    let count = app.figures.workers.len();
    let seen = window(&mut app.scroll.row, count, room(area));
    let bar = usize::from(area.width.saturating_sub(68)).clamp(4, BAR);
    let columns = [
        Column::left("WORKER", 6),
        Column::right(["", "BUSY"], 4),
        Column::left("", bar as u16),
        Column::right(["", "FRAMES/S"], 8),
        Column::right(["", "SLEEPS/S"], 8),
        Column::right(["", "LOOKS/S"], 7),
        Column::right(["PASSED", "OVER/S"], 6),
        Column::right(["P50", "µs"], 6),
        Column::right(["P99", "µs"], 6),
    ];
    let row = |worker: &WorkerRow| {
        let share = worker.busy.map_or_else(|| "-".to_owned(), |b| format!("{:.0}%", b * 100.0));
        let full = (worker.busy.unwrap_or_default() * bar as f64).round() as usize;
        let full = full.min(bar);
        let drawn = "█".repeat(full) + &"░".repeat(bar - full);
        Row::new([
            Cell::from(worker.worker.to_string()),
            right(share, look.rate(worker.busy)),
            Cell::from(Text::styled(drawn, look.good())),
            rate(worker.frames, look),
            rate(worker.sleeps, look),
            rate(worker.looks, look),
            rate(worker.passed_over, look),
            time(worker.latency[0], look),
            time(worker.latency[1], look),
        ])
    };
    let shown = app.figures.workers.get(seen.clone()).unwrap_or_default().iter();
    table(frame, area, &columns, shown.map(row), look);
    range(&seen, count, "worker")
}

pub(super) fn drops(frame: &mut Frame<'_>, area: Rect, app: &mut App, look: Look) -> String {
    let all = app.figures.drops.iter().filter(|drop| app.passes(&drop.port));
    let mut all: Vec<DropRow> = all.cloned().collect();
    if all.is_empty() {
        let text = match app.filter.as_str() {
            "" => "nothing was dropped since the process began".to_owned(),
            filter => format!(
                "nothing was dropped at a port with \"{filter}\" in its name: Esc shows all"
            ),
        };
        nothing(frame, area, &text);
        return range(&(0..0), 0, "reason");
    }
    let rate_of = |drop: &DropRow| drop.frames.unwrap_or_default();
    all.sort_by(|a, b| rate_of(b).total_cmp(&rate_of(a)).then_with(|| b.total.cmp(&a.total)));
    let area = slow_guests(frame, area, app, look);
    let seen = window(&mut app.scroll.row, all.len(), room(area));
    let longest = all.iter().map(|drop| drop.port.len()).max().unwrap_or_default().max(4);
    let mut columns = vec![
        Column::left("PORT", longest as u16),
        Column::left("REASON", 19),
        Column::right(["", "FRAMES/S"], 8),
        Column::right(["", "TOTAL"], 15),
    ];
    if area.width >= WIDE {
        columns.push(Column::left("MEANING", area.width.saturating_sub(longest as u16 + 52)));
    }
    let row = |drop: &DropRow| {
        let reason = DropReason::ALL.iter().find(|reason| reason.name() == drop.reason);
        Row::new([
            Cell::from(drop.port.clone()),
            Cell::from(drop.reason.clone()),
            right(number(drop.frames), look.drops(drop.frames)),
            right(whole(drop.total), Style::new()),
            Cell::from(Text::styled(reason.map_or("", |reason| reason.text()), look.faint())),
        ])
    };
    let shown = all.get(seen.clone()).unwrap_or_default().iter();
    table(frame, area, &columns, shown.map(row), look);
    range(&seen, all.len(), "reason") + ", most frames first"
}

/// Says at the bottom which guests are too slow. Returns what is left of the area.
fn slow_guests(frame: &mut Frame<'_>, area: Rect, app: &App, look: Look) -> Rect {
    let slow = app.figures.slow.iter().filter(|slow| app.passes(&slow.port)).take(SLOW);
    let line = |(text, style)| Line::styled(format!(" {text}"), style);
    let width = usize::from(area.width - 2);
    let texts = slow.flat_map(|slow| wrapped(&slow.to_string(), width));
    let mut lines: Vec<_> = texts.map(|text| line((text, look.bad()))).collect();
    if lines.is_empty() {
        return area;
    }
    lines.push(line((slow::ADVICE.to_owned(), look.faint())));
    let height = (lines.len() as u16).min(area.height / 2);
    let place = Rect { y: area.bottom() - height, height, ..area };
    frame.render_widget(Paragraph::new(lines), place);
    // And an empty line.
    Rect { height: area.height - height - 1, ..area }
}
