//! The control plane may hang: traffic that needs nothing of it goes on.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::harness::world::{HOST, Site, bearer_route};

/// Resolvers that take questions and never answer.
#[test]
fn resolvers_that_never_answer() {
    let resolver = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = resolver.local_addr().expect("bound");
    let began = Instant::now();
    let site = Site::build(&[], |world, mock, key_file| {
        let by_name = "[[route]]\nname = \"by-name\"\nhost = \"named.example.com\"\ncredential = \"none\"\ncallers = \"open\"\n";
        format!(
            "{}[dns]\nservers = [\"{address}\"]\n{}{}{by_name}",
            world.base(),
            mock.upstream("mock", HOST),
            bearer_route(key_file)
        )
    });
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "starting does not wait for names: {:?}",
        began.elapsed()
    );
    // The question was asked, so the office is waiting for its answer.
    resolver
        .set_read_timeout(Some(crate::harness::PATIENCE))
        .expect("a timeout");
    resolver.recv_from(&mut [0; 512]).expect("a question");
    for _ in 0..20 {
        site.get("/echo").expect(200);
    }
    let unresolved = site
        .claviger
        .connect_as(&site.world, "named.example.com")
        .get("named.example.com", "/x");
    unresolved.expect_own(503, "upstream_address_unknown");
    site.get("/echo").expect(200);
}

/// A secret source that blocks: a FIFO that nobody writes to.
#[test]
fn a_secret_source_that_blocks() {
    let site = Site::new();
    let fifo = site.world.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600))
        .expect("a fresh name");
    let original = std::fs::read_to_string(site.claviger.config()).expect("readable");
    let blocked = format!(
        "{original}[[route]]\nname = \"blocked\"\nhost = \"blocked.example.com\"\nupstream = \"mock\"\ncredential = \"file://{}\"\ncallers = \"open\"\n",
        fifo.display()
    );
    std::fs::write(site.claviger.config(), blocked).expect("writable");
    let mark = site.claviger.log().mark();
    site.claviger.process().signal(libc::SIGHUP);
    // Whatever becomes of the reload, requests are served meanwhile ...
    for _ in 0..20 {
        site.get("/echo").expect(200);
    }
    // ... and a good file is loaded after it.
    std::fs::write(site.claviger.config(), original + "# again\n").expect("writable");
    site.claviger.process().signal(libc::SIGHUP);
    site.claviger.log().wait_event(mark, "configuration loaded");
    site.get("/echo").expect(200);
}

/// The office stands still altogether: its thread alone is stopped, by a tracer.
#[test]
fn a_control_plane_that_stands_still() {
    if !nix::unistd::Uid::effective().is_root() {
        // Claviger forbids being traced, so this takes CAP_SYS_PTRACE.
        println!("not run: only root may hold a thread of a process that is not dumpable");
        return;
    }
    let site = Site::new();
    site.get("/echo").expect(200);
    let stopped = Stopped::office(site.claviger.pid());
    let mut client = site.connect();
    for _ in 0..50 {
        client.get(HOST, "/echo").expect(200);
    }
    drop(stopped);
    // Once it goes on, it does its work again.
    let same = std::fs::read_to_string(site.claviger.config()).expect("readable");
    site.claviger.reload(&(same + "# again\n"));
    site.get("/echo").expect(200);
}

/// Every thread but the workers, held by `ptrace` in a thread of its own, since a
/// tracer is a thread.
struct Stopped {
    release: Option<std::sync::mpsc::Sender<()>>,
    tracer: Option<std::thread::JoinHandle<()>>,
}

impl Stopped {
    fn office(pid: u32) -> Self {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (ready, held) = std::sync::mpsc::channel();
        let tracer = std::thread::spawn(move || {
            use nix::sys::{ptrace, wait as waiting};
            let mut threads = Vec::new();
            for entry in std::fs::read_dir(format!("/proc/{pid}/task")).expect("our own child") {
                let entry = entry.expect("readable");
                let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                // Workers serve; the first thread waits for signals.
                if name.starts_with("worker")
                    || entry.file_name().to_string_lossy() == pid.to_string()
                {
                    continue;
                }
                let id = nix::unistd::Pid::from_raw(
                    entry
                        .file_name()
                        .to_string_lossy()
                        .parse()
                        .expect("a thread id"),
                );
                ptrace::seize(id, ptrace::Options::empty())
                    .expect("a tracer may hold its own child's thread");
                ptrace::interrupt(id).expect("it is held");
                waiting::waitpid(id, Some(waiting::WaitPidFlag::__WALL)).expect("it stops");
                threads.push(id);
            }
            assert!(!threads.is_empty(), "there is a control plane to stop");
            let _ = ready.send(threads.len());
            let _ = wait.recv();
            for id in threads {
                let _ = ptrace::detach(id, None);
            }
        });
        held.recv().expect("the threads are held");
        Self {
            release: Some(release),
            tracer: Some(tracer),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(tracer) = self.tracer.take() {
            let _ = tracer.join();
        }
    }
}
