//! The two guests, and the three ways in which frames go between them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fakeguest::frames::HEADER_LEN;
use fakeguest::{Guest, features};

use crate::Result;
use crate::histogram::Histogram;
use crate::options::Options;

/// Frames taken from a ring at a time: Linux's NAPI weight.
const BURST: u64 = 64;
/// How long frames may take to come home.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a backend may take until frames pass.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that the frames to send take at most, as far as more than one is in flight: about the
/// socket buffers of one fast TCP connection.
const WORKING_SET: usize = 4 << 20;
/// Frames under way when they are offered as fast as they are taken.
const SATURATION: u64 = 256;

/// From one guest to the other, on one queue pair.
struct Direction {
    from: usize,
    to: usize,
    pair: usize,
    /// Frames that may be sent now.
    home: u64,
    /// Bursts on their way: when they were sent, and how many frames of them are still missing.
    sent: VecDeque<(u64, u64)>,
}

/// What was counted in a window.
#[derive(Default)]
struct Counts {
    frames: u64,
    bytes: u64,
    busy_cycles: u64,
}

/// Two guests, and others that do nothing.
pub struct Generator {
    options: Options,
    guests: [Guest; 2],
    _idle: Vec<Guest>,
    directions: Vec<Direction>,
    size: usize,
    /// In each of `directions`.
    in_flight: u64,
    counts: Counts,
    times: Histogram,
    tsc_hz: f64,
}

impl Generator {
    /// Attaches all guests; returns when frames pass.
    pub fn attach(options: Options) -> Result<Generator> {
        let [first, second, idle @ ..] = &options.sockets[..] else {
            return Err("two sockets are needed at least".into());
        };
        let guests = [options.attach(first)?, options.attach(second)?];
        let idle = idle.iter().map(|socket| options.attach_idle(socket)).collect::<Result<_, _>>();
        let direction = |at| Direction {
            from: at % 2,
            to: 1 - at % 2,
            pair: at / 2,
            home: 0,
            sent: VecDeque::with_capacity(usize::from(options.ring)),
        };
        let directions = (0..2 * options.pairs).map(direction).collect();
        let mut generator = Generator {
            _idle: idle?,
            options,
            guests,
            directions,
            size: 0,
            in_flight: 0,
            counts: Counts::default(),
            times: Histogram::new(),
            tsc_hz: tsc_hz(),
        };
        generator.introduce()?;
        Ok(generator)
    }

    /// Sends single frames until one has passed in each direction: links are up then, and the
    /// switch has learned both addresses.
    fn introduce(&mut self) -> Result<()> {
        self.fill(60, 1)?;
        let deadline = Instant::now() + START_PATIENCE;
        while !self.come_home(Duration::from_millis(100)) {
            if Instant::now() > deadline {
                return Err("no frame passes between the two guests".into());
            }
            for direction in &mut self.directions {
                self.guests[direction.from].send_burst(direction.pair, 1);
                direction.sent = VecDeque::from([(tsc(), 1)]);
                direction.home = 0;
            }
        }
        Ok(())
    }

    /// Waits until no frame is on its way; tells whether that is so.
    fn come_home(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            for direction in &mut self.directions {
                let burst = self.guests[direction.to].recv_burst(direction.pair, BURST);
                direction.home += burst.frames;
            }
            let missing = self.missing() > 0;
            if !missing || Instant::now() > deadline {
                return !missing;
            }
        }
    }

    /// Frames that are not home. A switch may bring a frame to another pair than it came from.
    fn missing(&self) -> u64 {
        let of_guest = |to: usize| {
            let ways = || self.directions.iter().filter(|way| way.to == to);
            let home: u64 = ways().map(|way| way.home).sum();
            (self.in_flight * ways().count() as u64).saturating_sub(home)
        };
        of_guest(0) + of_guest(1)
    }

    /// Puts frames of `size` bytes in the place of those that were there. None are sent yet.
    fn fill(&mut self, size: usize, in_flight: u64) -> Result<()> {
        (self.size, self.in_flight) = (size, in_flight);
        let distinct = (WORKING_SET / size).max(in_flight as usize);
        for direction in &mut self.directions {
            let (from, to) = (direction.from as u8 + 1, direction.to as u8 + 1);
            let guest = &mut self.guests[direction.from];
            if !guest.flush(direction.pair, PATIENCE) {
                return Err("the backend keeps frames for itself".into());
            }
            let indirect = guest.features() & features::INDIRECT_DESC != 0;
            let layout = self.options.layout(size, indirect);
            let frame = self.options.frame(from, to, direction.pair, size);
            let queue = &mut guest.queue(direction.pair).tx;
            queue.load_up_to(distinct, &[frame], &layout)?;
            if let Some(stations) = self.options.stations(from, to) {
                queue.rotate_stations(&stations);
            }
            direction.sent.clear();
            direction.home = in_flight;
        }
        Ok(())
    }

    /// The command `load`.
    pub fn load(&mut self, size: usize, wanted: u64) -> Result<String> {
        if !(60..=self.options.max_frame).contains(&size) {
            return Err(format!("frames have 60 to {} bytes", self.options.max_frame).into());
        }
        let lost = if self.come_home(PATIENCE) { 0 } else { self.missing() };
        // Half of the receiver's buffers at most: nothing is ever dropped for want of them.
        let buffers = (size + HEADER_LEN).div_ceil(self.options.rx_buffer) + 1;
        let most = (usize::from(self.options.ring) / buffers / 2).max(1) as u64;
        let pairs = self.options.pairs as u64;
        let in_flight = wanted.min(most).div_ceil(pairs);
        self.fill(size, in_flight)?;
        let features = self.guests[0].features();
        Ok(format!(
            r#"{{"size": {size}, "in_flight": {}, "lost": {lost}, "features": "{features:#x}", "tsc_hz": {:.0}}}"#,
            in_flight * pairs,
            self.tsc_hz
        ))
    }

    /// One round: takes what came and sends as many again, in all directions.
    #[inline]
    pub fn round(&mut self, start: u64) -> u64 {
        let mut moved = 0;
        for direction in &mut self.directions {
            let burst = self.guests[direction.to].recv_burst(direction.pair, BURST);
            if burst.frames > 0 {
                self.counts.frames += burst.frames;
                self.counts.bytes += burst.bytes;
                direction.home += burst.frames;
                note_times(&mut direction.sent, &mut self.times, burst.frames);
                moved += burst.frames;
            }
            // Frames at home without a load are those of the last one.
            if direction.home > 0 && self.in_flight > 0 {
                let count = direction.home.min(BURST) as usize;
                let now = tsc();
                let sent = self.guests[direction.from].send_burst(direction.pair, count) as u64;
                if sent > 0 {
                    direction.home -= sent;
                    direction.sent.push_back((now, sent));
                    moved += sent;
                }
            }
        }
        let end = tsc();
        if moved > 0 {
            self.counts.busy_cycles += end - start;
        }
        end
    }

    /// The command `window`.
    pub fn window(&mut self, seconds: f64) -> String {
        self.counts = Counts::default();
        self.times.clear();
        let kicks = self.kicks();
        let start = tsc();
        let end = start + (seconds * self.tsc_hz) as u64;
        let mut now = start;
        while now < end {
            now = self.round(now);
        }
        let elapsed = (now - start) as f64;
        let Counts { frames, bytes, busy_cycles } = self.counts;
        format!(
            r#"{{"frames": {frames}, "seconds": {:.6}, "whole": {}, "busy": {:.4}, "cycles_per_frame": {:.1}, "kicks": {}, "in_flight": {}, {}}}"#,
            elapsed / self.tsc_hz,
            bytes == frames * self.size as u64,
            busy_cycles as f64 / elapsed,
            busy_cycles as f64 / frames.max(1) as f64,
            self.kicks() - kicks,
            self.in_flight * self.options.pairs as u64,
            self.quantiles(),
        )
    }

    fn quantiles(&self) -> String {
        let time = |part| self.times.quantile(part) as f64 * 1e9 / self.tsc_hz;
        format!(r#""ns_p50": {:.0}, "ns_p99": {:.0}"#, time(0.5), time(0.99))
    }

    /// Sends up to `count` frames by the first direction; `at` is when they were due.
    fn send(&mut self, count: u64, at: u64) -> u64 {
        let sent = self.guests[0].send_burst(0, count.min(BURST) as usize) as u64;
        if sent > 0 {
            self.directions[0].sent.push_back((at, sent));
        }
        sent
    }

    /// Takes what came by the first direction, whichever pair it came to.
    fn take(&mut self) -> u64 {
        let mut frames = 0;
        for pair in 0..self.options.pairs {
            frames += self.guests[1].recv_burst(pair, BURST).frames;
        }
        note_times(&mut self.directions[0].sent, &mut self.times, frames);
        frames
    }

    /// What `offer` and `gap` begin with: nobody else's frames are under way.
    fn begin(&mut self) -> Result<u64> {
        if self.in_flight > 0 {
            return Err("frames are going round: load 0 of them first".into());
        }
        self.times.clear();
        self.directions[0].sent.clear();
        Ok(self.kicks())
    }

    /// The command `offer`. A frame's time begins when it was due, so a switch that holds the
    /// sender up doesn't hide it.
    pub fn offer(&mut self, rate: f64, seconds: f64) -> Result<String> {
        let kicks = self.begin()?;
        let start = tsc();
        let end = start + (seconds * self.tsc_hz) as u64;
        let period = self.tsc_hz / rate;
        let (mut sent, mut received, mut now) = (0, 0, start);
        while now < end {
            let (due, at) = if rate > 0.0 {
                let due = ((now - start) as f64 / period) as u64;
                (due.saturating_sub(sent), start + ((sent + 1) as f64 * period) as u64)
            } else {
                (SATURATION.saturating_sub(sent - received), now)
            };
            if due > 0 {
                sent += self.send(due, at);
            }
            received += self.take();
            now = tsc();
        }
        let (seconds, in_time) = ((now - start) as f64 / self.tsc_hz, received);
        let deadline = Instant::now() + PATIENCE;
        while received < sent && Instant::now() < deadline {
            received += self.take();
        }
        Ok(format!(
            r#"{{"sent": {sent}, "received": {in_time}, "lost": {}, "seconds": {seconds:.6}, "kicks": {}, {}}}"#,
            sent - received,
            self.kicks() - kicks,
            self.quantiles(),
        ))
    }

    /// The command `gap`.
    pub fn gap(&mut self, micros: f64, count: u64) -> Result<String> {
        let kicks = self.begin()?;
        let pause = (micros * self.tsc_hz / 1e6) as u64;
        let mut received = 0;
        for _ in 0..count {
            let due = tsc() + pause;
            while tsc() < due {
                std::hint::spin_loop();
            }
            self.send(1, tsc());
            let deadline = Instant::now() + PATIENCE;
            while self.take() == 0 {
                if Instant::now() > deadline {
                    return Err(format!("frame {received} of {count} is lost").into());
                }
            }
            received += 1;
        }
        let kicks = self.kicks() - kicks;
        Ok(format!(r#"{{"received": {received}, "kicks": {kicks}, {}}}"#, self.quantiles()))
    }

    fn kicks(&self) -> u64 {
        let rings = 2 * self.options.pairs;
        let of_guest = |guest: &Guest| -> u64 {
            (0..rings).map(|ring| guest.ring(ring).notifications().kicks).sum()
        };
        self.guests.iter().map(of_guest).sum()
    }
}

/// Notes the one-way time of the `count` frames that were sent first.
#[inline]
fn note_times(sent: &mut VecDeque<(u64, u64)>, times: &mut Histogram, mut count: u64) {
    if count == 0 {
        return;
    }
    let now = tsc();
    while count > 0 {
        let Some((at, missing)) = sent.front_mut() else { return };
        let part = count.min(*missing);
        times.add(now.saturating_sub(*at), part);
        count -= part;
        *missing -= part;
        if *missing == 0 {
            sent.pop_front();
        }
    }
}

/// The time-stamp counter now.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches nothing but registers.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The time-stamp counter's rate, measured against the clock.
fn tsc_hz() -> f64 {
    let (clock, start) = (Instant::now(), tsc());
    std::thread::sleep(Duration::from_millis(100));
    (tsc() - start) as f64 / clock.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_belong_to_the_frames_sent_first() {
        let (mut sent, mut times) = (VecDeque::from([(0, 3), (tsc(), 2)]), Histogram::new());
        note_times(&mut sent, &mut times, 4);
        assert_eq!((times.count, sent.len(), sent[0].1), (4, 1, 1));
        note_times(&mut sent, &mut times, 9);
        assert_eq!((times.count, sent.len()), (5, 0));
    }
}
