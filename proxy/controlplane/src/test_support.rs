//! What the tests of several modules need.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

/// Creates `path` with mode 0600, whatever the umask is.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .expect("a directory of the test's own");
    file.write_all(bytes).expect("room on the disk");
}

/// What all threads of this process log, as text. Tests run side by side: look for
/// words that no other test uses.
pub(crate) fn log_of_all() -> String {
    String::from_utf8_lossy(&all_lines().lock().expect("no panic")).into_owned()
}

/// Begins to collect for [`log_of_all`]; from then on, for the whole process.
pub(crate) fn collect_log_of_all() {
    all_lines();
}

fn all_lines() -> &'static Arc<Mutex<Vec<u8>>> {
    static LINES: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    LINES.get_or_init(|| {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(SharedWriter(Arc::clone(&lines)))
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("the only one");
        lines
    })
}

/// What this thread logs from here on, as text.
pub(crate) struct LogCapture {
    lines: Arc<Mutex<Vec<u8>>>,
    _subscriber: tracing::subscriber::DefaultGuard,
}

impl LogCapture {
    pub(crate) fn start() -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .with_writer(SharedWriter(Arc::clone(&lines)))
            .finish();
        Self {
            lines,
            _subscriber: tracing::subscriber::set_default(subscriber),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lines.lock().expect("no panic")).into_owned()
    }
}

struct SharedWriter(Arc<Mutex<Vec<u8>>>);

/// Whoever logs a line with these words panics: a defect in whatever thread a test
/// wants one in.
pub(crate) const PANIC_WORDS: &str = "this line brings its thread down";

impl Write for &SharedWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let words = PANIC_WORDS.as_bytes();
        let marked = bytes.windows(words.len()).any(|window| window == words);
        assert!(!marked, "as the test wants it");
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for SharedWriter {
    type Writer = &'a SharedWriter;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}
