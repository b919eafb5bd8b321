//! The workers' threads: started, pinned and ended while frames go on.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use crate::config::WorkerSettings;
use crate::sys::sandbox::{Sandbox, Thread};
use crate::sys::thread::ThreadId;
use crate::worker::{Order, Shared, Worker};

use super::Error;

/// The threads of the workers, by number.
#[derive(Debug, Default)]
pub(super) struct Crew {
    hands: Vec<Hand>,
}

#[derive(Debug)]
struct Hand {
    thread: JoinHandle<()>,
    id: ThreadId,
}

impl Crew {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.hands.len()
    }

    /// Starts workers until there are as many as wanted. Those that are new have no sources yet.
    ///
    /// # Errors
    ///
    /// The system's limits; there are as many as before.
    pub fn hire(
        &mut self,
        shared: &Arc<Shared>,
        wanted: &WorkerSettings,
        sandbox: &Sandbox,
    ) -> Result<(), Error> {
        let before = self.len();
        for index in before..wanted.count {
            match start(shared, index, wanted, sandbox) {
                Ok(hand) => self.hands.push(hand),
                Err(source) => {
                    self.dismiss(shared, before);
                    return Err(Error::System { what: "start a thread", source });
                }
            }
        }
        Ok(())
    }

    /// Has each worker run on its CPU, or on whichever there is.
    pub fn pin(&self, cpus: &[usize]) {
        for (index, hand) in self.hands.iter().enumerate() {
            let cpu = cpus.get(index).copied();
            let pinned = cpu.map_or_else(|| hand.id.unpin(), |cpu| hand.id.pin(cpu));
            if let Err(error) = pinned {
                let cpu = cpu.map_or("any CPU".to_owned(), |cpu| format!("CPU {cpu}"));
                log::error!("worker {index}: cannot run on {cpu}: {error}; it runs where it did");
            }
        }
    }

    /// Ends those beyond the first `count`, which have no sources any more.
    pub fn dismiss(&mut self, shared: &Shared, count: usize) {
        let surplus = self.hands.split_off(count.min(self.hands.len()));
        for mailbox in shared.mailboxes.iter().skip(count).take(surplus.len()) {
            mailbox.send(Order::End);
        }
        surplus.into_iter().for_each(join);
    }

    /// Waits for all of them, who were told to end.
    pub fn join(&mut self) {
        self.hands.drain(..).for_each(join);
    }
}

fn join(hand: Hand) {
    if hand.thread.join().is_err() {
        log::error!("a worker ended by a panic: please report it");
    }
}

fn start(
    shared: &Arc<Shared>,
    index: usize,
    wanted: &WorkerSettings,
    sandbox: &Sandbox,
) -> std::io::Result<Hand> {
    let mut worker = Worker::new(Arc::clone(shared), index, wanted.mode);
    let sandbox = sandbox.clone();
    let (said, heard) = mpsc::channel();
    let thread = thread::Builder::new().name(format!("worker{index}")).spawn(move || {
        // Who asks waits for it.
        let _ = said.send(ThreadId::current());
        sandbox.confine(Thread::Worker);
        worker.run();
    })?;
    let id = heard.recv().map_err(std::io::Error::other)?;
    Ok(Hand { thread, id })
}
