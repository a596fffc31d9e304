//! [`Acme`]: the thread that sees to it that every host has a certificate.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use instant_acme::Account;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::order::{self, Failure};
use super::{AcmePlan, Answer, http01};
use crate::pki::x509;
use crate::supervise::{Backoff, supervise};

/// After something on the way failed. Doubles with each failure that follows.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// After the authority refused. Grows fourfold: authorities count failures by the hour.
const REFUSED_PAUSE_MIN: Duration = Duration::from_secs(60);
/// The longest pause: four attempts a day.
const PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);
/// While another process of ours obtains certificates.
const LOCKED_PAUSE: Duration = Duration::from_secs(30);
/// A certificate is not renewed more often, however short it lives.
const RENEW_INTERVAL_MIN: Duration = Duration::from_secs(10);
/// For one host, everything included but the wait for a record. Past it the attempt has failed.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(900);
/// Of the problems of RFC 8555, 6.7.
const ACCOUNT_UNKNOWN: &str = ":accountDoesNotExist";
/// Before the listener for challenges is tried again.
const LISTEN_PAUSE: Duration = Duration::from_secs(5);

/// Pauses between starts after a panic.
const BACKOFF: Backoff = Backoff {
    pause_min: Duration::from_secs(5),
    pause_max: Duration::from_secs(600),
    healthy: Duration::from_secs(3600),
};

/// The thread's handle. Dropping it ends the thread at its next wait; a hook that runs is killed.
pub struct Acme {
    shared: Arc<Shared>,
}

struct Shared {
    desk: Mutex<Desk>,
    news: Notify,
    /// Called when a host has another certificate.
    renewed: Box<dyn Fn() + Send + Sync>,
}

#[derive(Default)]
struct Desk {
    plan: Option<Arc<AcmePlan>>,
    /// Grows with each plan, so that the thread sees that there is another one.
    edition: u64,
    may_begin: bool,
    started: bool,
    stop: bool,
    hosts: BTreeMap<String, HostState>,
}

/// How it stands with one host.
#[derive(Clone, Debug, Default)]
struct HostState {
    failures: u32,
    error: Option<String>,
    /// Before that nothing is tried, whatever is due.
    not_before: Option<SystemTime>,
    obtained: u64,
}

/// One host, for the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeLine {
    /// The host.
    pub host: String,
    /// Failed attempts since the last success.
    pub failures: u32,
    /// What the last one failed of.
    pub error: Option<String>,
    /// When the next one is, in seconds since 1970, if something failed.
    pub next_attempt: Option<i64>,
    /// Certificates that were obtained since the start.
    pub obtained: u64,
}

impl Acme {
    /// A handle without a thread, until there is a plan. `renewed` is told when a certificate has
    /// been put in the store.
    pub fn new(renewed: impl Fn() + Send + Sync + 'static) -> Acme {
        Acme {
            shared: Arc::new(Shared {
                desk: Mutex::default(),
                news: Notify::new(),
                renewed: Box::new(renewed),
            }),
        }
    }

    /// Works by this plan from here on; what is under way by the same plan goes on. What failed is
    /// tried at once if the plan is another one, or `retry` says so.
    pub fn set(&self, plan: Option<AcmePlan>, retry: bool) {
        let mut desk = self.shared.desk();
        let is_same = match (&plan, &desk.plan) {
            (None, None) => return,
            (Some(new), Some(old)) => new.is_same_as(old),
            _ => false,
        };
        if is_same && !(retry && desk.hosts.values().any(|host| host.failures > 0)) {
            return;
        }
        desk.edition += 1;
        let hosts: Vec<String> = plan.iter().flat_map(|plan| plan.hosts.clone()).collect();
        desk.hosts.retain(|host, _| hosts.contains(host));
        for host in hosts {
            desk.hosts.entry(host).or_default().not_before = None;
        }
        desk.plan = plan.map(Arc::new);
        drop(desk);
        self.go_on();
    }

    /// Allows the thread to begin.
    pub fn begin(&self) {
        self.shared.desk().may_begin = true;
        self.go_on();
    }

    fn go_on(&self) {
        let start = {
            let mut desk = self.shared.desk();
            let start = desk.may_begin && desk.plan.is_some() && !desk.started;
            desk.started |= start;
            start
        };
        if start {
            let shared = Arc::clone(&self.shared);
            let spawned = std::thread::Builder::new()
                .name("acme".to_owned())
                .spawn(move || live(&shared));
            if let Err(error) = spawned {
                tracing::error!("no thread for ACME could be started: {error}");
                self.shared.desk().started = false;
            }
        }
        self.shared.news.notify_one();
    }

    /// How it stands with each host.
    pub fn lines(&self) -> Vec<AcmeLine> {
        let desk = self.shared.desk();
        let line = |(host, state): (&String, &HostState)| AcmeLine {
            host: host.clone(),
            failures: state.failures,
            error: state.error.clone(),
            next_attempt: state.not_before.map(|at| {
                let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
                i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
            }),
            obtained: state.obtained,
        };
        desk.hosts.iter().map(line).collect()
    }
}

impl Drop for Acme {
    fn drop(&mut self) {
        self.shared.desk().stop = true;
        self.shared.news.notify_one();
    }
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acme(..)")
    }
}

impl Shared {
    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns when there is another plan than that of `edition`, or the end has come.
    async fn change(&self, edition: u64) {
        loop {
            {
                let desk = self.desk();
                if desk.stop || desk.edition != edition {
                    return;
                }
            }
            self.news.notified().await;
        }
    }
}

/// The thread's body.
fn live(shared: &Arc<Shared>) {
    let pause = |time| {
        std::thread::sleep(time);
        !shared.desk().stop
    };
    supervise("obtaining certificates by ACME", BACKOFF, pause, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        match runtime {
            Ok(runtime) => runtime.block_on(work(shared)),
            Err(error) => {
                tracing::error!("the runtime for ACME could not be made: {error}");
                panic!("the supervisor tries again");
            }
        }
    });
}

async fn work(shared: &Arc<Shared>) {
    loop {
        let (plan, edition) = {
            let desk = shared.desk();
            if desk.stop {
                return;
            }
            (desk.plan.clone(), desk.edition)
        };
        let change = shared.change(edition);
        match plan {
            None => change.await,
            // Another plan ends whatever is under way: what it presents is withdrawn with it, but
            // for a record in a zone, which the next attempt writes anew.
            Some(plan) => tokio::select! {
                () = change => {}
                () = by_plan(shared, &plan) => {}
            },
        }
    }
}

/// Sees to the hosts of one plan, for ever.
async fn by_plan(shared: &Arc<Shared>, plan: &Arc<AcmePlan>) {
    let _listening = listen(plan).await;
    let mut account = None;
    let mut dues: HashMap<String, SystemTime> = plan
        .hosts
        .iter()
        .map(|host| (host.clone(), due(plan, host, SystemTime::now())))
        .collect();
    loop {
        let Some((host, at)) = dues.iter().min_by_key(|(_, at)| **at) else {
            return std::future::pending().await;
        };
        let (host, at) = (host.clone(), *at);
        if let Ok(left) = at.duration_since(SystemTime::now()) {
            // Not all at once: a clock that is set forward shall be noticed.
            tokio::time::sleep(left.min(Duration::from_secs(60))).await;
            if left > Duration::ZERO && SystemTime::now() < at {
                continue;
            }
        }
        let next = attempt(shared, plan, &host, &mut account).await;
        dues.insert(host, next);
    }
}

/// The listener for HTTP-01, if the plan wants one. Ends when dropped.
async fn listen(plan: &AcmePlan) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Answer::Http(addresses) = &plan.answer else {
        return tasks;
    };
    let mut told = false;
    loop {
        match http01::listen(addresses) {
            Ok(listeners) => {
                for listener in listeners {
                    if let Ok(address) = listener.local_addr() {
                        tracing::info!(%address, "answering ACME challenges by HTTP");
                    }
                    tasks.spawn(http01::serve(listener, Arc::clone(&plan.challenges)));
                }
                return tasks;
            }
            Err((address, error)) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(
                        "no certificate is obtained: {address} cannot be listened at for ACME \
                         challenges ({error}); free it, or name another one by `http_listen` in [acme]"
                    );
                }
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
        }
    }
}

/// When the host's certificate is due: now, if there is none.
fn due(plan: &AcmePlan, host: &str, now: SystemTime) -> SystemTime {
    match plan.store.load(host) {
        Ok(Some(loaded)) if loaded.covers(host) => {
            let life = loaded.not_after.duration_since(loaded.not_before);
            loaded.not_before + life.unwrap_or_default() * 2 / 3
        }
        _ => now,
    }
}

/// Obtains one certificate, and says when to come back.
async fn attempt(
    shared: &Shared,
    plan: &AcmePlan,
    host: &str,
    account: &mut Option<Account>,
) -> SystemTime {
    let now = SystemTime::now;
    let lock = match plan.store.lock() {
        Ok(Some(lock)) => lock,
        Ok(None) => return now() + LOCKED_PAUSE,
        Err(error) => return failed(shared, plan, host, &Failure::from(error)),
    };
    // Another process may have seen to it meanwhile.
    let again = due(plan, host, now());
    if again > now() {
        (shared.renewed)();
        return again;
    }
    tracing::info!(host, "obtaining a certificate by ACME");
    let time_max = ATTEMPT_TIME_MAX
        + match &plan.answer {
            Answer::Dns { propagation, .. } => *propagation,
            _ => Duration::ZERO,
        };
    let obtained = tokio::time::timeout(time_max, async {
        let pem = match order_by(account, plan, host).await {
            // The authority has forgotten us. With another account nothing is lost.
            Err(failure) if failure.text().contains(ACCOUNT_UNKNOWN) => {
                plan.store.forget_account(&plan.directory);
                *account = None;
                order_by(account, plan, host).await?
            }
            ordered => ordered?,
        };
        plan.store.save(host, &pem)?;
        Ok(())
    })
    .await
    .unwrap_or_else(|_| {
        Err(Failure::Failed(format!(
            "nothing came of it within {time_max:?}"
        )))
    });
    drop(lock);
    match obtained {
        Ok(()) => {
            let next = due(plan, host, now()).max(now() + RENEW_INTERVAL_MIN);
            tracing::info!(
                host,
                "a certificate was obtained by ACME; the next one is due on {}",
                x509::moment(next)
            );
            if let Some(state) = shared.desk().hosts.get_mut(host) {
                let obtained = state.obtained + 1;
                *state = HostState {
                    obtained,
                    ..HostState::default()
                };
            }
            (shared.renewed)();
            next
        }
        Err(failure) => {
            // Whatever is wrong, the next attempt asks for the directory anew.
            *account = None;
            failed(shared, plan, host, &failure)
        }
    }
}

/// With the account that is known, or the one that is kept or made.
async fn order_by(
    account: &mut Option<Account>,
    plan: &AcmePlan,
    host: &str,
) -> Result<Zeroizing<String>, Failure> {
    let account = match account {
        Some(account) => account,
        None => account.insert(order::account(plan).await?),
    };
    order::obtain(account, plan, host).await
}

/// Notes a failure, and says when to try again.
fn failed(shared: &Shared, plan: &AcmePlan, host: &str, failure: &Failure) -> SystemTime {
    let now = SystemTime::now();
    let mut desk = shared.desk();
    let state = desk.hosts.entry(host.to_owned()).or_default();
    let pause = pause(failure, state.failures);
    state.failures = state.failures.saturating_add(1);
    state.error = Some(failure.text().to_owned());
    state.not_before = Some(now + pause);
    drop(desk);
    let serves = match plan.store.load(host) {
        Ok(Some(loaded)) if loaded.not_after > now => {
            format!(
                "the last one serves until {}",
                x509::moment(loaded.not_after)
            )
        }
        Ok(Some(_)) => "the last one has expired".to_owned(),
        Ok(None) => "there is none yet".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(
        host,
        retry_s = pause.as_secs(),
        "no certificate was obtained by ACME: {}; {serves}",
        failure.text()
    );
    now + pause
}

/// Doubled, or fourfold, after each failure, and up to a quarter shorter by chance: instances that
/// failed together shall not come back together.
fn pause(failure: &Failure, failures: u32) -> Duration {
    let (first, factor) = match failure {
        Failure::Failed(_) => (PAUSE_MIN, 2_u32),
        Failure::Refused(_) => (REFUSED_PAUSE_MIN, 4),
    };
    let pause = first
        .saturating_mul(factor.saturating_pow(failures.min(16)))
        .min(PAUSE_MAX);
    let mut byte = [0; 1];
    // Without chance it is only less even.
    let _ = getrandom::fill(&mut byte);
    pause - pause * u32::from(byte[0]) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let failed = Failure::Failed(String::new());
        let refused = Failure::Refused(String::new());
        for (failure, failures, longest) in [
            (&failed, 0, PAUSE_MIN),
            (&failed, 3, PAUSE_MIN * 8),
            (&failed, 30, PAUSE_MAX),
            (&refused, 0, REFUSED_PAUSE_MIN),
            (&refused, 2, REFUSED_PAUSE_MIN * 16),
            (&refused, u32::MAX, PAUSE_MAX),
        ] {
            let pause = pause(failure, failures);
            assert!(pause <= longest && pause >= longest * 3 / 4, "{pause:?}");
        }
    }
}
