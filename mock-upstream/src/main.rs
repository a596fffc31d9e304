//! The `mock-upstream` command. See the library for what it does.

#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use mock_upstream::cli::Options;
use mock_upstream::server::{self, Running};
use signal_hook::consts::{SIGINT, SIGTERM};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mock-upstream: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal, the end of `--max-seconds`, or the death of a worker.
fn run(options: &Options) -> io::Result<()> {
    let (mut wake, waker) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGTERM, waker.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGINT, waker.try_clone()?)?;
    let limit = options
        .max_seconds
        .map(|seconds| Duration::from_secs(seconds.max(1)));
    wake.set_read_timeout(limit)?;

    let running = server::start(options, Some(waker))?;
    let lines = announcement(&running);
    // Nobody may be reading; that is no reason not to serve.
    let _ = io::stdout().write_all(lines.as_bytes());
    let _ = io::stdout().flush();
    if let Some(path) = &options.ready_file {
        write_whole(path, &lines)?;
    }

    loop {
        match wake.read(&mut [0; 1]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            _ => break,
        }
    }
    running.stop()
}

/// The lines that tell where everything is. `ready` is the last.
fn announcement(running: &Running) -> String {
    let mut lines = String::new();
    if let Some(files) = &running.files {
        if let Some(ca) = &files.ca {
            let _ = writeln!(lines, "ca {}", ca.display());
        }
        let _ = writeln!(lines, "cert {}", files.cert.display());
        let _ = writeln!(lines, "key {}", files.key.display());
    }
    let _ = writeln!(lines, "driver {}", running.driver);
    let _ = writeln!(lines, "seed {}", running.seed);
    let transport = if running.tls { "tls" } else { "plain" };
    for address in &running.listening {
        let _ = writeln!(lines, "listening {address} {transport}");
    }
    if let Some(address) = running.control {
        let _ = writeln!(lines, "control {address}");
    }
    lines.push_str("ready\n");
    lines
}

/// Writes the file in one step, so that whoever waits for it never sees half of it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}", std::process::id()));
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(|error| {
            let text = format!("--ready-file {}: {error}", path.display());
            io::Error::new(error.kind(), text)
        })
}
