//! [`Watch`]: notices that a file of the configuration, a key or a certificate is
//! no longer what was read.
//!
//! What counts is a look at the file itself: its device, inode, size and times,
//! behind all links. So a rename over it, a write in place, and the swap of the
//! `..data` link by which Kubernetes changes a whole directory at once, are one and
//! the same thing here. inotify only says *when* to look, and a look is taken once
//! a second anyway: network and overlay file systems report no changes that were
//! made elsewhere, a queue of events can overflow, a watched directory can be
//! replaced as a whole, and a look at a file costs a microsecond. Without inotify
//! looks are twice as frequent, so that a changed key is still in use within a
//! second.
//!
//! All of it happens in a thread of its own, since a look at a file on a network
//! mount can block. What is deliberately missing: reading anything.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};

/// Time between two looks where inotify works.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two looks where it does not.
const LOOK_INTERVAL_ALONE: Duration = Duration::from_millis(500);

/// Shortest time between two looks. Something else in the directory may be written
/// all the time, and each write is an event.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// How long nothing may change before a change is reported: writers write in
/// pieces, and several files belong together.
const QUIET: Duration = Duration::from_millis(100);
/// Looks that wait for quiet. Past it the change is reported as it is; the next
/// look finds whatever comes after.
const QUIET_LOOKS_MAX: usize = 4;

/// How long one look at one file may take before [`Watch::stuck`] tells.
const LOOK_TIME_MAX: Duration = Duration::from_secs(5);

/// How much older a file's time may be than the change that set it: the kernel takes it from a
/// clock that moves once a tick (10 ms at the slowest), so a file written right after it was read
/// seems to have been written before. Without this such a change was never noticed, since the first look is
/// what later ones are compared with.
const STAMP_LAG: Duration = Duration::from_millis(10);

/// Watches files until it is dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
}

impl Watch {
    /// Starts the thread. `on_change` is called there with the paths that changed,
    /// as they were given to [`set`](Self::set); it must not block.
    ///
    /// # Errors
    /// No thread could be started. That inotify does not work is no error: the log
    /// names the cure, and looks go on without.
    pub fn start(on_change: impl Fn(BTreeSet<PathBuf>) + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let events = Arc::clone(&shared);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error may be an overflow: whatever it was, a look finds out.
            if event.map_or(true, |event| is_change(&event.kind)) {
                events.tell(|inbox| inbox.event = true);
            }
        });
        Self::start_with(
            shared,
            watcher.map_err(|error| error.to_string()),
            on_change,
        )
    }

    fn start_with(
        shared: Arc<Shared>,
        watcher: Result<RecommendedWatcher, String>,
        on_change: impl Fn(BTreeSet<PathBuf>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                tracing::warn!(
                    "inotify is not available ({error}), so changed files are looked for twice a \
                     second; likely cause: too many users of it; try \
                     `sysctl -w fs.inotify.max_user_instances=1024`"
                );
                None
            }
        };
        let mut looker = Looker {
            shared: Arc::clone(&shared),
            watcher,
            watched: BTreeSet::new(),
            seen: BTreeMap::new(),
        };
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || looker.run(&on_change))?;
        Ok(Self { shared })
    }

    /// Watches `paths` from now on: files, and directories, which stand for the
    /// `*.toml` in them. What changed after `read_began`, when they were last read,
    /// is reported even if it had changed before this call.
    pub fn set(&self, paths: Vec<PathBuf>, read_began: SystemTime) {
        self.shared
            .tell(|inbox| inbox.paths = Some((paths, read_began)));
    }

    /// The file that a look hangs on, if it does: its file system does not answer,
    /// and meanwhile changes to other files go unnoticed.
    pub fn stuck(&self) -> Option<PathBuf> {
        let looking_at = self.shared.lock().looking_at.clone();
        looking_at
            .filter(|(_, since)| since.elapsed() > LOOK_TIME_MAX)
            .map(|(path, _)| path)
    }
}

impl Drop for Watch {
    /// Does not wait for the thread, which may hang.
    fn drop(&mut self) {
        self.shared.tell(|inbox| inbox.stop = true);
    }
}

/// What is not merely an access. Opening and reading must not count: looking would
/// then be a reason to look.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Inbox {
    event: bool,
    paths: Option<(Vec<PathBuf>, SystemTime)>,
    stop: bool,
    looking_at: Option<(PathBuf, Instant)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.lock());
        self.news.notify_one();
    }
}

/// The thread's own state.
struct Looker {
    shared: Arc<Shared>,
    watcher: Option<RecommendedWatcher>,
    /// Directories that inotify reports on.
    watched: BTreeSet<PathBuf>,
    /// What was seen at the last look.
    seen: BTreeMap<PathBuf, Seen>,
}

impl Looker {
    fn run(&mut self, on_change: &dyn Fn(BTreeSet<PathBuf>)) {
        let interval = match self.watcher {
            Some(_) => LOOK_INTERVAL,
            None => LOOK_INTERVAL_ALONE,
        };
        loop {
            let paths = {
                let inbox = self.shared.lock();
                let nothing =
                    |inbox: &mut Inbox| !inbox.event && inbox.paths.is_none() && !inbox.stop;
                let (mut inbox, _) = self
                    .shared
                    .news
                    .wait_timeout_while(inbox, interval, nothing)
                    .unwrap_or_else(PoisonError::into_inner);
                if inbox.stop {
                    return;
                }
                inbox.event = false;
                inbox.paths.take()
            };
            let mut changed = match paths {
                Some((paths, read_began)) => self.set(paths, read_began),
                None => BTreeSet::new(),
            };
            changed.append(&mut self.look());
            if changed.is_empty() {
                std::thread::sleep(LOOK_PAUSE);
                continue;
            }
            for _ in 0..QUIET_LOOKS_MAX {
                std::thread::sleep(QUIET);
                let mut more = self.look();
                if more.is_empty() {
                    break;
                }
                changed.append(&mut more);
            }
            // Directories may be new, or others by now.
            self.watch_directories();
            on_change(changed);
        }
    }

    /// Takes other paths. Returns those that changed since they were read.
    fn set(&mut self, paths: Vec<PathBuf>, read_began: SystemTime) -> BTreeSet<PathBuf> {
        let mut changed = BTreeSet::new();
        let mut seen = BTreeMap::new();
        for path in paths {
            // Known ones keep what was seen before they were read, so that a change
            // between that and the reading is found (at worst, once too often).
            let entry = match self.seen.remove(&path) {
                Some(entry) => entry,
                None => {
                    let entry = self.see(&path);
                    if entry.changed_since(read_began) {
                        changed.insert(path.clone());
                    }
                    entry
                }
            };
            seen.insert(path, entry);
        }
        self.seen = seen;
        self.watch_directories();
        changed
    }

    /// Looks at everything. Returns what is not as it was.
    fn look(&mut self) -> BTreeSet<PathBuf> {
        let mut changed = BTreeSet::new();
        let paths: Vec<_> = self.seen.keys().cloned().collect();
        for path in paths {
            let now = self.see(&path);
            if self.seen.get(&path) != Some(&now) {
                self.seen.insert(path.clone(), now);
                changed.insert(path);
            }
        }
        changed
    }

    fn see(&self, path: &Path) -> Seen {
        self.shared.lock().looking_at = Some((path.to_owned(), Instant::now()));
        let seen = Seen::at(path);
        self.shared.lock().looking_at = None;
        seen
    }

    /// Asks inotify for every directory on the way to a file: its own, the one that
    /// each link on the way is in, and the one where it really is.
    fn watch_directories(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let directories: BTreeSet<_> = self
            .seen
            .keys()
            .flat_map(|path| directories_of(path))
            .collect();
        for directory in self.watched.difference(&directories) {
            // It may be gone already.
            let _ = watcher.unwatch(directory);
        }
        self.watched.clear();
        for directory in directories {
            // One that is watched already is watched again, as it may be another
            // directory of that name by now. One that cannot be is looked at anyway.
            match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(directory);
                }
                Err(error) => tracing::debug!(
                    directory = %directory.display(),
                    %error,
                    "inotify does not watch a directory; its files are looked at once a second",
                ),
            }
        }
    }
}

fn directories_of(path: &Path) -> BTreeSet<PathBuf> {
    let mut directories = BTreeSet::new();
    let mut add = |path: &Path| {
        if path.is_dir() {
            directories.insert(path.to_owned());
        }
        directories.extend(path.parent().map(Path::to_owned));
    };
    add(path);
    for ancestor in path.ancestors() {
        if ancestor.is_symlink() {
            add(ancestor);
            // The next link of a chain, as far as one step tells; behind it, the end.
            if let (Ok(target), Some(parent)) = (ancestor.read_link(), ancestor.parent()) {
                add(&parent.join(target));
            }
        }
    }
    if let Ok(real) = path.canonicalize() {
        add(&real);
    }
    directories
}

/// What a look finds at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// Nothing, or nothing that may be seen.
    Nothing,
    File(Print),
    /// A directory's `*.toml`.
    Directory(BTreeMap<OsString, Option<Print>>),
}

impl Seen {
    fn at(path: &Path) -> Self {
        let Ok(metadata) = path.metadata() else {
            return Seen::Nothing;
        };
        if !metadata.is_dir() {
            return Seen::File(Print::of(&metadata));
        }
        let Ok(entries) = path.read_dir() else {
            return Seen::Nothing;
        };
        let files = entries
            .flatten()
            .filter(|entry| Path::new(&entry.file_name()).extension() == Some("toml".as_ref()))
            .map(|entry| {
                // Behind a link, unlike the entry's own.
                let metadata = entry.path().metadata();
                (entry.file_name(), metadata.ok().as_ref().map(Print::of))
            });
        Seen::Directory(files.collect())
    }

    fn changed_since(&self, time: SystemTime) -> bool {
        match self {
            Seen::Nothing => false,
            Seen::File(print) => print.changed_since(time),
            Seen::Directory(files) => files
                .values()
                .flatten()
                .any(|print| print.changed_since(time)),
        }
    }
}

/// What tells one content of a file from another without reading it. The time of
/// the last change of status (ctime) cannot be set by anybody, and moves with the
/// permissions too: a file that has become readable is worth another try.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Print {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Print {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// At worst, once too often: see [`STAMP_LAG`].
    fn changed_since(&self, time: SystemTime) -> bool {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let Some(time) = since.and_then(|time| time.checked_sub(STAMP_LAG)) else {
            return true;
        };
        self.changed >= (time.as_secs() as i64, i64::from(time.subsec_nanos()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::mpsc;

    /// Longer than anything here takes; a test that waits for it has failed.
    const LONG: Duration = Duration::from_secs(20);

    struct Bench {
        directory: tempfile::TempDir,
        watch: Watch,
        changes: mpsc::Receiver<BTreeSet<PathBuf>>,
    }

    impl Bench {
        fn new(with_inotify: bool) -> Self {
            let (sender, changes) = mpsc::channel();
            let on_change = move |paths| {
                let _ = sender.send(paths);
            };
            let watch = if with_inotify {
                Watch::start(on_change)
            } else {
                let shared = Arc::new(Shared::default());
                Watch::start_with(shared, Err("not in this test".to_owned()), on_change)
            };
            Self {
                directory: tempfile::tempdir().expect("a directory"),
                watch: watch.expect("starts"),
                changes,
            }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// Watches, and waits until the first look is over.
        fn set(&self, names: &[&str]) {
            let marker = self.at("marker");
            fs::write(&marker, "").expect("writable");
            let mut paths: Vec<_> = names.iter().map(|name| self.at(name)).collect();
            paths.push(marker.clone());
            self.watch.set(paths, SystemTime::now() + LONG);
            // Changed until that is noticed: then the first look is over.
            let (started, mut size) = (Instant::now(), 0);
            loop {
                size += 1;
                fs::write(&marker, "x".repeat(size)).expect("writable");
                if let Ok(changed) = self.changes.recv_timeout(Duration::from_millis(300)) {
                    assert_eq!(changed, BTreeSet::from([marker.clone()]));
                    break;
                }
                assert!(started.elapsed() < LONG, "no change is noticed");
            }
            while self
                .changes
                .recv_timeout(Duration::from_millis(1500))
                .is_ok()
            {}
        }

        #[track_caller]
        fn next(&self) -> BTreeSet<PathBuf> {
            self.changes
                .recv_timeout(LONG)
                .expect("a change is noticed")
        }

        /// Exactly `name` is reported after `change`, and soon.
        #[track_caller]
        fn check(&self, name: &str, change: impl FnOnce(&Self)) {
            let started = Instant::now();
            change(self);
            assert_eq!(self.next(), BTreeSet::from([self.at(name)]));
            // Two looks and some room for a busy machine; the promise of a second
            // for a key in use has a test of its own, under load.
            assert!(started.elapsed() < Duration::from_secs(5));
        }
    }

    fn changes_of_every_kind(with_inotify: bool) {
        let bench = Bench::new(with_inotify);
        fs::create_dir(bench.at("conf.d")).expect("a directory");
        fs::create_dir(bench.at("..1")).expect("a directory");
        fs::create_dir(bench.at("..2")).expect("a directory");
        for (name, text) in [
            ("key", "one"),
            ("..1/mounted", "one"),
            ("..2/mounted", "two"),
        ] {
            fs::write(bench.at(name), text).expect("writable");
        }
        symlink("..1", bench.at("..data")).expect("a link");
        symlink("..data/mounted", bench.at("mounted")).expect("a link");
        bench.set(&["key", "mounted", "conf.d", "later"]);

        bench.check("key", |bench| {
            fs::write(bench.at("key"), "in place").expect("writable")
        });
        bench.check("key", |bench| {
            fs::write(bench.at("key.new"), "in place").expect("writable");
            fs::rename(bench.at("key.new"), bench.at("key")).expect("ours");
        });
        bench.check("key", |bench| {
            fs::set_permissions(bench.at("key"), fs::Permissions::from_mode(0o640)).expect("ours");
        });
        bench.check("mounted", |bench| {
            symlink("..2", bench.at("..data_tmp")).expect("a link");
            fs::rename(bench.at("..data_tmp"), bench.at("..data")).expect("ours");
        });
        bench.check("mounted", |bench| {
            fs::write(bench.at("..2/mounted"), "written where it is").expect("writable");
        });
        bench.check("conf.d", |bench| {
            fs::write(bench.at("conf.d/stripe.toml"), "").expect("writable");
        });
        bench.check("conf.d", |bench| {
            fs::write(bench.at("conf.d/stripe.toml"), "[route]").expect("writable");
        });
        bench.check("conf.d", |bench| {
            fs::remove_file(bench.at("conf.d/stripe.toml")).expect("ours");
        });
        bench.check("later", |bench| {
            fs::write(bench.at("later"), "").expect("writable")
        });
        bench.check("later", |bench| {
            fs::remove_file(bench.at("later")).expect("ours")
        });
        // What an editor leaves beside it does not count.
        fs::write(bench.at("conf.d/.stripe.toml.swp"), "").expect("writable");
        fs::write(bench.at("other"), "").expect("writable");
        assert!(
            bench
                .changes
                .recv_timeout(Duration::from_millis(1500))
                .is_err()
        );
    }

    #[test]
    fn changes_are_noticed_by_inotify() {
        changes_of_every_kind(true);
    }

    #[test]
    fn changes_are_noticed_without_inotify() {
        changes_of_every_kind(false);
    }

    #[test]
    fn a_directory_that_is_replaced_is_followed() {
        let bench = Bench::new(true);
        for name in ["now", "next"] {
            fs::create_dir(bench.at(name)).expect("a directory");
            fs::write(bench.at(name).join("key"), name).expect("writable");
        }
        bench.set(&["now/key"]);
        bench.check("now/key", |bench| {
            fs::rename(bench.at("now"), bench.at("old")).expect("ours");
            fs::rename(bench.at("next"), bench.at("now")).expect("ours");
        });
        bench.check("now/key", |bench| {
            fs::write(bench.at("now/key"), "in the new directory").expect("writable");
        });
    }

    #[test]
    fn what_changed_while_it_was_read_is_noticed() {
        let bench = Bench::new(true);
        fs::write(bench.at("key"), "").expect("writable");
        let before = SystemTime::now() - Duration::from_secs(60);
        bench.watch.set(vec![bench.at("key")], before);
        assert_eq!(bench.next(), BTreeSet::from([bench.at("key")]));
        // And only once.
        bench.watch.set(vec![bench.at("key")], before);
        assert!(
            bench
                .changes
                .recv_timeout(Duration::from_millis(300))
                .is_err()
        );
    }

    /// The clock that files are stamped by lags behind the one that `read_began` is of.
    #[test]
    fn a_change_right_after_the_reading_counts() {
        let at = |nanoseconds: i64| Print {
            device: 1,
            inode: 1,
            size: 1,
            modified: (100, nanoseconds),
            changed: (100, nanoseconds),
        };
        let read_began = SystemTime::UNIX_EPOCH + Duration::new(100, 500_000_000);
        for (nanoseconds, changed) in [
            (600_000_000, true),
            (496_000_000, true),
            (490_000_000, true),
            (489_999_999, false),
        ] {
            assert_eq!(
                at(nanoseconds).changed_since(read_began),
                changed,
                "{nanoseconds}"
            );
        }
    }
}
