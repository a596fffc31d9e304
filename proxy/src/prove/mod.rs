//! `claviger prove`: shows that no key comes out of anything but the way to its API.
//!
//! A canary is put in the place of every secret; this very binary serves the
//! configuration as a child process, at its most talkative; every route is driven
//! through every echo, fault, refusal, rotation, panic and crash that the proof knows
//! (see [`scripts`]); and everything that came out is searched for every canary, in
//! every form (see [`search`]). Each search is shown to find what it should: canaries
//! that are planted in what was searched, keys that a route is told to pass on, and a
//! key in the core of the same process that was permitted to leave one.
//!
//! What it deliberately lacks: real keys, real upstreams, the network. What it cannot
//! show stands in [`LIMITS`], which the report ends with.

mod api;
mod caller;
mod coded;
mod drive;
mod pki;
mod process;
mod report;
mod scripts;
mod search;
mod site;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, ErrorKind};
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use self::api::{Api, Manner};
use self::caller::Caller;
use self::drive::Drive;
use self::pki::ApiCa;
use self::process::Claviger;
use self::report::{Channel, Report};
use self::search::{Canaries, forms};
use self::site::{Origin, Site};
use crate::{boot, cli, privileges};

/// How long anything may take to happen. Past it the proof fails and says what did
/// not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The configuration that is driven without one of the operator's.
const BUILT_IN: &str = include_str!("built_in.toml");

/// What the proof does not show, in the words that the report ends with.
pub const LIMITS: [&str; 6] = [
    "An API that means harm can send the key back in a form that no search knows: reversed, encrypted, a byte at a time. What is shown is that the usual forms do not pass.",
    "Archives, pictures and the like are not unpacked. A route with on_uninspected = \"mark\" passes bodies on that cannot be searched, as it was told to; it is not driven with such.",
    "Canaries have 48 bytes. A key of fewer than 16 bytes is not searched for in answers; `check` warns about it.",
    "A route with on_echo = \"report\" passes keys on, as it was told to; here it serves as a control.",
    "Root, and whoever may read this machine's memory, can read keys.",
    "It shows the cases that it drives, with this build, on this machine; it is a test and no theorem.",
];

/// Runs the proof.
///
/// # Errors
/// A sentence that says what kept it from being made.
pub fn run(args: &cli::Prove) -> Result<ExitCode, String> {
    let begun = Instant::now();
    let place = Place::new(args.keep).map_err(|error| format!("a directory: {error}"))?;
    let say = |text: &str| {
        if !args.json {
            eprintln!("{text}");
        }
    };
    let mut report = prove(args, &place.path, &say)?;
    report.took = begun.elapsed();
    if args.keep {
        report.kept = Some(place.path.clone());
    }
    if args.json {
        crate::tools::print_out(format!("{:#}\n", report.to_json()).as_bytes())?;
    } else {
        crate::tools::print_out(report.to_string().as_bytes())?;
    }
    Ok(if report.holds() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn prove(args: &cli::Prove, place: &Path, say: &dyn Fn(&str)) -> Result<Report, String> {
    let built_in = presets_too(BUILT_IN);
    let origin = match &args.config {
        Some(path) => Origin::File(path),
        None => Origin::BuiltIn(&built_in),
    };
    let mut report = Report::new(args.config.as_deref());

    // ---- What is driven -----------------------------------------------------
    say("putting canaries in the place of secrets");
    let random = |error| format!("random numbers: {error}");
    let mut canaries = Canaries::new().map_err(random)?;
    let callers_key = canaries.plant("a caller's own key").map_err(random)?;
    let callers_data = canaries.plant("a caller's data").map_err(random)?;
    let literal = canaries
        .plant("a key written into the configuration itself")
        .map_err(random)?;
    let control = canaries.plant("the control").map_err(random)?;
    let keys_from = canaries.len();
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("a port: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let mut ca = ApiCa::new(&place.join("api-ca.pem"))?;
    let site = Site::build(origin, place, address, &mut ca, &mut canaries)?;
    if site.routes.is_empty() {
        return Err("the configuration has no route: there is nothing to prove".to_owned());
    }
    let canaries = Arc::new(canaries);
    let stranger = ApiCa::new(&place.join("stranger-ca.pem"))?;
    let mut api = Api::start(
        listener,
        ca.server(ca.names())?,
        stranger.server(ca.names())?,
        Arc::clone(&canaries),
        keys_from,
        site.slots
            .iter()
            .map(|slot| (slot.versions[1], slot.versions[0]))
            .collect(),
        drive::scripts(),
    )
    .map_err(|error| format!("the APIs: {error}"))?;
    let cores = process::permit_cores();
    let mut claviger = Claviger::start(&site, place, "claviger", false)?;
    let drive = Drive {
        site: &site,
        canaries: &canaries,
        caller: Caller::new(ca.caller(&place.join("ca/root.pem"))?),
        doors: drive::doors(&site, &claviger.addresses),
        callers_key: canaries.text(callers_key),
        callers_data: canaries.text(callers_data),
        evidence: Mutex::default(),
    };

    // ---- Driving --------------------------------------------------------------
    say("calling every route: each form of the key, in each place of an answer");
    drive.echoes();
    say("exchanging keys in the middle of answers");
    drive.across(&api, || {
        for slot in &site.slots {
            slot.put(1, &canaries)?;
        }
        let mark = claviger.mark();
        claviger.signal(Signal::SIGHUP);
        claviger.wait_message(
            mark,
            "the new keys are in force",
            "a new configuration is in force",
        )
    })?;
    drive.once_each();
    drive.earlier();
    say("faulty answers, callers that go away, refusals");
    drive.faults();
    drive.refusals();
    say("what the tools print");
    let mut printed = tools(&site, place, &canaries, literal)?;
    reload_refused(&site, &mut claviger, canaries.text(literal))?;
    say("APIs with a wrong certificate, without TLS, mute, and away");
    for manner in [
        Manner::WrongCertificate,
        Manner::NoTls,
        Manner::Mute,
        Manner::Down,
    ] {
        api.behave(manner);
        drive.once_each();
    }
    let mark = claviger.mark();
    claviger.signal(Signal::SIGUSR2);
    claviger.wait_message(mark, "it tells its figures", "status ")?;
    let (mut shown, mut shown_what) = (Vec::new(), BTreeSet::new());
    for file in ["cmdline", "environ"] {
        if let Ok(bytes) = fs::read(format!("/proc/{}/{file}", claviger.pid())) {
            shown.extend(bytes);
            shown_what.insert(file);
        }
    }
    say("a panic, and a crash");
    let mark = claviger.mark();
    claviger.panic_with(canaries.text(control))?;
    claviger.wait_message(mark, "the panic is told", "a defect of Claviger")?;
    let memory = process::open_memory(claviger.pid());
    let crash = process::crash(claviger, place, &canaries)?;

    // ---- The same process, permitted to leave a core -----------------------------
    let permitted = Claviger::start(&site, place, "control", true)?;
    // What a core would show, where none can be had. It takes longer.
    let control_memory = (!cores || !process::cores_are_files())
        .then(|| process::search_memory(permitted.pid(), &canaries));
    let control_crash = process::crash(permitted, place, &canaries)?;

    // ---- Searching ----------------------------------------------------------------
    say("searching everything that came out");
    let evidence = std::mem::take(&mut *drive.evidence.lock_unpoisoned());
    report.told(&site, &canaries, &evidence, &api);
    let mut search = |name: &str, bytes: &[u8], tolerated: &[usize]| {
        let channel = searched(name, bytes, tolerated, &canaries, control);
        report.channels.push(channel);
    };
    search("answers to callers", &evidence.answers, &[callers_data]);
    for (name, file) in [
        ("the log, level trace", "claviger.log"),
        ("standard output", "claviger.out"),
        ("the control's log", "control.log"),
        ("the audit trail", "audit.ndjson"),
    ] {
        let bytes = fs::read(place.join(file)).unwrap_or_default();
        // The panic quoted the control's canary; its message must not.
        search(name, &bytes, &[]);
    }
    printed.extend(shown);
    search("check, explain, schema; /proc", &printed, &[]);
    search(
        "files in the state directory",
        &tree(&place.join("state")),
        &[],
    );

    report.judge_arrival(&site, &canaries, &api, callers_data);
    report.judge_controls(&evidence);
    report.judge_log(place)?;
    report.judge_crash(&crash, &control_crash, control_memory);
    report.judge_memory(
        memory.map(drop).map_err(|error| error.kind()),
        privileges::is_root(),
    );
    report.note_proc(&shown_what);
    Ok(report)
}

/// Every preset, as routes of its own.
fn presets_too(text: &str) -> String {
    let mut text = text.to_owned();
    for name in controlplane::config::preset_names() {
        text.push_str(&format!(
            "\n[[route]]\npreset = \"{name}\"\ncredential = \"file:///preset-{name}\"\n"
        ));
    }
    text
}

/// One channel, searched, and searched again with each form planted in it.
fn searched(
    name: &str,
    bytes: &[u8],
    tolerated: &[usize],
    canaries: &Canaries,
    control: usize,
) -> Channel {
    /// Bytes on both sides of what is planted.
    const AROUND: usize = 4096;
    let mut channel = Channel {
        name: name.to_owned(),
        bytes: bytes.len() as u64,
        ..Channel::default()
    };
    for (id, sighting) in canaries.search(bytes) {
        if !tolerated.contains(&id) {
            channel.hits.push(format!(
                "{}: {}, at byte {} ({} pieces)",
                canaries.slot(id),
                sighting.form,
                sighting.at,
                sighting.pieces
            ));
        }
    }
    let (before, after) = bytes.split_at(bytes.len() / 2);
    let before = &before[before.len().saturating_sub(AROUND)..];
    let after = &after[..after.len().min(AROUND)];
    for (_, form) in forms(canaries.text(control)) {
        channel.planted += 1;
        // A neighbour that happens to be a digit is a neighbour that may be there.
        let hay = [before, form.as_bytes(), after].concat();
        channel.found += u64::from(canaries.search(&hay).contains_key(&control));
    }
    channel
}

/// What `check`, `explain` and `schema` print, of the configuration and of such in
/// which a key stands where its reference belongs.
fn tools(
    site: &Site,
    place: &Path,
    canaries: &Canaries,
    literal: usize,
) -> Result<Vec<u8>, String> {
    let mut printed = Vec::new();
    let exe = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    let mut run = |arguments: &[&str]| {
        let output = Command::new(&exe)
            .args(arguments)
            .env_clear()
            .envs(site.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("claviger {}: {error}", arguments[0]))?;
        printed.extend(output.stdout);
        printed.extend(output.stderr);
        Ok::<(), String>(())
    };
    let config = site.config.display().to_string();
    run(&["schema"])?;
    run(&["check", "--config", &config])?;
    for driven in &site.routes {
        let url = format!("https://{}{}?k=1", driven.host, driven.path);
        let question = ["explain", &driven.method, &url, "--config", &config];
        run(&question)?;
        if driven.thorough {
            run(&[&question[..], &["--json"]].concat())?;
        }
    }
    for (number, text) in spoiled(site, canaries.text(literal)).iter().enumerate() {
        let path = place.join(format!("spoiled-{number}.toml"));
        site::write_private(&path, text.as_bytes())?;
        let config = path.display().to_string();
        run(&["check", "--config", &config])?;
        run(&[
            "explain",
            "GET",
            "https://example.com/",
            "--config",
            &config,
        ])?;
    }
    Ok(printed)
}

/// The configuration with a key where its reference belongs: in each place, in one
/// place whose text does not end, and as a name.
fn spoiled(site: &Site, key: &str) -> Vec<String> {
    let references: Vec<&str> = site
        .text
        .split('"')
        .filter(|text| text.starts_with("file://") && text.contains("/keys/secret-"))
        .collect();
    let all = references
        .iter()
        .fold(site.text.clone(), |text, reference| {
            text.replace(&format!("\"{reference}\""), &format!("\"{key}\""))
        });
    let mut spoiled = vec![all];
    if let Some(first) = references.first() {
        let written = format!("\"{first}\"");
        for instead in [
            format!("\"{key}"),
            key.to_owned(),
            format!("[\"{key}\"]"),
            format!("{{ key = \"{key}\" }}"),
            format!("\"file://{key}\""),
            format!("\"env://{key}\""),
            format!("\"https://{key}@example.com\""),
        ] {
            spoiled.push(site.text.replacen(&written, &instead, 1));
        }
    }
    spoiled
}

/// Has a configuration with a key in it refused by the serving process, and the good
/// one taken up again.
fn reload_refused(site: &Site, claviger: &mut Claviger, key: &str) -> Result<(), String> {
    let write = |text: &str| {
        fs::write(&site.config, text).map_err(|error| format!("{}: {error}", site.config.display()))
    };
    for text in spoiled(site, key).iter().take(2) {
        let mark = claviger.mark();
        write(text)?;
        claviger.signal(Signal::SIGHUP);
        claviger.wait_message(
            mark,
            "the spoiled configuration is refused",
            "the configuration could not be loaded",
        )?;
    }
    write(&site.text)
}

/// Every file below a directory, one after the other.
fn tree(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            bytes.extend(tree(&path));
        } else {
            bytes.extend(fs::read(&path).unwrap_or_default());
        }
    }
    bytes
}

/// `claviger prove-serve`: `claviger run`, as the proof needs it. A line `panic TEXT`
/// on standard input makes a thread panic with that text.
///
/// # Errors
/// As [`boot::run`].
pub fn serve(args: &cli::ProveServe) -> Result<ExitCode, boot::BootError> {
    std::thread::spawn(|| {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if let Some(text) = line.strip_prefix("panic ") {
                let text = text.to_owned();
                let thread = std::thread::Builder::new().name("prove".to_owned());
                let _ = thread.spawn(move || std::panic::panic_any(text));
            }
        }
        // Nobody is left who could want anything.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), Signal::SIGTERM);
    });
    boot::run(
        &args.run,
        if args.permit_dumps {
            boot::Dumps::Permit
        } else {
            boot::Dumps::Forbid
        },
    )
}

/// The proof's directory, removed when dropped or interrupted unless it is to be kept.
struct Place {
    path: PathBuf,
    keep: bool,
}

impl Place {
    fn new(keep: bool) -> std::io::Result<Self> {
        /// Directories of one process id that may be there already, left by proofs that
        /// were killed. One more, and the proof is not made.
        const LEFT_MAX: u32 = 100;
        let mut number = 0;
        let path = loop {
            let name = format!("claviger-prove-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists && number < LEFT_MAX => {
                    number += 1;
                }
                made => break made.map(|()| path)?,
            }
        };
        let place = Self { path, keep };
        if !keep {
            place.remove_when_interrupted()?;
        }
        Ok(place)
    }

    /// On SIGINT and SIGTERM, ends the process, and its directory with it. What it
    /// started ends too, since nobody is left to give it orders (see [`serve`]).
    fn remove_when_interrupted(&self) -> std::io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let path = self.path.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    remove(&path);
                    // Not `exit`, which takes down what other threads still use.
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
            })?;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.path);
        }
    }
}

/// Removes a directory that others may still write into.
fn remove(path: &Path) {
    /// Attempts. A file that was made while its directory was being emptied makes one fail.
    const ATTEMPTS_MAX: usize = 10;
    for _ in 0..ATTEMPTS_MAX {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {}
            _ => return,
        }
    }
}

/// A lock that a thread which panicked does not keep from anybody: what it guards is
/// evidence, whole or not.
trait LockExt<T> {
    /// Takes the lock.
    fn lock_unpoisoned(&self) -> MutexGuard<'_, T>;
}

impl<T> LockExt<T> for Mutex<T> {
    fn lock_unpoisoned(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_with_a_key_in_it_is_told_and_what_is_tolerated_is_not() {
        let mut canaries = Canaries::new().expect("random numbers");
        let mut plant = |slot| canaries.plant(slot).expect("random numbers");
        let (tolerated, key, control) = (plant("data"), plant("a key"), plant("the control"));
        let told = |id: usize| {
            let mut channels = Vec::new();
            for (name, form) in forms(canaries.text(id)) {
                let text = format!("{{\"message\":\"{form}\"}}\n");
                let channel = searched(name, text.as_bytes(), &[tolerated], &canaries, control);
                assert_eq!(channel.found, channel.planted, "{name}");
                channels.push(channel);
            }
            channels
        };
        for channel in told(key) {
            assert_eq!(channel.hits.len(), 1, "{}", channel.name);
            assert!(channel.hits[0].starts_with("a key: "), "{:?}", channel.hits);
            assert!(!channel.hits[0].contains(canaries.text(key)));
        }
        for channel in told(tolerated) {
            assert_eq!(channel.hits, [] as [String; 0], "{}", channel.name);
        }
    }

    #[test]
    fn the_built_in_configuration_has_every_preset_and_every_injection() {
        let text = presets_too(BUILT_IN);
        for name in controlplane::config::preset_names() {
            assert!(text.contains(&format!("preset = \"{name}\"")));
        }
        for inject in ["bearer", "basic", "header", "query"] {
            assert!(text.contains(&format!("inject = \"{inject}\"")));
        }
        for source in ["file://", "env://", "credential://"] {
            assert!(text.contains(&format!("source = \"{source}")));
        }
    }
}
