//! What stands on the screen; not its colours.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ringswitch::api::{Flow, PortKind};

use super::super::model::Model;
use super::super::sample::Sample;
use super::super::testing::{flow, port, sample};
use super::*;

/// The state after two samples that `change` made of another switch.
fn app(change: impl Fn(&mut Sample)) -> App {
    let mut model = Model::default();
    let mut take = |second, frames| {
        let mut sample = sample(second, 4711, frames);
        change(&mut sample);
        model.take(sample).0
    };
    take(0, 0);
    App::new(take(1, 1_000_000), 1)
}

/// A switch of `count` guests of which each talks to the next one and to the uplink.
fn many(count: u64) -> App {
    app(|sample| {
        let frames = sample.ports[0].counter("ingress_frames");
        let name = |n: u64| format!("tenant-{n:02}-web");
        let guests = (0..count).map(|n| port(&name(n), PortKind::VhostUser, false, frames * n));
        sample.ports.splice(..2, guests);
        let to = |n: u64| -> [Flow; 2] {
            [flow(&name(n), &name((n + 1) % count), frames * n), flow(&name(n), "up0", frames)]
        };
        sample.flows = (0..count).flat_map(to).collect();
    })
}

/// The lines of a screen of this size.
fn lines(app: &mut App, (width, height): (u16, u16)) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
    let now = Instant::now();
    terminal.draw(|frame| draw(frame, app, Look::plain(), now)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| line(y).trim_end().to_owned()).collect()
}

/// The words of the line that begins with `begin`.
fn words(lines: &[String], begin: &str) -> Vec<String> {
    let line = lines.iter().find(|line| line.trim_start().starts_with(begin));
    let line = line.unwrap_or_else(|| panic!("no {begin:?} in {lines:#?}"));
    line.split_whitespace().map(str::to_owned).collect()
}

fn text(app: &mut App, size: (u16, u16)) -> String {
    lines(app, size).join("\n")
}

const SMALL: (u16, u16) = (80, 24);
const LARGE: (u16, u16) = (160, 40);

#[test]
fn the_header_says_which_process_and_the_sums() {
    for size in [SMALL, LARGE] {
        let lines = lines(&mut app(|_| {}), size);
        assert!(lines[0].starts_with(" ringswitch 0.1.0   process 4711   up 1 d 02:03:05"));
        assert!(lines[0].ends_with("every 1 second"), "{}", lines[0]);
        for part in ["800 Mbit/s", "uplink in 800 Mbit/s out 800 Mbit/s", "drops 20.0 k/s"] {
            assert!(lines[1].contains(part), "{}", lines[1]);
        }
        assert!(lines[2].contains("1 Ports   2 Workers   3 Drops   4 Flows"), "{}", lines[2]);
    }
}

#[test]
fn ports_have_rates_under_whole_headers() {
    for size in [SMALL, LARGE] {
        let lines = lines(&mut app(|_| {}), size);
        assert_eq!(
            words(&lines, "PORT"),
            ["PORT", "KIND", "STATE", "IN/S", "IN/S", "OUT/S", "OUT/S", "/S", "BUFS"]
        );
        let row = words(&lines, "vm1");
        let rates = "1.00 M 800 M 1.00 M 800 M 10.0 k 0".split(' ');
        assert_eq!(row, ["vm1", "guest", "up"].into_iter().chain(rates).collect::<Vec<_>>());
        assert_eq!(words(&lines, "up0")[1], "uplink");
        assert!(lines[size.1 as usize - 1].contains("q quit"), "{}", lines[size.1 as usize - 1]);
        // All numbers of a column end below its name.
        let at = |begin: &str| {
            let line = lines.iter().find(|line| line.trim_start().starts_with(begin));
            line.expect("a line").chars().count()
        };
        assert_eq!(at("PORT"), at("vm1"));
    }
}

#[test]
fn the_column_that_is_sorted_by_is_marked() {
    let mut app = app(|_| {});
    assert!(text(&mut app, SMALL).contains("most traffic first"));
    app.key(crossterm::event::KeyCode::Char('d').into());
    assert!(text(&mut app, SMALL).contains("▼/S"));
    app.key(crossterm::event::KeyCode::Char('d').into());
    let text = text(&mut app, SMALL);
    assert!(text.contains("▲/S") && !text.contains("traffic first"), "{text}");
}

#[test]
fn more_ports_than_lines_are_scrolled() {
    let mut app = many(40);
    let first = text(&mut app, SMALL);
    assert!(first.contains("1-17 of 41 ports, most traffic first"), "{first}");
    app.scroll.row = usize::MAX;
    let last = text(&mut app, SMALL);
    assert!(last.contains("25-41 of 41 ports") && last.contains("tenant-00-web"), "{last}");
    assert_eq!(app.scroll.row, 24, "the next key up is seen");
}

#[test]
fn workers_have_bars() {
    let mut app = app(|sample| sample.workers[0].busy_seconds /= 4000.0);
    app.view = View::Workers;
    let lines = lines(&mut app, SMALL);
    let row = words(&lines, "0 ");
    assert_eq!(row[1], "25%");
    let full = row[2].chars().filter(|c| *c == '█').count();
    assert_eq!(full * 4, row[2].chars().count().next_multiple_of(4), "{row:?}");
    assert!(words(&lines, "WORKER").contains(&"SLEEPS/S".to_owned()), "{lines:#?}");
    assert!(row.ends_with(&["1.5".to_owned(), "2.0".to_owned()]), "{row:?}");
    let least = text(&mut app, LEAST);
    assert!(least.contains("µs      µs"), "{least}");
}

#[test]
fn drops_have_reasons_and_meanings_where_there_is_room() {
    let mut app = app(|_| {});
    app.view = View::Drops;
    assert_eq!(
        words(&lines(&mut app, SMALL), "vm1"),
        ["vm1", "rx_ring_full", "10.0", "k", "10,000"]
    );
    let small = text(&mut app, SMALL);
    for part in [
        "\n vm1 is too slow: its receive ring was full for 10.0 k frames/s; queue 0 has no\n buffers\n",
        "\n Give it larger rings",
    ] {
        assert!(small.contains(part), "{small}");
    }
    app.filter = "vm2".to_owned();
    assert!(!text(&mut app, SMALL).contains("too slow"));
    app.filter.clear();
    let wide = text(&mut app, LARGE);
    assert!(wide.contains("too slow: it has no receive buffer left."), "{wide}");
}

#[test]
fn flows_are_a_matrix() {
    let mut app = app(|_| {});
    app.view = View::Flows;
    let lines = lines(&mut app, SMALL);
    assert_eq!(words(&lines, "FROM"), ["FROM", "\\", "TO", "vm1", "vm2", "up0", "all"]);
    let row = words(&lines, "vm1");
    assert_eq!(row.join(" "), "vm1 800 M= 400 M^ 1.20 G", "what stays, and what leaves");
    assert_eq!(words(&lines, "vm2").join(" "), "vm2 · · 0");
    assert_eq!(words(&lines, "all").join(" "), "all 0 800 M 400 M 1.20 G");
    assert!(words(&lines, "=").join(" ").starts_with("= guest to guest ^ by the uplink"));
}

#[test]
fn a_matrix_that_is_too_large_has_the_busiest_and_scrolls() {
    let mut app = many(40);
    app.view = View::Flows;
    let lines_before = lines(&mut app, SMALL);
    let head = words(&lines_before, "FROM");
    assert!(head.contains(&"tenant-39-web".to_owned()) || head[3].starts_with("tena"), "{head:?}");
    let text = lines_before.join("\n");
    assert!(text.contains("busiest first") && text.contains("of 41 ports"), "{text}");
    app.scroll.column = 5;
    assert_ne!(words(&lines(&mut app, SMALL), "FROM"), head);
    assert!(lines(&mut app, LARGE).len() == 40);
}

#[test]
fn flows_are_a_list_where_it_is_wanted() {
    let mut app = app(|_| {});
    app.view = View::Flows;
    app.list = true;
    let lines = lines(&mut app, SMALL);
    assert_eq!(words(&lines, "FROM").join(" "), "FROM TO WAY FRAMES/S BIT/S DROPS/S");
    assert_eq!(words(&lines, "vm1").join(" "), "vm1 vm2 = guests 1.00 M 800 M 0");
    app.filter = "nobody".to_owned();
    assert!(text(&mut app, SMALL).contains("no flow of a port with \"nobody\" in its name"));
}

#[test]
fn nothing_is_said_in_words() {
    let mut app = app(|sample| {
        sample.flows.clear();
        sample.ports.iter_mut().for_each(|port| port.drops.clear());
    });
    for (view, words) in [
        (View::Drops, "nothing was dropped since the process began"),
        (View::Flows, "no frame has gone from one port to another yet"),
    ] {
        app.view = view;
        for size in [SMALL, LARGE] {
            let text = text(&mut app, size);
            assert!(text.contains(words), "{view:?}");
            assert!(text.contains(" 0 bit/s   uplink"), "{text}");
        }
    }
    app.view = View::Ports;
    app.filter = "x".to_owned();
    assert!(text(&mut app, SMALL).contains("no port has \"x\" in its name"));
}

#[test]
fn what_is_not_known_yet_is_a_dash() {
    let mut model = Model::default();
    let mut app = App::new(model.take(sample(0, 1, 5)).0, 5);
    let lines = lines(&mut app, SMALL);
    assert_eq!(words(&lines, "vm1").join(" "), "vm1 guest up - - - - - 0");
    assert!(lines[1].contains("guests - bit/s"), "{}", lines[1]);
    assert!(lines[0].ends_with("every 5 seconds"));
}

#[test]
fn notices_help_and_pause_are_seen() {
    let mut app = app(|_| {});
    app.lost("nobody answers at /run/api".to_owned(), Instant::now());
    app.paused = true;
    app.filter = "v".to_owned();
    app.typing = true;
    let lines_now = lines(&mut app, SMALL);
    assert!(lines_now[0].contains("PAUSED"));
    assert!(lines_now[23].starts_with(" /v_    Enter keep the filter"), "{}", lines_now[23]);
    assert!(lines_now[3].starts_with(" nobody answers at /run/api for 0 s; trying again"));
    app.typing = false;
    app.link = Link::Up;
    assert!(text(&mut app, SMALL).contains("/v  2 ports"), "the filter that is kept");
    app.help = true;
    for size in [SMALL, LARGE, LEAST] {
        let text = text(&mut app, size);
        assert!(text.contains("Keys") && text.contains("1-4 Tab"), "{text}");
    }
    let text = text(&mut app, SMALL);
    assert!(text.contains("Any key closes this."), "all of it: {text}");
}

#[test]
fn no_size_is_too_small_to_be_drawn() {
    let mut app = many(5);
    for (view, _) in View::ALL {
        app.view = view;
        for (width, height) in [(1, 1), (20, 5), (71, 12), (72, 11), LEAST, (72, 60), (300, 12)] {
            let text = text(&mut app, (width, height));
            let fits = width >= LEAST.0 && height >= LEAST.1;
            assert!(fits == text.contains("ringswitch 0.1.0"), "{width}x{height} {view:?}: {text}");
        }
    }
}
