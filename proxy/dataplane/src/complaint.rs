//! [`Complaint`]: a log line that is worth writing, and not a thousand times.
//!
//! What runs out is asked for again with the next connection. One line per core and
//! [`INTERVAL_MS`] says it, and how many it stands for.

use std::cell::Cell;

/// How often one complaint is logged at most, by each core.
const INTERVAL_MS: u64 = 1_000;

/// When a complaint was last logged, and how many were not since then.
#[derive(Default)]
pub struct Complaint {
    last_ms: Cell<Option<u64>>,
    unsaid: Cell<u64>,
}

impl Complaint {
    /// Whether it may be logged now, and how many were not since the last line.
    pub fn may(&self, now_ms: u64) -> Option<u64> {
        if self
            .last_ms
            .get()
            .is_some_and(|last_ms| now_ms.saturating_sub(last_ms) < INTERVAL_MS)
        {
            self.unsaid.set(self.unsaid.get() + 1);
            return None;
        }
        self.last_ms.set(Some(now_ms));
        Some(self.unsaid.take())
    }
}

/// What one core may have to complain of, again and again.
#[derive(Default)]
pub struct Complaints {
    /// Connections that could not be accepted.
    pub accepting: Complaint,
    /// Connections beyond `connections_max`.
    pub connections: Complaint,
    /// Requests beyond `exchanges_max`.
    pub exchanges: Complaint,
    /// Upstreams that could not be connected to.
    pub upstreams: Complaint,
    /// Connections that the machine had nothing left for.
    pub local: Complaint,
}

/// What an error of the machine's own means, when it says that something has run out: the
/// likely limit, and the cure. `None` is any other error.
pub fn exhausted(error: &std::io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EMFILE => Some(
            "the limit of open files of this process is reached; raise LimitNOFILE= in the unit, or `ulimit -n`",
        ),
        libc::ENFILE => {
            Some("the machine's limit of open files is reached; raise `sysctl fs.file-max`")
        }
        libc::EADDRNOTAVAIL => Some(
            "no local port is left for this upstream address; widen `sysctl net.ipv4.ip_local_port_range`, or keep more connections (idle_max of the upstream)",
        ),
        libc::ENOMEM | libc::ENOBUFS => Some(
            "the kernel has no memory for another socket; look at `sysctl net.ipv4.tcp_mem` and the memory limit of the service",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_per_interval_and_nothing_is_forgotten() {
        let complaint = Complaint::default();
        assert_eq!(complaint.may(5), Some(0));
        assert_eq!(complaint.may(6), None);
        assert_eq!(complaint.may(5 + INTERVAL_MS - 1), None);
        assert_eq!(complaint.may(5 + INTERVAL_MS), Some(2));
        assert_eq!(complaint.may(5 + 2 * INTERVAL_MS), Some(0));
    }

    #[test]
    fn only_what_has_run_out_here_is_ours() {
        for code in [
            libc::EMFILE,
            libc::ENFILE,
            libc::EADDRNOTAVAIL,
            libc::ENOMEM,
        ] {
            assert!(exhausted(&std::io::Error::from_raw_os_error(code)).is_some());
        }
        for code in [libc::ECONNREFUSED, libc::ETIMEDOUT, libc::EHOSTUNREACH] {
            assert!(exhausted(&std::io::Error::from_raw_os_error(code)).is_none());
        }
        // Not the kernel's: an upstream without addresses.
        let ours = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
        assert!(exhausted(&ours).is_none());
    }
}
