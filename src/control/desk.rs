//! Where changes are asked for: the main thread makes them, one after the other.
//!
//! It is the thread that has kept what it takes to open sockets and TAPs; those who ask have not, and
//! wait for its answer.

use std::collections::VecDeque;
use std::path::PathBuf;

use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::oneshot;

use crate::api::config::Changed;
use crate::config::{ConfigErrors, Settings};
use crate::sys::sandbox::Sandbox;
use crate::sys::signal::Ringer;

use super::Switch;
use super::change::ChangeError;

/// What makes other settings of those that there are.
type Edit = Box<dyn FnOnce(&Settings) -> Result<Settings, Refusal> + Send>;

/// What somebody wants.
pub(super) enum Wish {
    /// Other settings than there are at that moment.
    Edit(Edit),
    /// What the configuration file says now.
    File,
}

/// Why a wish for the file isn't fulfilled.
const NO_FILE: &str = "the switch was started without --config: say which file, `reload FILE`";

/// Why nothing was changed.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    /// There is nothing of that name.
    #[error("{0}")]
    Unknown(String),
    /// It can't be settings.
    #[error("{0}")]
    Wrong(String),
    /// It can't be done, now or by this process.
    #[error("{0}")]
    Impossible(String),
}

impl From<ChangeError> for Refusal {
    fn from(error: ChangeError) -> Self {
        Self::Impossible(error.to_string())
    }
}

/// What came of it.
pub(super) type Outcome = Result<Changed, Refusal>;

struct Task {
    wish: Wish,
    /// Whose it is, for the log.
    who: String,
    dry: bool,
    answer: oneshot::Sender<Outcome>,
}

/// Requests that wait. There are no more than clients of the API.
pub(super) struct Desk {
    tasks: Mutex<VecDeque<Task>>,
    ringer: Ringer,
    /// Reads the configuration file again, if there is one.
    reread: Option<Reread>,
}

/// The configuration file.
pub struct Reread {
    /// Where it is.
    pub file: PathBuf,
    /// Reads it, with what arguments say besides.
    pub read: Box<dyn Fn() -> Result<Settings, ConfigErrors> + Send + Sync>,
}

impl Desk {
    /// A desk whose bell is heard by the main thread.
    pub fn new(ringer: Ringer, reread: Option<Reread>) -> Self {
        Self { tasks: Mutex::default(), ringer, reread }
    }

    /// Asks for a change, or what it would be if `dry`.
    pub async fn ask(&self, wish: Wish, who: String, dry: bool) -> Outcome {
        let (answer, answered) = oneshot::channel();
        self.tasks.lock().push_back(Task { wish, who, dry, answer });
        self.ringer.ring();
        let ending = || Refusal::Impossible("the switch is ending".to_owned());
        answered.await.unwrap_or_else(|_| Err(ending()))
    }

    /// Does what was asked for.
    pub fn work(&self, switch: &Switch, sandbox: &Sandbox) {
        loop {
            let task = self.tasks.lock().pop_front();
            let Some(Task { wish, who, dry, answer }) = task else { return };
            // Who asked may have gone.
            let _ = answer.send(self.fulfil(wish, &who, dry, switch, sandbox));
        }
    }

    fn fulfil(
        &self,
        wish: Wish,
        who: &str,
        dry: bool,
        switch: &Switch,
        sandbox: &Sandbox,
    ) -> Outcome {
        let wanted = match (wish, &self.reread) {
            (Wish::Edit(edit), _) => edit(&switch.settings.now())?,
            (Wish::File, Some(reread)) => {
                (reread.read)().map_err(|errors| Refusal::Wrong(errors.to_string()))?
            }
            (Wish::File, None) => return Err(Refusal::Impossible(NO_FILE.to_owned())),
        };
        let changed = switch.change(wanted, sandbox, dry)?;
        if !dry && changed != Changed::default() {
            log::info!("changed by {who}: {changed}");
        }
        Ok(changed)
    }

    /// Goes over to what the configuration file says now, for whoever sent a signal.
    pub fn reload(&self, switch: &Switch, sandbox: &Sandbox) {
        match self.fulfil(Wish::File, "SIGHUP", false, switch, sandbox) {
            Ok(changed) if changed == Changed::default() => {
                log::info!("reloaded: the file says what is");
            }
            // It was logged.
            Ok(_) => {}
            Err(refusal) => log::error!("not reloaded, everything is as before: {refusal}"),
        }
    }
}
