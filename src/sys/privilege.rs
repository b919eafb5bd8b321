//! The rights of the process: user, groups, capabilities.
//!
//! All of these are a thread's own in Linux, and a new thread inherits those of its creator: they
//! are given up before the second thread starts.

use rustix::io::{self, Errno};
use rustix::process::{DumpableBehavior, Gid, Uid, geteuid, getuid, set_dumpable_behavior};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use super::account::Account;

/// Whether this is root: user id 0.
#[must_use]
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// The user id of the process.
#[must_use]
pub fn user_id() -> u32 {
    getuid().as_raw()
}

/// Becomes `account`, if one is given, and gives up all capabilities but CAP_NET_ADMIN: that one
/// stays at hand, if `keep_net_admin`, and is used within [`NetAdmin`] only. No program that is
/// started gets more. The process can't be looked into by others of the same user, and leaves no
/// core file, which would hold the memory of guests.
///
/// # Errors
///
/// The error of `setgroups(2)`, `setresgid(2)`, `setresuid(2)`, `capset(2)` or `prctl(2)`.
pub fn drop_root(account: Option<&Account>, keep_net_admin: bool) -> io::Result<()> {
    clear_bounding_set()?;
    if let Some(account) = account {
        // Or a change from root to another user would take all capabilities away.
        thread::set_keep_capabilities(true)?;
        let groups: Vec<_> = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        thread::set_thread_groups(&groups)?;
        let gid = Gid::from_raw(account.gid);
        thread::set_thread_res_gid(gid, gid, gid)?;
        let uid = Uid::from_raw(account.uid);
        thread::set_thread_res_uid(uid, uid, uid)?;
        thread::set_keep_capabilities(false)?;
    }
    let wanted = if keep_net_admin { CapabilitySet::NET_ADMIN } else { CapabilitySet::empty() };
    let held = thread::capabilities(None)?.permitted;
    set(CapabilitySet::empty(), held & wanted)?;
    thread::set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// Gives up all capabilities of this thread.
///
/// # Errors
///
/// The error of `capset(2)`.
pub fn drop_all() -> io::Result<()> {
    set(CapabilitySet::empty(), CapabilitySet::empty())
}

/// Inheritable and, with them, ambient capabilities are always given up.
fn set(effective: CapabilitySet, permitted: CapabilitySet) -> io::Result<()> {
    let inheritable = CapabilitySet::empty();
    thread::set_capabilities(None, CapabilitySets { effective, permitted, inheritable })
}

/// Takes all out of what programs could ever get that this process starts.
fn clear_bounding_set() -> io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        match thread::capability_is_in_bounding_set(capability) {
            Ok(true) => match thread::remove_capability_from_bounding_set(capability) {
                // Not root: there is nothing to gain, since no_new_privs follows.
                Err(Errno::PERM) => return Ok(()),
                result => result?,
            },
            Ok(false) => {}
            // The kernel knows no more of them.
            Err(Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// CAP_NET_ADMIN is in force while this lives, if this thread has kept it.
#[derive(Debug)]
pub struct NetAdmin {
    raised: bool,
}

impl NetAdmin {
    /// Raises it. Where that isn't possible, or isn't needed, nothing changes: what needs the
    /// capability fails then, and says so.
    #[must_use]
    pub fn raise() -> Self {
        let raised = thread::capabilities(None).is_ok_and(|held| {
            let wanted = CapabilitySet::NET_ADMIN;
            held.permitted.contains(wanted)
                && !held.effective.contains(wanted)
                && set(held.effective | wanted, held.permitted).is_ok()
        });
        Self { raised }
    }
}

impl Drop for NetAdmin {
    fn drop(&mut self) {
        if !self.raised {
            return;
        }
        let lowered = thread::capabilities(None)
            .and_then(|held| set(held.effective - CapabilitySet::NET_ADMIN, held.permitted));
        if let Err(error) = lowered {
            log::error!("cannot give up CAP_NET_ADMIN: {error}");
        }
    }
}
