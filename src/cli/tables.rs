//! What the API says, as tables for people.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use ringswitch::api::{Mac, Port, Worker};

/// What was seen before, and how many seconds ago.
type Before<'a, T> = Option<(&'a T, f64)>;

/// A line for each port.
pub fn ports(now: &[Port], before: Before<'_, Vec<Port>>) -> String {
    let mut columns = vec!["port", "kind", "state", "queues", "macs"];
    columns.extend(match before {
        None => ["frames in", "frames out", "bytes in", "bytes out", "drops"],
        Some(_) => ["frames in/s", "frames out/s", "bit/s in", "bit/s out", "drops/s"],
    });
    let mut table = table(&columns, 3);
    for port in now {
        let then = before.and_then(|(then, secs)| Some((same(then, &port.name)?, secs)));
        let frames = |name| count(port.counter(name), then.map(|(p, s)| (p.counter(name), s)));
        let bytes = |name| match then {
            None => whole(port.counter(name)),
            Some((then, secs)) => scaled(rate(port.counter(name), then.counter(name), secs) * 8.0),
        };
        table.add_row([
            port.name.clone(),
            port.kind.to_string(),
            format!("{}{}", state(port), if port.uplink { ", uplink" } else { "" }),
            port.queues.to_string(),
            whole(port.addresses.into()),
            frames("ingress_frames"),
            frames("egress_frames"),
            bytes("ingress_bytes"),
            bytes("egress_bytes"),
            count(port.dropped(), then.map(|(then, secs)| (then.dropped(), secs))),
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
    rendered(&table)
}

/// A line for each worker.
pub fn workers(now: &[Worker], before: Before<'_, Vec<Worker>>) -> String {
    const COUNTERS: [&str; 4] = ["frames", "sleeps", "looks", "passed_over"];
    let columns = match before {
        None => ["worker", "busy, s", "frames", "sleeps", "looks", "passed over"],
        Some(_) => ["worker", "busy", "frames/s", "sleeps/s", "looks/s", "passed over/s"],
    };
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
        table.add_row([worker.worker.to_string(), busy].into_iter().chain(counts));
    }
    rendered(&table)
}

/// A line for each address.
pub fn macs(macs: &[Mac]) -> String {
    let mut table = table(&["address", "port", "seen, s ago"], 2);
    for Mac { address, port, age_seconds } in macs {
        table.add_row([address, port, &age_seconds.to_string()]);
    }
    rendered(&table)
}

/// A line for each port and reason, most frames first.
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
        table.add_row([port, reason, frames]);
    }
    rendered(&table)
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

fn rate(now: u64, then: u64, secs: f64) -> f64 {
    // Another process may have taken over: its counters begin anew.
    now.saturating_sub(then) as f64 / secs
}

/// A table of these columns, of which all but the first `left` are numbers.
fn table(columns: &[&str], left: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.to_uppercase()));
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

/// `1234567` as `1,234,567`.
fn whole(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1234567.0` as `1.23 M`, with the SI's prefixes.
fn scaled(value: f64) -> String {
    let mut value = value;
    for prefix in ["", " k", " M", " G"] {
        if value < 999.5 || prefix == " G" {
            let digits = match value {
                v if v < 9.995 && !prefix.is_empty() => 2,
                v if v < 99.95 && !prefix.is_empty() => 1,
                _ => 0,
            };
            return format!("{value:.digits$}{prefix}");
        }
        value /= 1000.0;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        let wholes = [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")];
        for (count, text) in wholes {
            assert_eq!(whole(count), text);
        }
        for (value, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (999.6, "1.00 k"),
            (9_996.0, "10.0 k"),
            (123_456.0, "123 k"),
            (1_234_567.0, "1.23 M"),
            (5e12, "5000 G"),
        ] {
            assert_eq!(scaled(value), text);
        }
    }
}
