//! `ringswitch top`: a live view of the switch in a terminal.
//!
//! Three threads tell the main one what happens: one reads keys, one asks the switch, one waits for
//! signals. Each event changes the state ([`state`]), and the state is drawn ([`draw`]). So a switch
//! that doesn't answer holds up no key.

mod draw;
mod model;
mod sample;
mod state;
#[cfg(test)]
mod testing;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Instant;

use clap::Args;
use crossterm::event::{self, Event as Input};
use ratatui::DefaultTerminal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::client::{Client, ClientError};
use super::show::SOCKET;
use crate::Failure;
use draw::Look;
use model::Model;
use sample::Sample;
use state::{App, Wish};

const EXAMPLES: &str = "\
Examples:
  ringswitch top
  ringswitch top --interval 5 --api-socket /run/ringswitch/api.sock

Keys: 1-4 views, arrows scroll, ? all keys, q quits. Without colours if NO_COLOR is set. For scripts
there is `ringswitch show ports --watch`.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct TopArgs {
    /// The switch's API socket
    #[arg(long, value_name = "PATH", env = "RINGSWITCH_API", default_value = SOCKET)]
    api_socket: PathBuf,
    /// Seconds between two looks
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=3600))]
    interval: u32,
}

/// What happens.
enum Event {
    /// A key, or another size.
    Input(Input),
    /// The switch answered, or didn't.
    Seen(Box<Result<Sample, ClientError>>),
    /// The process is to end.
    End(io::Result<()>),
}

/// Runs the command.
///
/// # Errors
///
/// Standard output is no terminal; no switch answers at first; the terminal is gone.
pub fn run(args: &TopArgs) -> Result<(), Failure> {
    if !io::stdout().is_terminal() {
        return Err(Failure::NoTerminal);
    }
    let client = Client::new(&args.api_socket)?;
    // Whoever has a wrong path is to know before the screen is taken.
    let mut model = Model::default();
    let (figures, _) = model.take(Sample::ask(&client)?);
    let mut app = App::new(figures, args.interval);
    let (events, incoming) = mpsc::channel();
    let (intervals, changes) = mpsc::channel();
    wait_for_signals(events.clone())?;
    let mut screen = Screen::enter()?;
    read_keys(events.clone());
    let interval = args.interval;
    thread::spawn(move || sample::keep_asking(&client, interval, &changes, &events));
    let look = Look::of_environment();
    loop {
        screen.0.draw(|frame| draw::draw(frame, &mut app, look, Instant::now()))?;
        if !take_events(&incoming, &mut app, &mut model, &intervals)? {
            return Ok(());
        }
    }
}

/// Waits for an event, and takes all that have come: the screen is drawn once for them. Returns
/// whether to go on.
fn take_events(
    incoming: &Receiver<Event>,
    app: &mut App,
    model: &mut Model,
    intervals: &Sender<u32>,
) -> io::Result<bool> {
    let Ok(first) = incoming.recv() else { return Ok(false) };
    for event in std::iter::once(first).chain(incoming.try_iter()) {
        match event {
            Event::Input(Input::Key(key)) => match app.key(key) {
                Some(Wish::Quit) => return Ok(false),
                // Who asks the switch ends with this process only.
                Some(Wish::Ask(seconds)) => intervals.send(seconds).unwrap_or_default(),
                None => {}
            },
            Event::Input(_) => {}
            Event::Seen(seen) => match *seen {
                Ok(sample) => {
                    let (figures, replaced) = model.take(sample);
                    app.seen(figures, replaced, Instant::now());
                }
                Err(error) => app.lost(reason(&error), Instant::now()),
            },
            Event::End(why) => return why.map(|()| false),
        }
    }
    Ok(true)
}

/// Why nobody answers, in a few words.
fn reason(error: &ClientError) -> String {
    match error {
        ClientError::Nobody(socket, _) => format!("nobody answers at {}", socket.display()),
        ClientError::NotPermitted(socket, _) => {
            format!("not permitted to use {}", socket.display())
        }
        ClientError::Answer(_) => "the switch gives no whole answer".to_owned(),
        other => other.to_string(),
    }
}

fn read_keys(events: Sender<Event>) {
    thread::spawn(move || {
        loop {
            let event = match event::read() {
                Ok(input) => Event::Input(input),
                Err(error) => Event::End(Err(error)),
            };
            let ended = matches!(event, Event::End(_));
            if events.send(event).is_err() || ended {
                return;
            }
        }
    });
}

fn wait_for_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP])?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if events.send(Event::End(Ok(()))).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The terminal, which is given back however this process ends: at a panic by a hook that
/// [`ratatui::try_init`] sets.
struct Screen(DefaultTerminal);

impl Screen {
    fn enter() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A second time would put the cursor onto what the panic said.
        if !thread::panicking() {
            ratatui::restore();
        }
    }
}
