//! Real frames, a line for each port that one was to leave by.

use std::io::{self, Write};

use ringswitch::api::{TraceLine, TracedFrame};
use tokio::sync::Notify;

use super::super::capture::over;
use super::super::client::{Client, ClientError, escaped};
use super::super::numbers::whole;
use super::TraceArgs;
use crate::Failure;

/// Shows frames until it is over.
pub fn run(args: &TraceArgs, client: &Client) -> Result<(), Failure> {
    let mut path = format!("/trace/live?port={}", escaped(&args.port));
    if !args.what.is_empty() {
        path += &format!("&filter={}", escaped(&args.what.join(" ")));
    }
    let enough = Notify::new();
    let until = over(args.seconds)?;
    let over = async {
        tokio::select! {
            () = until => {}
            () = enough.notified() => {}
        }
    };
    let (json, most) = (args.json, args.count);
    let mut shown = Shown { json, most, begun: false, frames: 0, left_out: 0 };
    let mut rest = Vec::new();
    let done = client.stream(&path, over, |bytes| {
        rest.extend_from_slice(bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if shown.is_full() {
                continue;
            }
            shown.line(&line)?;
            if shown.is_full() {
                enough.notify_one();
            }
        }
        Ok(())
    });
    if shown.left_out > 0 && !args.json {
        let left_out = whole(shown.left_out);
        writeln!(io::stderr(), "{left_out} more were left out: this is a sample")?;
    }
    done
}

/// What was shown so far.
struct Shown {
    json: bool,
    most: Option<u64>,
    /// The head of the table stands there.
    begun: bool,
    frames: u64,
    left_out: u64,
}

impl Shown {
    fn is_full(&self) -> bool {
        self.most.is_some_and(|most| self.frames >= most)
    }

    fn line(&mut self, text: &[u8]) -> Result<(), Failure> {
        let line = serde_json::from_slice(text)
            .map_err(|error| ClientError::Answer(anyhow::Error::from(error)))?;
        let mut out = io::stdout().lock();
        if self.json {
            out.write_all(text)?;
        } else if !std::mem::replace(&mut self.begun, true) {
            writeln!(out, "{}", row(HEADS.map(str::to_owned)))?;
        }
        match line {
            TraceLine::LeftOut(count) => self.left_out = count,
            TraceLine::Frame(frame) => {
                self.frames += 1;
                if !self.json {
                    writeln!(out, "{}", words(&frame))?;
                }
            }
        }
        Ok(out.flush()?)
    }
}

/// The columns. A line is written when its frame comes, so their widths are fixed.
const HEADS: [&str; 8] =
    ["TIME, UTC", "FROM", "TO", "BYTES", "DECIDED, NS", "LEFT, NS", "END", "FRAME"];

fn row([time, from, to, bytes, decided, left, end, frame]: [String; 8]) -> String {
    format!(
        "{time:<18}  {from:<10}  {to:<10}  {bytes:>6}  {decided:>11}  {left:>9}  {end:<16}  {frame}"
    )
}

fn words(frame: &TracedFrame) -> String {
    let TracedFrame { source, destination, summary, .. } = frame;
    row([
        time_of_day(frame.time_ns),
        frame.from.clone(),
        frame.to.clone().unwrap_or_else(|| "-".to_owned()),
        whole(frame.length.into()),
        whole(frame.decided_ns),
        whole(frame.left_ns),
        frame.dropped.clone().unwrap_or_else(|| "delivered".to_owned()),
        format!("{source} > {destination} {summary}"),
    ])
}

/// `12:34:56.789012345`
fn time_of_day(ns: u64) -> String {
    let (seconds, ns) = (ns / 1_000_000_000 % 86_400, ns % 1_000_000_000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{ns:09}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_day() {
        assert_eq!(time_of_day(0), "00:00:00.000000000");
        assert_eq!(time_of_day((86_400 * 3 + 45_296) * 1_000_000_000 + 7), "12:34:56.000000007");
    }
}
