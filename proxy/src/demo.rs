//! `claviger demo`: the whole thing at work, on loopback, in a directory that is
//! removed at the end.
//!
//! Real parts throughout: this very binary serves, `mock-upstream` plays the
//! third-party API, `curl` plays the service, `loadgen` measures what the hop
//! costs. The key is made up for the occasion, which is why it may be shown.

use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use controlplane::pki::authority;

use crate::cli;

/// The third-party API that the demo's service calls.
const HOST: &str = "api.example.com";

/// What the service believes to be a key.
const WRONG_KEY: &str = "not-a-key-at-all";

/// How long a part may take to come up.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Runs the demo.
///
/// # Errors
/// A sentence that names the part that failed.
pub fn run(args: &cli::Demo) -> Result<ExitCode, String> {
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, std::sync::Arc::clone(&stop))
            .map_err(|error| format!("signals: {error}"))?;
    }
    let say = Voice {
        colour: io::stdout().is_terminal(),
    };
    let place = Place::new().map_err(|error| format!("a directory for the demo: {error}"))?;
    let key = made_up_key().map_err(|error| format!("random numbers: {error}"))?;

    say.step("An internal CA, limited to example.com");
    authority::init(&authority::InitOptions {
        dir: place.path("ca"),
        permit: vec!["example.com".to_owned()],
        hosts: vec![HOST.to_owned()],
        key_type: authority::KeyType::default(),
        force: false,
        passphrase: None,
        now: SystemTime::now(),
    })
    .map_err(|error| error.to_string())?;
    say.line(&format!("{}", place.path("ca").display()));

    say.step("A third-party API that accepts one key");
    let (mut mock, api) = start_api(&place, &key)?;
    say.line(&format!(
        "mock-upstream on {api}; it accepts only \"{key}\""
    ));

    say.step("Claviger, which holds that key");
    write_private(&place.path("key"), &key)?;
    let config = configuration(&place, &api);
    write_private(&place.path("claviger.toml"), &config)?;
    for line in config.lines() {
        say.line(line);
    }
    let (mut claviger, address) = start_claviger(&place)?;
    let port = address.rsplit(':').next().unwrap_or_default().to_owned();

    say.step("A service calls the API with a wrong key, as it always did");
    let url = format!("https://{HOST}:{port}/v1/models");
    say.line(&format!(
        "$ curl {url} -H 'Authorization: Bearer {WRONG_KEY}'"
    ));
    let answer = curl(&place, &port, &url)?;
    say.line(&format!("HTTP status: {}", answer.status));
    if answer.status != "200" {
        return Err(format!(
            "the call was answered {} and not 200; see {}",
            answer.status,
            place.path("claviger.log").display()
        ));
    }

    say.step("What the API received");
    let received = wait_for_line(&place.path("api.ndjson"))?;
    for field in headers(&received) {
        say.line(&field);
    }
    if !received.contains(&key) || received.contains(WRONG_KEY) {
        return Err("the API did not receive the real key in place of the wrong one".to_owned());
    }
    if answer.body.contains(&key) {
        return Err("the service saw the key".to_owned());
    }
    say.line("");
    say.line("The real key arrived; the wrong one did not. The service has seen neither.");

    say.step("What the audit trail says");
    say.line(wait_for_line(&place.path("audit.ndjson"))?.trim_end());

    say.step("What it costs");
    match measure(&place, &port, &api, &key) {
        Ok(report) => report.lines().for_each(|line| say.line(line)),
        Err(why) => say.line(&why),
    }

    if args.once {
        end(&mut claviger, &mut mock)?;
        say.step("Done");
        return Ok(ExitCode::SUCCESS);
    }
    say.step("It stays up until Ctrl-C. Try it");
    say.line(&format!(
        "curl --cacert {} --resolve {HOST}:{port}:127.0.0.1 {url}",
        place.path("ca/root.pem").display()
    ));
    say.line(&format!("tail -f {}", place.path("audit.ndjson").display()));
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        if let Some(status) = claviger.0.try_wait().map_err(|error| error.to_string())? {
            return Err(format!("claviger ended: {status}"));
        }
        // A person's Ctrl-C is all that is waited for.
        std::thread::sleep(Duration::from_millis(100));
    }
    end(&mut claviger, &mut mock)?;
    Ok(ExitCode::SUCCESS)
}

/// Ends both processes in order and insists on a clean end.
fn end(claviger: &mut Running, mock: &mut Running) -> Result<(), String> {
    for (name, child) in [("claviger", claviger), ("mock-upstream", mock)] {
        let pid = nix::unistd::Pid::from_raw(child.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let status = child.0.wait().map_err(|error| format!("{name}: {error}"))?;
        if !status.success() {
            return Err(format!("{name} ended with {status}"));
        }
    }
    Ok(())
}

/// How the demo speaks.
struct Voice {
    colour: bool,
}

impl Voice {
    fn step(&self, text: &str) {
        if self.colour {
            println!("\n\x1b[1;36m{text}\x1b[0m");
        } else {
            println!("\n{text}");
        }
    }

    fn line(&self, text: &str) {
        println!("  {text}");
    }
}

/// The demo's directory, removed when dropped.
struct Place(PathBuf);

impl Place {
    fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("claviger-demo-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A child process, killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn made_up_key() -> io::Result<String> {
    let mut bytes = [0u8; 12];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("demo-key-{hex}"))
}

fn write_private(path: &Path, text: &str) -> Result<(), String> {
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        io::Write::write_all(&mut file, text.as_bytes())
    };
    write().map_err(|error: io::Error| format!("{}: {error}", path.display()))
}

fn configuration(place: &Place, api: &str) -> String {
    format!(
        r#"[server]
workers = 1

[ca]
directory = "{ca}"

[audit]
path = "{audit}"

[[listener]]
name = "demo"
address = "127.0.0.1:0"

[upstream."{HOST}"]
addresses = ["{api}"]        # a real upstream needs none: it is looked up
ca_file = "{api_ca}"         # a real upstream needs none: the system's roots

[[route]]
name = "example"
host = "{HOST}"
credential = "file://{key}"
callers = "open"             # loopback and private addresses only
"#,
        ca = place.path("ca").display(),
        audit = place.path("audit.ndjson").display(),
        api_ca = place.path("api/ca.pem").display(),
        key = place.path("key").display(),
    )
}

/// A program that was built beside this one, or is on the PATH.
fn tool(name: &str) -> Result<PathBuf, String> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(|dir| dir.join(name)))
        .filter(|path| path.exists());
    let on_path = || {
        std::env::var_os("PATH").and_then(|path| {
            std::env::split_paths(&path)
                .map(|dir| dir.join(name))
                .find(|path| path.exists())
        })
    };
    beside.or_else(on_path).ok_or_else(|| {
        format!("`{name}` is neither beside this program nor on the PATH; build it with `cargo build --release --workspace`, or install it")
    })
}

fn start_api(place: &Place, key: &str) -> Result<(Running, String), String> {
    let mut child = Command::new(tool("mock-upstream")?)
        .args([
            "--listen",
            "127.0.0.1:0",
            "--name",
            HOST,
            "--auth",
            "bearer",
            "--reveal",
        ])
        .args(["--key", key])
        .arg("--self-signed")
        .arg(place.path("api"))
        .arg("--record")
        .arg(place.path("api.ndjson"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("mock-upstream: {error}"))?;
    let output = child.stdout.take();
    let child = Running(child);
    let mut address = None;
    for line in BufReader::new(output.ok_or("mock-upstream: no output")?).lines() {
        let line = line.map_err(|error| format!("mock-upstream: {error}"))?;
        if let Some(rest) = line.strip_prefix("listening ") {
            address = rest.split(' ').next().map(str::to_owned);
        }
        if line == "ready" {
            break;
        }
    }
    Ok((
        child,
        address.ok_or("mock-upstream did not say where it listens")?,
    ))
}

fn start_claviger(place: &Place) -> Result<(Running, String), String> {
    let log = place.path("claviger.log");
    let file = fs::File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
    let exe = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    let child = Command::new(exe)
        .arg("run")
        .arg("--config")
        .arg(place.path("claviger.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .map_err(|error| format!("claviger run: {error}"))?;
    let mut child = Running(child);
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if let Some(at) = text.find("demo=127.0.0.1:") {
            let address = text[at + 5..]
                .split(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')
                .next()
                .unwrap_or_default();
            return Ok((child, address.to_owned()));
        }
        let ended = child
            .0
            .try_wait()
            .map_err(|error| error.to_string())?
            .is_some();
        if ended || begun.elapsed() > START_LIMIT {
            return Err(format!("claviger does not serve:\n{text}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the service got.
struct Answer {
    status: String,
    body: String,
}

fn curl(place: &Place, port: &str, url: &str) -> Result<Answer, String> {
    let output = Command::new(tool("curl")?)
        .args([
            "-sS",
            "--max-time",
            "20",
            "--noproxy",
            "*",
            "-w",
            "\n%{http_code}",
            "-H",
        ])
        .arg(format!("Authorization: Bearer {WRONG_KEY}"))
        .arg("--cacert")
        .arg(place.path("ca/root.pem"))
        .arg("--resolve")
        .arg(format!("{HOST}:{port}:127.0.0.1"))
        .arg(url)
        .output()
        .map_err(|error| format!("curl: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "curl: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
    Ok(Answer {
        status: status.to_owned(),
        body: body.to_owned(),
    })
}

/// The first whole line of a file that another process writes.
fn wait_for_line(path: &Path) -> Result<String, String> {
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if let Some((line, _)) = text.split_once('\n') {
            return Ok(line.to_owned());
        }
        if begun.elapsed() > START_LIMIT {
            return Err(format!("nothing was written to {}", path.display()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `Name: value` of each header in a line of the API's record.
fn headers(record: &str) -> Vec<String> {
    let Some((_, rest)) = record.split_once("\"headers\":[[\"") else {
        return vec![record.to_owned()];
    };
    let list = rest.split("\"]]").next().unwrap_or_default();
    list.split("\"],[\"")
        .map(|pair| pair.replacen("\",\"", ": ", 1))
        .collect()
}

/// The added latency, in alternating slices through Claviger and directly.
fn measure(place: &Place, port: &str, api: &str, key: &str) -> Result<String, String> {
    let loadgen = tool("loadgen")?;
    let both = place.path("both.pem");
    let mut roots = fs::read(place.path("ca/root.pem")).map_err(|error| error.to_string())?;
    roots.extend(fs::read(place.path("api/ca.pem")).map_err(|error| error.to_string())?);
    fs::write(&both, roots).map_err(|error| error.to_string())?;
    let api_port = api.rsplit(':').next().unwrap_or_default();
    let output = Command::new(loadgen)
        .args([
            "--rps",
            "500",
            "--duration",
            "6s",
            "--warmup",
            "1s",
            "--connections",
            "4",
            "--threads",
            "1",
        ])
        .arg("--cacert")
        .arg(&both)
        .arg("-H")
        .arg(format!("Authorization: Bearer {key}"))
        .arg("--target")
        .arg(format!("claviger=https://{HOST}:{port}/ok"))
        .arg("--connect")
        .arg(format!("claviger=127.0.0.1:{port}"))
        .arg("--target")
        .arg(format!("direct=https://{HOST}:{api_port}/ok"))
        .arg("--connect")
        .arg(format!("direct=127.0.0.1:{api_port}"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("loadgen: {error}"))?;
    // A lagging generator says so in its report, which is still worth reading.
    if !output.status.success() && output.stdout.is_empty() {
        return Err(format!(
            "loadgen: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}
