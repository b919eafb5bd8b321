//! What the API says, as tables for people.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use ringswitch::api::{Flow, Mac, Port, PortKind, ReceiveRing, Trace, Worker};

use super::latency::{micros, quantile};
use super::numbers::{rate, scaled, short, whole};
use super::slow;
use super::way::Way;

/// What was seen before, and how many seconds ago.
type Before<'a, T> = Option<(&'a T, f64)>;

/// A line for each port, that fits into 80 columns: large counts are rounded.
pub fn ports(now: &[Port], before: Before<'_, Vec<Port>>) -> String {
    let mut columns = vec!["port", "kind", "state", "queues", "macs"];
    columns.extend(match before {
        None => ["frames in", "out", "bytes in", "out", "drops"],
        Some(_) => ["frames/s in", "out", "bit/s in", "out", "drops/s"],
    });
    let mut table = table(&columns, 3);
    for port in now {
        let then = before.and_then(|(then, secs)| Some((same(then, &port.name)?, secs)));
        let frames = |name| match then {
            None => short(port.counter(name)),
            Some((then, secs)) => scaled(rate(port.counter(name), then.counter(name), secs)),
        };
        let bytes = |name| match then {
            None => short(port.counter(name)),
            Some((then, secs)) => scaled(rate(port.counter(name), then.counter(name), secs) * 8.0),
        };
        let kind = match port.kind {
            PortKind::VhostUser => "guest",
            PortKind::Tap if port.uplink => "uplink",
            PortKind::Tap => "tap",
        };
        let drops = match then {
            None => short(port.dropped()),
            Some((then, secs)) => scaled(rate(port.dropped(), then.dropped(), secs)),
        };
        table.add_row([
            Cell::new(&port.name),
            Cell::new(kind),
            noted(state(port), !port.up, Color::Red),
            Cell::new(port.queues),
            Cell::new(whole(port.addresses.into())),
            Cell::new(frames("ingress_frames")),
            Cell::new(frames("egress_frames")),
            Cell::new(bytes("ingress_bytes")),
            Cell::new(bytes("egress_bytes")),
            noted(&drops, drops != "0", Color::Yellow),
        ]);
    }
    rendered(&table)
}

/// All of one port.
pub fn port(port: &Port, before: Before<'_, Port>) -> String {
    let mut rows = vec![("port".to_owned(), port.name.clone())];
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    row("kind", port.kind.to_string());
    row("place", port.place.clone());
    row("uplink", if port.uplink { "yes" } else { "no" }.to_owned());
    row("state", state(port).to_owned());
    row("queues", port.queues.to_string());
    row("macs", whole(port.addresses.into()));
    let unit = if before.is_some() { "/s" } else { "" };
    for (name, now) in &port.counters {
        let then = before.map(|(then, secs)| (then.counter(name), secs));
        row(&format!("{name}{unit}"), count(*now, then));
    }
    for (reason, now) in &port.drops {
        let then = |(then, secs): (&Port, f64)| (dropped(then, reason), secs);
        row(&format!("drop_{reason}{unit}"), count(*now, before.map(then)));
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.add_rows(rows.into_iter().map(|(name, value)| [name, value]));
    align(&mut table, 1);
    if port.egress_queues.is_empty() {
        return rendered(&table);
    }
    rendered(&table) + "\n\n" + &queues(port, before)
}

/// A line for each queue by which frames leave at a port.
fn queues(port: &Port, before: Before<'_, Port>) -> String {
    let [frames, drops] = match before {
        None => ["frames out", "drops"],
        Some(_) => ["frames out/s", "drops/s"],
    };
    let mut table = table(&["queue", "ring", "entries", "buffers", frames, drops], 2);
    for queue in &port.egress_queues {
        let then = before.and_then(|(then, secs)| {
            Some((then.egress_queues.iter().find(|then| then.queue == queue.queue)?, secs))
        });
        let of_ring = |text: fn(&ReceiveRing) -> String| {
            queue.ring.as_ref().map_or_else(|| "-".to_owned(), text)
        };
        table.add_row([
            queue.queue.to_string(),
            of_ring(|ring| ring.format.to_string()),
            of_ring(|ring| ring.entries.to_string()),
            of_ring(ReceiveRing::free),
            count(queue.frames, then.map(|(then, secs)| (then.frames, secs))),
            count(queue.dropped(), then.map(|(then, secs)| (then.dropped(), secs))),
        ]);
    }
    rendered(&table)
}

/// A line for each worker.
pub fn workers(now: &[Worker], before: Before<'_, Vec<Worker>>) -> String {
    const COUNTERS: [&str; 4] = ["frames", "sleeps", "looks", "passed_over"];
    let mut columns = match before {
        None => vec!["worker", "busy, s", "frames", "sleeps", "looks", "passed over"],
        Some(_) => vec!["worker", "busy", "frames/s", "sleeps/s", "looks/s", "passed over/s"],
    };
    columns.extend(["p50, µs", "p99, µs"]);
    let mut table = table(&columns, 1);
    for worker in now {
        let then = before.and_then(|(then, secs)| {
            Some((then.iter().find(|then| then.worker == worker.worker)?, secs))
        });
        let counter =
            |worker: &Worker, name| worker.counters.get(name).copied().unwrap_or_default();
        let busy = match then {
            None => format!("{:.1}", worker.busy_seconds),
            Some((then, secs)) => {
                format!("{:.0}%", (worker.busy_seconds - then.busy_seconds).max(0.0) / secs * 100.0)
            }
        };
        let counts = COUNTERS.map(|name| {
            count(counter(worker, name), then.map(|(then, secs)| (counter(then, name), secs)))
        });
        let latency = then.map(|(then, _)| &then.latency);
        let times = [0.5, 0.99].map(|part| micros(quantile(&worker.latency, latency, part)));
        table.add_row([worker.worker.to_string(), busy].into_iter().chain(counts).chain(times));
    }
    rendered(&table)
}

/// A line for each address.
pub fn macs(macs: &[Mac]) -> String {
    let mut table = table(&["address", "port", "seen, s ago"], 2);
    for Mac { address, port, age_seconds } in macs {
        let age = age_seconds.map_or("given".to_owned(), |age| age.to_string());
        table.add_row([address, port, &age]);
    }
    rendered(&table)
}

/// A line for each port and reason, most frames first; below them, the guests that are too slow.
pub fn drops(now: &[Port], before: Before<'_, Vec<Port>>) -> String {
    let of = |port: &'_ Port| -> Vec<(u64, String, String)> {
        let then = before.and_then(|(then, _)| same(then, &port.name));
        let since =
            |reason: &str, now: u64| now - then.map_or(0, |then| dropped(then, reason).min(now));
        let drops = port.drops.iter().map(|(reason, now)| (since(reason, *now), reason));
        let drops = drops.filter(|(count, _)| *count > 0);
        drops.map(|(count, reason)| (count, port.name.clone(), reason.clone())).collect()
    };
    let mut all: Vec<_> = now.iter().flat_map(of).collect();
    if all.is_empty() {
        return match before {
            None => "nothing was dropped".to_owned(),
            Some(_) => "nothing is dropped".to_owned(),
        };
    }
    all.sort_unstable_by(|a, b| b.cmp(a));
    let frames = if before.is_some() { "frames/s" } else { "frames" };
    let mut table = table(&["port", "reason", frames], 2);
    for (count, port, reason) in all {
        let frames = match before {
            None => whole(count),
            Some((_, secs)) => scaled(count as f64 / secs),
        };
        let frames = noted(frames, true, Color::Yellow);
        table.add_row([Cell::new(port), Cell::new(reason), frames]);
    }
    let before = before.map(|(then, secs)| (then.as_slice(), secs));
    let slow = slow::guests(now, before);
    let mut text = rendered(&table);
    for (index, guest) in slow.iter().enumerate() {
        text += &format!("{}{guest}", if index == 0 { "\n\n" } else { "\n" });
    }
    if slow.is_empty() { text } else { text + "\n" + slow::ADVICE }
}

/// A line for each pair of ports that had frames, most bytes first.
pub fn flows(now: &[Flow], ports: &[Port], before: Before<'_, Vec<Flow>>) -> String {
    let since = |flow: &Flow| {
        let same = |then: &&Flow| then.from == flow.from && then.to == flow.to;
        let then = before.and_then(|(then, _)| then.iter().find(same));
        let gained = |of: fn(&Flow) -> u64| of(flow).saturating_sub(then.map_or(0, of));
        (gained(|flow| flow.bytes), gained(|flow| flow.frames), gained(|flow| flow.dropped))
    };
    let all = now.iter().map(|flow| (since(flow), flow));
    let mut all: Vec<_> = all.filter(|(counts, _)| *counts != (0, 0, 0)).collect();
    if all.is_empty() {
        return match before {
            None => "no frame has gone from one port to another".to_owned(),
            Some(_) => "no frame goes from one port to another".to_owned(),
        };
    }
    // Those with the same bytes stay in the order of the configuration.
    all.sort_by_key(|((bytes, ..), _)| std::cmp::Reverse(*bytes));
    let mut columns = vec!["from", "to", "way"];
    columns.extend(match before {
        None => ["frames", "bytes", "drops"],
        Some(_) => ["frames/s", "bit/s", "drops/s"],
    });
    let mut table = table(&columns, 3);
    for ((bytes, frames, dropped), flow) in all {
        let count = |count: u64, unit: f64| match before {
            None => whole(count),
            Some((_, secs)) => scaled(count as f64 * unit / secs),
        };
        table.add_row([
            flow.from.clone(),
            flow.to.clone(),
            Way::between(ports, &flow.from, &flow.to).to_string(),
            count(frames, 1.0),
            count(bytes, 8.0),
            count(dropped, 1.0),
        ]);
    }
    rendered(&table)
}

/// A line for each step, and the verdict.
pub fn trace(trace: &Trace) -> String {
    let mut table = table(&["step", "port", "looked at", "decision"], 4);
    // On a terminal, long words go on in the next line of their cell.
    table.set_content_arrangement(ContentArrangement::Dynamic);
    for step in &trace.steps {
        let port = step.port.as_deref().unwrap_or_default();
        let dropped = step.decision.starts_with("dropped");
        let decision = noted(&step.decision, dropped, Color::Red);
        table.add_row([Cell::new(step.step), Cell::new(port), Cell::new(&step.saw), decision]);
    }
    format!("{}\n\n{}", rendered(&table), trace.verdict)
}

fn state(port: &Port) -> &'static str {
    if port.up { "up" } else { "down" }
}

fn same<'a>(ports: &'a [Port], name: &str) -> Option<&'a Port> {
    ports.iter().find(|port| port.name == name)
}

fn dropped(port: &Port, reason: &str) -> u64 {
    port.drops.get(reason).copied().unwrap_or_default()
}

/// A count, or what came to it by the second since it was `then`.
fn count(now: u64, then: Option<(u64, f64)>) -> String {
    match then {
        None => whole(now),
        Some((then, secs)) => scaled(rate(now, then, secs)),
    }
}

/// What somebody should notice, in colour on a terminal.
fn noted(text: impl ToString, is: bool, color: Color) -> Cell {
    let cell = Cell::new(text);
    if is { cell.fg(color) } else { cell }
}

/// A table of these columns, of which all but the first `left` are numbers.
fn table(columns: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        // no-color.org
        table.force_no_tty();
    }
    let bold =
        |column: &&str| Cell::new(column.to_ascii_uppercase()).add_attribute(Attribute::Bold);
    table.set_header(columns.iter().map(bold));
    align(&mut table, left);
    table
}

fn align(table: &mut Table, left: usize) {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= left {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn rendered(table: &Table) -> String {
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect::<String>()
        .trim_end()
        .to_owned()
}
