//! A worker's time among sources with scripted costs: no clock, nothing at random.

use super::*;

/// When a run begins.
const START: u64 = 1_000_000_000;

/// How a source behaves, in cycles.
#[derive(Clone, Copy)]
struct Script {
    port: usize,
    /// What a frame takes.
    frame: u64,
    /// Frames of a visit at most.
    burst: u64,
    /// Frames that are under way at most; they come back so long after their visit.
    window: u64,
    turn: u64,
}

/// A source and what became of it.
struct Actor {
    script: Script,
    /// When frames come back, and how many.
    coming: Vec<(u64, u64)>,
    ready: u64,
    waits: bool,
    used: u64,
    longest_wait: u64,
    ready_since: u64,
}

/// Runs sources for so many cycles; returns what each of them used, and their actors.
fn run(scripts: &[Script], cycles: u64) -> Vec<Actor> {
    let mut actors: Vec<_> = scripts.iter().map(|script| Actor::new(*script)).collect();
    let ports = scripts.iter().map(|script| script.port);
    let mut budget = Budget::new(ports.clone().max().unwrap() + 1);
    let mut now = START;
    let end = now + cycles;
    while now < end {
        budget.begin(now, ports.clone());
        for actor in &mut actors {
            now += 60;
            actor.come(now);
            let Script { port, frame, burst, turn, .. } = actor.script;
            if budget.holds(port, now) {
                continue;
            }
            let count = actor.ready.min(burst);
            if count > 0 {
                let cost = count * frame;
                now += cost;
                actor.longest_wait = actor.longest_wait.max(now - actor.ready_since);
                actor.used += cost;
                actor.ready -= count;
                actor.ready_since = now;
                actor.coming.push((now + turn, count));
                budget.charge(port, cost, now);
            }
            let waits = actor.ready > 0;
            if waits != std::mem::replace(&mut actor.waits, waits) {
                budget.set_waiting(port, waits);
            }
        }
    }
    actors
}

impl Actor {
    fn new(script: Script) -> Self {
        let ready = script.window;
        let (coming, waits, used) = (Vec::new(), false, 0);
        Self { script, coming, ready, waits, used, longest_wait: 0, ready_since: START }
    }

    fn come(&mut self, now: u64) {
        let was_empty = self.ready == 0;
        for (at, count) in self.coming.extract_if(.., |(at, _)| *at <= now) {
            if was_empty {
                self.ready_since = at;
            }
            self.ready += count;
        }
    }
}

const TIME: u64 = 100_000_000;

/// Frames of 64 bytes, with so many of them under way, by a guest that polls.
fn neighbour(port: usize, window: u64) -> Script {
    Script { port, frame: 115, burst: 64, window, turn: 6_000 }
}

/// A guest that always has more frames, or one burst of them at a time.
fn dear(frame: u64, burst: u64, window: u64) -> Script {
    Script { port: 2, frame, burst, window, turn: 0 }
}

fn share(actor: &Actor) -> f64 {
    actor.used as f64 / TIME as f64
}

/// What two neighbours with so many frames under way use together beside others, and the longest
/// that a frame of theirs waited.
fn neighbours_beside(window: u64, others: &[Script]) -> (f64, u64) {
    let neighbours = [neighbour(0, window), neighbour(1, window)];
    let actors = run(&[&neighbours[..], others].concat(), TIME);
    let longest = actors[..2].iter().map(|actor| actor.longest_wait).max();
    (share(&actors[0]) + share(&actors[1]), longest.unwrap())
}

#[test]
fn neighbours_keep_their_time_whatever_a_guest_s_bursts_cost() {
    for window in [256, 64, 32, 8, 1] {
        let (fair, _) = neighbours_beside(window, &[neighbour(2, 256)]);
        for (what, other) in [
            ("64 KiB, cut into 45", dear(45_000, 4, 100)),
            ("64 KiB, cut into 1366", dear(330_000, 1, 100)),
            ("64 KiB, cut into 1366, one at a time", dear(330_000, 1, 1)),
            ("64 KiB, cut into 1366, to a TAP", dear(1_400_000, 1, 1)),
            ("chains of 1000 pieces", dear(30_000, 4, 100)),
            ("chains of 1000 pieces, a burst at a time", dear(30_000, 4, 4)),
        ] {
            let (share, longest) = neighbours_beside(window, &[other]);
            // With one frame under way it is time, not a share, that a frame waits for.
            let least = if window < 32 { 0.8 } else { 0.9 };
            assert!(share >= least * fair, "{what}, {window} under way: {:.2}", share / fair);
            // One visit of the other, and one's own.
            let bound = other.frame * other.burst + 4 * 64 * 115;
            assert!(longest <= bound, "{what}, {window} under way: {longest} of {bound}");
        }
    }
}

#[test]
fn who_always_has_frames_has_as_much_time_as_anybody() {
    let (fair, _) = neighbours_beside(256, &[neighbour(2, 256)]);
    assert!(fair > 0.64, "{fair}: two thirds, less the looks");
    for cost in [1_000, 10_000, 20_000, 29_000, 60_000, 89_000, 200_000] {
        for window in [1, 100] {
            let (share, _) = neighbours_beside(256, &[dear(cost, 1, window)]);
            assert!(share >= 0.95 * fair, "{cost}, {window} under way: {:.2}", share / fair);
        }
    }
    // It is a port that has a share, not a queue.
    let (share, _) = neighbours_beside(256, &[dear(80_000, 1, 100); 8]);
    assert!(share >= 0.95 * fair, "eight queues: {:.2}", share / fair);
    // And all of four have theirs.
    let actors = run(&[0, 1, 2, 3].map(|port| Script { port, ..dear(10_000, 1, 9) }), TIME);
    assert!(actors.iter().all(|actor| share_is(actor, 0.25)));
}

fn share_is(actor: &Actor, expected: f64) -> bool {
    (share(actor) / expected - 1.0).abs() < 0.05
}

#[test]
fn what_neighbours_leave_is_not_lost() {
    for cost in [20_000, 45_000, 80_000] {
        let bulk = Script { port: 0, frame: cost / 4, burst: 4, window: 100, turn: 0 };
        let single = |turn| Script { port: 1, frame: 900, burst: 64, window: 1, turn };
        let acks = Script { port: 1, frame: 150, burst: 64, window: 40, turn: 20_000 };
        for other in [single(300_000), single(60_000), single(6_000), acks] {
            let actors = run(&[bulk, other], TIME);
            let all = share(&actors[0]) + share(&actors[1]);
            assert!(all > 0.9, "{cost}, turn {}: {all:.2}", other.turn);
        }
        // Nor is anything of a port that is alone.
        assert!(share_is(&run(&[bulk], TIME)[0], 1.0));
        assert!(share_is(&run(&[dear(330_000, 1, 1)], TIME)[0], 1.0));
    }
}

#[test]
fn who_was_interrupted_pays_no_more_than_a_limit() {
    let mut budget = Budget::new(2);
    budget.begin(100 * WINDOW, [0, 1].into_iter());
    budget.set_waiting(1, true);
    let now = 200 * WINDOW;
    budget.charge(1, 7_000, now - 100 * MOST);
    budget.charge(0, 100 * MOST, now);
    budget.begin(now, [0, 1].into_iter());
    assert!(budget.holds(0, now) && !budget.holds(1, now));
    budget.charge(1, MOST, now + MOST);
    let later = now + 2 * MOST;
    budget.begin(later, [0, 1].into_iter());
    assert!(!budget.holds(0, later), "the other one has caught up with what was charged");
}

#[test]
fn who_waits_and_is_gone_holds_nobody() {
    let mut budget = Budget::new(3);
    budget.set_waiting(2, true);
    let mut now = 10 * WINDOW;
    for _ in 0..100 {
        now += 10_000;
        budget.begin(now, [0, 1].into_iter());
        assert!(!budget.holds(0, now));
        budget.charge(0, 9_000, now);
    }
}
