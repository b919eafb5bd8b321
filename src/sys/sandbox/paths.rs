//! What is left of the file system and the network: Landlock.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Plan;

/// What is denied, unless a rule allows it: all that this version of Landlock knows (Linux 6.12).
/// Kernels that know less deny less.
const KNOWN: ABI = ABI::V6;
const TUN_DEVICE: &str = "/dev/net/tun";

/// How much of it the kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enforced {
    All,
    Some,
    Nothing,
}

/// The rules, which [`enforce`] puts in force. Paths are opened here, with the rights that are
/// there before root is dropped.
///
/// Socket files may be made and removed in the plan's directories, files beside its file be read, and
/// TAP devices be opened if it has some.
/// Nothing else can be opened, made, changed or removed, no TCP port be bound or connected to, no
/// abstract UNIX socket of another process be reached, and no other process be signalled.
pub(super) fn rules(plan: &Plan<'_>) -> Result<RulesetCreated, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    let sockets = AccessFs::MakeSock | AccessFs::RemoveFile;
    for directory in &plan.directories {
        rules = allow(rules, directory, sockets)?;
    }
    if let Some(directory) = plan.file.and_then(Path::parent) {
        rules = allow(rules, directory, AccessFs::ReadFile.into())?;
    }
    if plan.taps {
        let tun = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        rules = allow(rules, Path::new(TUN_DEVICE), tun)?;
    }
    Ok(rules)
}

/// A path that isn't there needs no rule: nothing can be done with it.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(opened) => rules.add_rule(PathBeneath::new(opened, access)),
        Err(_) => Ok(rules),
    }
}

/// Restricts this thread and those that it will start.
pub(super) fn enforce(rules: RulesetCreated) -> Result<Enforced, RulesetError> {
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Enforced::All,
        RulesetStatus::PartiallyEnforced => Enforced::Some,
        RulesetStatus::NotEnforced => Enforced::Nothing,
    })
}
