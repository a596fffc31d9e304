//! Whether the service's user can read a secret again after privileges are dropped.
//!
//! Keys are read at first by root, and after a rotation by the service's user: a
//! file that only root may read works until the day of the rotation. So it is
//! looked at beforehand, by the permission bits of the file and of every
//! directory and link on the way to it. What that does not see: access control
//! lists (a file that has one is given the benefit of the doubt), capabilities of
//! the service and mandatory access control.

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::source::SourceError;

/// Links followed on one path, as the kernel does. Past it: "too many levels".
const LINKS_MAX: usize = 40;

/// The user that the service becomes, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceUser {
    /// The user.
    pub uid: u32,
    /// Its first group, or the one that was named.
    pub gid: u32,
    /// All its groups, `gid` among them.
    pub gids: Vec<u32>,
}

/// Looks a user up in the system's data base.
///
/// # Errors
/// [`SourceError::NoSuchUser`] when the user or the group is not there.
pub fn service_user(name: &str, group: Option<&str>) -> Result<ServiceUser, SourceError> {
    let no_user = || SourceError::NoSuchUser {
        kind: "user",
        name: name.to_owned(),
        command: "useradd",
    };
    let user = User::from_name(name).ok().flatten().ok_or_else(no_user)?;
    let gid = match group {
        None => user.gid,
        Some(group) => {
            let found = Group::from_name(group).ok().flatten();
            found
                .map(|group| group.gid)
                .ok_or_else(|| SourceError::NoSuchUser {
                    kind: "group",
                    name: group.to_owned(),
                    command: "groupadd",
                })?
        }
    };
    let c_name = CString::new(name).map_err(|_| no_user())?;
    let gids = getgrouplist(&c_name, gid).unwrap_or_else(|_| vec![gid]);
    Ok(ServiceUser {
        uid: user.uid.as_raw(),
        gid: gid.as_raw(),
        gids: gids.into_iter().map(Gid::as_raw).collect(),
    })
}

/// Whether a process of user `uid` in the groups `gids` may open `path` for reading.
///
/// # Errors
/// [`SourceError::NotForServiceUser`], which names the directory or file that is
/// in the way and the command that changes it, or [`SourceError::Unreadable`]
/// where we cannot look ourselves.
pub fn readable_by(path: &Path, uid: u32, gids: &[u32]) -> Result<(), SourceError> {
    if Uid::from_raw(uid).is_root() {
        return Ok(());
    }
    let may = |metadata: &Metadata, bit: u32| {
        let class = if metadata.uid() == uid {
            6
        } else if gids.contains(&metadata.gid()) {
            3
        } else {
            0
        };
        metadata.permissions().mode() & (bit << class) != 0
    };
    let refuse = |obstacle: String, cure: String| SourceError::NotForServiceUser {
        path: path.to_owned(),
        uid,
        obstacle,
        cure,
    };
    let look = |at: &Path, result: std::io::Result<Metadata>| {
        result.map_err(|error| SourceError::Unreadable {
            path: path.to_owned(),
            reason: format!("{}: {error}", at.display()),
            cure: "",
        })
    };

    let mut walk = Walk::new(path);
    while let Some(at) = walk.next_component() {
        let parent = at.parent().unwrap_or(Path::new("/"));
        let directory = look(parent, parent.metadata())?;
        if !may(&directory, 0o1) && !has_acl(parent) {
            return Err(refuse(
                format!(
                    "it may not enter {} ({})",
                    parent.display(),
                    owner(&directory)
                ),
                format!("`chgrp GROUP {0} && chmod g+x {0}`", parent.display()),
            ));
        }
        let metadata = look(&at, at.symlink_metadata())?;
        if metadata.is_symlink() {
            walk.follow(&at, look_link(path, &at)?)?;
            continue;
        }
        if walk.is_at_end() && !may(&metadata, 0o4) && !has_acl(&at) {
            return Err(refuse(
                format!("it may not read {} ({})", at.display(), owner(&metadata)),
                format!("`chgrp GROUP {0} && chmod g+r {0}`", at.display()),
            ));
        }
        walk.enter(at);
    }
    Ok(())
}

/// A path on its way to be resolved, one component after the other.
struct Walk<'a> {
    whole: &'a Path,
    at: PathBuf,
    ahead: VecDeque<OsString>,
    links: usize,
}

impl<'a> Walk<'a> {
    fn new(whole: &'a Path) -> Self {
        let mut walk = Self {
            whole,
            at: PathBuf::from("/"),
            ahead: VecDeque::new(),
            links: 0,
        };
        walk.put_ahead(whole);
        walk
    }

    /// The next component under the directory reached so far.
    fn next_component(&mut self) -> Option<PathBuf> {
        let name = self.ahead.pop_front()?;
        Some(self.at.join(name))
    }

    /// Goes on below `directory`.
    fn enter(&mut self, directory: PathBuf) {
        self.at = directory;
    }

    /// Goes on where the link at `link` points.
    fn follow(&mut self, link: &Path, target: PathBuf) -> Result<(), SourceError> {
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(SourceError::Unreadable {
                path: self.whole.to_owned(),
                reason: format!(
                    "more than {LINKS_MAX} symbolic links, at {}",
                    link.display()
                ),
                cure: "; is it a circle?",
            });
        }
        if target.is_absolute() {
            self.at = PathBuf::from("/");
        }
        self.put_ahead(&target);
        Ok(())
    }

    fn is_at_end(&self) -> bool {
        self.ahead.is_empty()
    }

    fn put_ahead(&mut self, path: &Path) {
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.ahead.push_front(name.to_owned()),
                Component::ParentDir => self.ahead.push_front("..".into()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
    }
}

fn look_link(whole: &Path, at: &Path) -> Result<PathBuf, SourceError> {
    std::fs::read_link(at).map_err(|error| SourceError::Unreadable {
        path: whole.to_owned(),
        reason: format!("{}: {error}", at.display()),
        cure: "",
    })
}

fn owner(metadata: &Metadata) -> String {
    format!(
        "owner {}, group {}, mode {:04o}",
        metadata.uid(),
        metadata.gid(),
        metadata.permissions().mode() & 0o7777
    )
}

/// Whether there is an access control list beyond the permission bits; then the
/// bits do not tell, and the file gets the benefit of the doubt.
#[allow(unsafe_code)]
fn has_acl(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;

    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: both names end in NUL, and a size of 0 asks for the length alone,
    // for which no buffer is needed (getxattr(2)).
    let length = unsafe {
        nix::libc::getxattr(
            path.as_ptr(),
            c"system.posix_acl_access".as_ptr(),
            std::ptr::null_mut(),
            0,
        )
    };
    length > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::write_private;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::symlink;

    /// A user and a group that own nothing here.
    const STRANGER: u32 = 61_234;

    struct Tree {
        directory: tempfile::TempDir,
        uid: u32,
        gid: u32,
    }

    impl Tree {
        /// `link -> data/key`, and `data -> real`, all of it ours.
        fn new(directory_mode: u32, file_mode: u32) -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let at = |name: &str| directory.path().join(name);
            let set = |path: &Path, mode| {
                fs::set_permissions(path, Permissions::from_mode(mode)).expect("owner");
            };
            fs::create_dir(at("real")).expect("a directory");
            write_private(&at("real/key"), b"k");
            symlink("real", at("data")).expect("a link");
            symlink(at("data/key"), at("link")).expect("a link");
            set(&at("real/key"), file_mode);
            set(&at("real"), directory_mode);
            set(directory.path(), 0o755);
            let metadata = at("real/key").metadata().expect("it is there");
            Self {
                uid: metadata.uid(),
                gid: metadata.gid(),
                directory,
            }
        }

        fn link(&self) -> PathBuf {
            self.directory.path().join("link")
        }
    }

    #[track_caller]
    fn check(directory_mode: u32, file_mode: u32, expected: [bool; 3]) {
        let tree = Tree::new(directory_mode, file_mode);
        // Root may do anything, so its own files are looked at by another user only.
        let owner = readable_by(&tree.link(), tree.uid, &[STRANGER]).is_ok();
        let group = readable_by(&tree.link(), STRANGER, &[STRANGER, tree.gid]).is_ok();
        let other = readable_by(&tree.link(), STRANGER, &[STRANGER]).is_ok();
        let owner = if tree.uid == 0 { expected[0] } else { owner };
        assert_eq!(
            [owner, group, other],
            expected,
            "{directory_mode:o}/{file_mode:o}"
        );
    }

    #[test]
    fn permission_bits_decide() {
        //    directory  file    owner  group  other
        check(0o755, 0o644, [true, true, true]);
        check(0o755, 0o640, [true, true, false]);
        check(0o755, 0o600, [true, false, false]);
        check(0o700, 0o644, [true, false, false]);
        check(0o750, 0o644, [true, true, false]);
        // The class that fits first is the only one that counts.
        check(0o755, 0o604, [true, false, true]);
    }

    #[test]
    fn the_obstacle_and_the_cure_are_named() {
        let tree = Tree::new(0o700, 0o640);
        let error = readable_by(&tree.link(), STRANGER, &[STRANGER]).expect_err("not readable");
        let text = error.to_string();
        assert!(text.contains("may not enter"), "{text}");
        assert!(
            text.contains("/real"),
            "the directory behind the link is named: {text}"
        );
        assert!(text.contains("chmod g+x"), "{text}");
    }

    #[test]
    fn a_circle_of_links_ends() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("owner");
        let path = directory.path().join("circle");
        symlink("circle", &path).expect("a link");
        let error = readable_by(&path, STRANGER, &[]).expect_err("a circle");
        assert!(error.to_string().contains("circle?"), "{error}");
    }

    #[test]
    fn users_are_looked_up() {
        let root = service_user("root", None).expect("there is always root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.gids.contains(&0));
        let error = service_user("no-such-user-here", None).expect_err("not there");
        assert!(error.to_string().contains("useradd --system"), "{error}");
    }
}
