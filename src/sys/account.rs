//! Users and groups: names to numbers.

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;

/// Bytes for the strings of one user or group. A group with many members is larger; the look-up
/// fails then, and its number can be used instead.
const ENTRY_SIZE: usize = 64 * 1024;
/// The most groups of a user: Linux's NGROUPS_MAX.
const MAX_GROUPS: usize = 65_536;

/// Somebody to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// As it was asked for.
    pub name: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The other groups of that user.
    pub groups: Vec<u32>,
}

impl Account {
    /// The account of `user` or `user:group`, as names or numbers. A user without a group has that
    /// of its account, and a number of which nobody knows an account has none.
    #[must_use]
    pub fn find(text: &str) -> Option<Self> {
        let (user, group) = split(text);
        let entry = match user.parse() {
            Ok(uid) => user_entry(By::Id(uid)).or(Some(User { uid, gid: None, name: None })),
            Err(_) => user_entry(By::Name(&CString::new(user).ok()?)),
        }?;
        let gid = match group {
            Some(group) => group_number(group)?,
            None => entry.gid?,
        };
        let groups = entry.name.map_or_else(Vec::new, |name| groups(&name, gid));
        Some(Self { name: text.to_owned(), uid: entry.uid, gid, groups })
    }
}

/// Ids of `user` or `user:group`.
#[must_use]
pub fn ids(text: &str) -> Option<(u32, Option<u32>)> {
    let (user, group) = split(text);
    let uid = match user.parse() {
        Ok(uid) => uid,
        Err(_) => user_entry(By::Name(&CString::new(user).ok()?))?.uid,
    };
    Some((uid, group.map(group_number).map_or(Some(None), |gid| gid.map(Some))?))
}

fn split(text: &str) -> (&str, Option<&str>) {
    match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    }
}

fn group_number(group: &str) -> Option<u32> {
    group.parse().ok().or_else(|| group_id(group))
}

/// What is known of a user.
struct User {
    uid: u32,
    gid: Option<u32>,
    name: Option<CString>,
}

enum By<'a> {
    Id(u32),
    Name(&'a CStr),
}

fn user_entry(by: By<'_>) -> Option<User> {
    let mut strings = vec![0 as libc::c_char; ENTRY_SIZE];
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut found = std::ptr::null_mut();
    let (buffer, size) = (strings.as_mut_ptr(), strings.len());
    let result = match by {
        // SAFETY: the buffers outlive the call, with their sizes.
        By::Id(uid) => unsafe {
            libc::getpwuid_r(uid, entry.as_mut_ptr(), buffer, size, &mut found)
        },
        // SAFETY: as above, and `name` ends with a zero.
        By::Name(name) => unsafe {
            libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer, size, &mut found)
        },
    };
    // SAFETY: `found` is null or points to `entry`, which is filled in then.
    let entry = unsafe { found.as_ref() }.filter(|_| result == 0)?;
    // SAFETY: the name is a string in `strings`.
    let name = unsafe { CStr::from_ptr(entry.pw_name) }.to_owned();
    Some(User { uid: entry.pw_uid, gid: Some(entry.pw_gid), name: Some(name) })
}

fn group_id(name: &str) -> Option<u32> {
    let name = CString::new(OsStr::new(name).as_bytes()).ok()?;
    let mut strings = vec![0 as libc::c_char; ENTRY_SIZE];
    let mut entry = MaybeUninit::<libc::group>::uninit();
    let mut found = std::ptr::null_mut();
    // SAFETY: `name` ends with a zero, and the buffers outlive the call, with their sizes.
    let result = unsafe {
        let (buffer, size) = (strings.as_mut_ptr(), strings.len());
        libc::getgrnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer, size, &mut found)
    };
    // SAFETY: `found` is null or points to `entry`, which is filled in then.
    unsafe { found.as_ref() }.filter(|_| result == 0).map(|entry| entry.gr_gid)
}

/// All groups of a user, `gid` among them.
fn groups(name: &CStr, gid: u32) -> Vec<u32> {
    let mut groups = vec![0 as libc::gid_t; MAX_GROUPS];
    let mut count = MAX_GROUPS as libc::c_int;
    // SAFETY: `name` ends with a zero, and `groups` has room for `count` of them.
    let result =
        unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
    let known = if result < 0 { 0 } else { usize::try_from(count).unwrap_or(0) };
    groups.truncate(known);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_resolved() {
        assert_eq!(ids("7"), Some((7, None)));
        assert_eq!(ids("root:root"), Some((0, Some(0))));
        assert_eq!(ids("root:7"), Some((0, Some(7))));
        for unknown in ["", "no-such-user", "root:", "root:no-such-group", ":0"] {
            assert_eq!(ids(unknown), None, "{unknown:?}");
            assert_eq!(Account::find(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn an_account_has_its_groups() {
        let root = Account::find("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0), "{root:?}");
        assert_eq!(Account::find("0").unwrap().groups, root.groups);
        let nobody = Account::find("nobody:7").unwrap();
        assert_eq!(nobody.gid, 7);
        assert!(nobody.groups.contains(&7), "{nobody:?}");
    }

    #[test]
    fn a_number_without_an_account_needs_a_group() {
        assert_eq!(Account::find("4000000"), None);
        let account = Account::find("4000000:4000001").unwrap();
        assert_eq!((account.uid, account.gid, account.groups), (4_000_000, 4_000_001, vec![]));
    }
}
