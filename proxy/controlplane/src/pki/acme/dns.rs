//! [`Hook`]: a program of the operator's that writes records into a zone, and the wait until those
//! who will be asked know them.
//!
//! It is called as `PROGRAM ARGUMENTS... present NAME VALUE` and, after the validation, with
//! `cleanup` in place of `present`. NAME is `_acme-challenge.example.com`, VALUE the text of a TXT
//! record. It starts with an empty environment but for `PATH`, with no standard input, in a process
//! group of its own, which is killed when its time is over. Nothing of ours is secret to it: both
//! words become public.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::Instant;

use crate::names::{DnsClient, DnsSettings, Server};

/// The program, and how long one call of it may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Program and first arguments; never empty. The program is an absolute path.
    pub command: Vec<String>,
    /// Past it, it and what it started are killed, and the attempt has failed.
    pub time_max: Duration,
}

/// What a hook is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Present,
    Cleanup,
}

impl Hook {
    /// Calls it.
    ///
    /// # Errors
    /// A sentence: it could not be started, took too long, or did not end with 0; then with the
    /// end of what it said on standard error.
    pub(super) async fn call(&self, verb: Verb, name: &str, value: &str) -> Result<(), String> {
        let (program, arguments) = self.command.split_first().ok_or("the hook has no name")?;
        let verb = match verb {
            Verb::Present => "present",
            Verb::Cleanup => "cleanup",
        };
        let mut child = Command::new(program)
            .args(arguments)
            .args([verb, name, value])
            .env_clear()
            .env("PATH", HOOK_PATH)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("the hook {program} cannot be started: {error}"))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        let stderr = child.stderr.take();
        let ended = tokio::time::timeout(self.time_max, async {
            let said = match stderr {
                Some(stderr) => end_of(stderr).await,
                None => String::new(),
            };
            (child.wait().await, said)
        })
        .await;
        match ended {
            Ok((Ok(status), _)) if status.success() => Ok(()),
            Ok((Ok(status), said)) => Err(format!(
                "the hook {program} {verb} ended with {status}: {said}"
            )),
            Ok((Err(error), _)) => Err(format!("the hook {program} {verb}: {error}")),
            Err(_) => {
                if let Some(group) = group {
                    let group = nix::unistd::Pid::from_raw(group);
                    let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                }
                Err(format!(
                    "the hook {program} {verb} took longer than {:?} and was killed",
                    self.time_max
                ))
            }
        }
    }
}

/// Waits until every one of `resolvers` knows the TXT record.
///
/// # Errors
/// A sentence that says who does not.
pub(super) async fn wait_for_record(
    resolvers: &[Server],
    dns: &DnsSettings,
    name: &str,
    value: &str,
    time_max: Duration,
) -> Result<(), String> {
    let deadline = Instant::now() + time_max;
    let mut pause = PAUSE_MIN;
    let mut waiting: Vec<&Server> = resolvers.iter().collect();
    loop {
        let mut still = Vec::new();
        let mut why = String::new();
        for server in waiting {
            let one = DnsSettings {
                servers: vec![server.clone()],
                ..dns.clone()
            };
            let known = match DnsClient::new(&one) {
                Ok(client) => client.texts(name).await.map_err(|error| error.to_string()),
                Err(error) => Err(error),
            };
            match known {
                Ok(texts) if texts.iter().any(|text| text == value) => continue,
                Ok(texts) => why = format!("{server} knows {} others", texts.len()),
                Err(error) => why = format!("{server}: {error}"),
            }
            still.push(server);
        }
        if still.is_empty() {
            return Ok(());
        }
        waiting = still;
        if Instant::now() + pause > deadline {
            return Err(format!(
                "the record {name} is not known everywhere after {time_max:?} ({why}); does the \
                 hook write it into the zone that is asked?"
            ));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The last bytes of a stream, in one line.
async fn end_of(mut stream: impl AsyncRead + Unpin) -> String {
    let mut last = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
        last.extend_from_slice(&bytes[..read]);
        let surplus = last.len().saturating_sub(HOOK_SAID_BYTES_MAX);
        last.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&last);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Where the hook's own programs are found.
const HOOK_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What is shown of a hook's standard error. The rest is dropped from its front.
const HOOK_SAID_BYTES_MAX: usize = 512;
/// Between the first two questions for a record; doubles.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Between two later questions.
const PAUSE_MAX: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    fn call(script: &str, time_max: Duration) -> Result<(), String> {
        let hook = Hook {
            command: ["/bin/sh", "-c", script, "hook"]
                .map(str::to_owned)
                .to_vec(),
            time_max,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(hook.call(Verb::Present, "_acme-challenge.a.example", "value"))
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_hook_is_called_in_a_clean_room() {
        call(
            "test \"$*\" = 'present _acme-challenge.a.example value'",
            LONG,
        )
        .expect("its words");
        // What a shell adds by itself.
        call(
            "test -z \"$(env | grep -v -e ^PATH= -e ^PWD= -e ^_= -e ^SHLVL=)\"",
            LONG,
        )
        .expect("nothing else in its environment");
        call("! read line", LONG).expect("no input");
        let said = call("echo no such  zone >&2; exit 3", LONG).unwrap_err();
        assert!(
            said.contains("exit status: 3") && said.ends_with("no such zone"),
            "{said}"
        );
        let said = call("yes >&2 | head -c 100000 >&2; exit 1", LONG).unwrap_err();
        assert!(said.len() < 700, "{said}");
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_all_that_it_started() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pid").display().to_string();
        let script = format!("sleep 1000 & echo $! >{path}; wait");
        let said = call(&script, Duration::from_millis(500)).unwrap_err();
        assert!(said.contains("took longer than 500ms"), "{said}");
        let pid = std::fs::read_to_string(&path).expect("it came so far");
        let stat = format!("/proc/{}/stat", pid.trim());
        let deadline = std::time::Instant::now() + LONG;
        // Killed, though perhaps not yet waited for by its new parent.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(std::time::Instant::now() < deadline, "it lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
