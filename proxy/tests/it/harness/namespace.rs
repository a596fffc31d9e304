//! [`Namespace`]: a network and a file system view of one test's own, in which a
//! vendor's name leads to Claviger and Claviger's CA is installed, while nothing
//! changes for anyone else on the machine. Works for root and, where user
//! namespaces are allowed, for anyone.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use super::process;

/// Made of `unshare`; lives as long as the process that holds it, and that one
/// ends when its standard input closes, which even a killed test run does.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
    _open: ChildStdin,
    kinds: &'static [&'static str],
    own_user: bool,
}

impl Namespace {
    /// Makes one and runs `setup` (a shell script) in it, as its root.
    #[track_caller]
    pub fn new(setup: &str) -> Self {
        Self::make(
            &["--net", "--mount"],
            &format!("ip link set lo up\n{setup}"),
        )
    }

    /// Makes one of the file system alone: the network is everybody's.
    #[track_caller]
    pub fn sharing_the_network(setup: &str) -> Self {
        Self::make(&["--mount"], setup)
    }

    #[track_caller]
    fn make(kinds: &'static [&'static str], setup: &str) -> Self {
        let own_user = !nix::unistd::Uid::effective().is_root();
        let mut command = Command::new("/bin/sh");
        // `unshare` says on standard error why it cannot.
        command.args(["-c", "exec unshare \"$@\" 2>&1", "unshare"]);
        if own_user {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(kinds).args(["--", "/bin/sh", "-euc"]);
        command.arg(format!(
            "{setup}\necho namespace-is-ready\nexec cat >/dev/null"
        ));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut holder =
            process::spawn(command).expect("`unshare` (Debian: util-linux) can be started");
        let open = holder.stdin.take().expect("piped");
        let mut out = BufReader::new(holder.stdout.take().expect("piped"));
        let mut printed = String::new();
        loop {
            let before = printed.len();
            let read = out.read_line(&mut printed).unwrap_or(0);
            if printed[before..].trim_end() == "namespace-is-ready" {
                break;
            }
            if read == 0 {
                let _ = out.read_to_string(&mut printed);
                let status = holder.wait();
                panic!(
                    "cannot make a network namespace ({status:?}). It needs root, or user namespaces (on Ubuntu 24.04: \
                     `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`). It printed:\n{printed}"
                );
            }
        }
        Self {
            holder,
            _open: open,
            kinds,
            own_user,
        }
    }

    /// A command that will run `program` in here. `env_clear` it for a client.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        // By its full path: the command's own environment may be empty.
        let mut command = Command::new("/usr/bin/nsenter");
        command
            .args(["--target", &self.holder.id().to_string()])
            .args(self.kinds);
        if self.own_user {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.arg("--").arg(program.as_ref());
        command
    }

    /// dnsmasq in here, which knows nothing, and says on standard error when it has started.
    #[track_caller]
    pub fn dnsmasq(&self) -> Command {
        let program = ["/usr/sbin/dnsmasq", "/usr/bin/dnsmasq"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("dnsmasq is missing: run `scripts/test --setup` once");
        let mut command = self.command(program);
        command.env_clear().args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--user=",
            "--pid-file=",
            "--log-facility=-",
        ]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
