//! Who talks to whom: a matrix, or a list where there is no room for one.

use std::collections::HashMap;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Row};

use super::tables::{Column, right, room, table};
use super::text::{Look, fitted, mark, number};
use super::{nothing, range, window};
use crate::cli::top::model::{Figures, FlowRow, Rate};
use crate::cli::top::state::App;
use crate::cli::way::Way;

/// The widest names of rows and of columns in a matrix.
const ROW_NAME: usize = 20;
const COLUMN_NAME: usize = 12;
/// A number, and the mark behind it.
const CELL: usize = 7;
/// Fewer columns make no matrix.
const FEWEST: usize = 3;

/// Draws one or the other. Returns what part of it is seen.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, app: &mut App, look: Look) -> String {
    let legend = Rect { y: area.bottom() - 1, height: 1, ..area };
    let area = Rect { height: area.height - 1, ..area };
    if app.figures.flows.is_empty() {
        nothing(frame, area, "no frame has gone from one port to another yet");
        return range(&(0..0), 0, "flow");
    }
    let mut line = vec![Span::raw(" ")];
    for (way, text) in
        [(Way::Guests, "guest to guest"), (Way::Uplink, "by the uplink"), (Way::Tap, "another TAP")]
    {
        line.push(Span::styled(mark(way).to_string(), look.way(way).patch(look.strong())));
        line.push(Span::styled(format!(" {text}   "), look.faint()));
    }
    let grid = Grid::new(area, &app.figures);
    let text = if app.list || (grid.room < FEWEST && grid.room < app.figures.ports.len()) {
        list(frame, area, app, look)
    } else {
        line.push(Span::styled("· nothing yet   bit/s", look.faint()));
        matrix(frame, area, app, look, &grid)
    };
    frame.render_widget(Line::from(line), legend);
    text
}

/// How a matrix lies in an area.
struct Grid {
    /// Widths of the names of rows, and of cells.
    name: usize,
    cell: usize,
    /// How many columns there is room for.
    room: usize,
}

impl Grid {
    fn new(area: Rect, figures: &Figures) -> Self {
        let longest = figures.ports.iter().map(|port| port.name.len()).max().unwrap_or_default();
        let name = longest.clamp("FROM \\ TO".len(), ROW_NAME);
        let cell = longest.clamp(CELL, COLUMN_NAME);
        // The indentation, and the sums with their space.
        let left = usize::from(area.width).saturating_sub(1 + name + CELL + 2);
        Self { name, cell, room: left / (cell + 2) }
    }
}

/// The names of ports: in the order of the configuration if all are seen, else the busiest first.
fn order(figures: &Figures, fits: bool) -> Vec<&str> {
    let mut ports: Vec<_> = figures.ports.iter().collect();
    if !fits {
        ports.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    }
    ports.into_iter().map(|port| port.name.as_str()).collect()
}

fn matrix(frame: &mut Frame<'_>, area: Rect, app: &mut App, look: Look, grid: &Grid) -> String {
    // The last line is the sums'.
    let lines = room(area).saturating_sub(1);
    let count = app.figures.ports.len();
    let fits = count <= grid.room && count <= lines;
    let filter = app.filter.to_lowercase();
    let columns = order(&app.figures, fits);
    let rows = columns.iter().filter(|name| name.to_lowercase().contains(&filter));
    let rows: Vec<&str> = rows.copied().collect();
    if rows.is_empty() {
        let text = format!("no port has \"{}\" in its name: Esc shows all", app.filter);
        nothing(frame, area, &text);
        return range(&(0..0), 0, "sender");
    }
    let down = window(&mut app.scroll.row, rows.len(), lines);
    let across = window(&mut app.scroll.column, columns.len(), grid.room);
    let columns_seen = columns.get(across.clone()).unwrap_or_default();
    let rows_seen = rows.get(down.clone()).unwrap_or_default();
    let flows: HashMap<_, _> =
        app.figures.flows.iter().map(|f| ((f.from.as_str(), f.to.as_str()), f)).collect();
    let sum = |of: &dyn Fn(&FlowRow) -> bool| -> Rate {
        let rates: Vec<_> = app.figures.flows.iter().filter(|f| of(f)).map(|f| f.bits).collect();
        if rates.is_empty() { Some(0.0) } else { rates.into_iter().sum() }
    };
    let mut text = vec![heading(columns_seen, grid, look)];
    for from in rows_seen {
        let cells =
            columns_seen.iter().map(|to| cell(*from == *to, flows.get(&(*from, *to)), look));
        let name = Cell::from(Text::styled(fitted(from, grid.name), look.strong()));
        let all = sum(&|flow| flow.from == *from);
        let all = right(number(all) + " ", look.rate(all));
        text.push(Row::new([name].into_iter().chain(cells).chain([all]).collect::<Vec<_>>()));
    }
    let sums = columns_seen.iter().map(|to| {
        let all = sum(&|flow| flow.to == *to);
        right(number(all) + " ", look.rate(all))
    });
    let all = sum(&|_| true);
    let all = right(number(all) + " ", look.rate(all).patch(look.strong()));
    let name = Cell::from(Text::styled("all", look.strong()));
    text.push(Row::new([name].into_iter().chain(sums).chain([all]).collect::<Vec<_>>()));
    let mut widths = vec![Column::left("", grid.name as u16)];
    widths.extend(columns_seen.iter().map(|_| Column::left("", grid.cell as u16)));
    widths.push(Column::left("", CELL as u16));
    // The names of columns are no constants: they are a row, in the place of the header's second.
    let area = Rect { y: area.y.saturating_sub(1), height: area.height + 1, ..area };
    table(frame, area, &widths, text.into_iter(), look);
    let busiest = if fits { "" } else { ", busiest first" };
    format!("from {}, to {}{busiest}", range(&down, rows.len(), "port"), part(&across, count))
}

/// `1-6 of 40`, or all.
fn part(seen: &std::ops::Range<usize>, count: usize) -> String {
    if seen.len() == count { "all".to_owned() } else { range(seen, count, "port") }
}

fn heading<'a>(columns: &[&str], grid: &Grid, look: Look) -> Row<'a> {
    let names = columns.iter().map(|name| right(fitted(name, grid.cell), Style::new()));
    let corner = Cell::from("FROM \\ TO");
    let all = right("all ".to_owned(), Style::new());
    Row::new([corner].into_iter().chain(names).chain([all]).collect::<Vec<_>>())
        .style(look.strong())
}

fn cell<'a>(same: bool, flow: Option<&&FlowRow>, look: Look) -> Cell<'a> {
    match flow {
        Some(flow) => {
            let style = look.way(flow.way).patch(look.rate(flow.bits));
            right(format!("{}{}", number(flow.bits), mark(flow.way)), style)
        }
        None => right(if same { "  " } else { "·   " }.to_owned(), look.faint()),
    }
}

fn list(frame: &mut Frame<'_>, area: Rect, app: &mut App, look: Look) -> String {
    let flows = app.figures.flows.iter();
    let flows = flows.filter(|flow| app.passes(&flow.from) || app.passes(&flow.to));
    let mut flows: Vec<FlowRow> = flows.cloned().collect();
    if flows.is_empty() {
        let text = format!("no flow of a port with \"{}\" in its name: Esc shows all", app.filter);
        nothing(frame, area, &text);
        return range(&(0..0), 0, "flow");
    }
    let bits = |flow: &FlowRow| flow.bits.unwrap_or_default();
    flows.sort_by(|a, b| bits(b).total_cmp(&bits(a)).then_with(|| b.total.cmp(&a.total)));
    let seen = window(&mut app.scroll.row, flows.len(), room(area));
    let longest = flows.iter().map(|flow| flow.from.len().max(flow.to.len())).max();
    // Half of what the other columns and their spaces leave.
    let most = usize::from(area.width.saturating_sub(1 + 8 + 8 + 6 + 8 + 10) / 2);
    let name = longest.unwrap_or_default().clamp(4, most);
    let columns = [
        Column::left("FROM", name as u16),
        Column::left("TO", name as u16),
        Column::left("WAY", 8),
        Column::right(["", "FRAMES/S"], 8),
        Column::right(["", "BIT/S"], 6),
        Column::right(["", "DROPS/S"], 8),
    ];
    let row = |flow: &FlowRow| {
        let way = format!("{} {}", mark(flow.way), flow.way);
        Row::new([
            Cell::from(fitted(&flow.from, name)),
            Cell::from(fitted(&flow.to, name)),
            Cell::from(Text::styled(way, look.way(flow.way))),
            right(number(flow.frames), look.rate(flow.frames)),
            right(number(flow.bits), look.rate(flow.bits)),
            right(number(flow.drops), look.drops(flow.drops)),
        ])
    };
    let shown = flows.get(seen.clone()).unwrap_or_default().iter();
    table(frame, area, &columns, shown.map(row), look);
    range(&seen, flows.len(), "flow") + ", most bits first"
}
