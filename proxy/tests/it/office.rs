//! The control plane may hang: traffic that needs nothing of it goes on.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::harness::namespace::Namespace;
use crate::harness::process::{self, Held};
use crate::harness::world::{HOST, Site, bearer_route};
use crate::harness::{Mock, World, cannot_run, eventually};

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

/// A secret source that blocks: a network mount whose server has gone, played by a
/// FUSE mount that nobody serves.
#[test]
fn a_secret_source_that_blocks() {
    let fuse = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if let Err(err) = fuse {
        return cannot_run(&format!("/dev/fuse cannot be opened ({err})"));
    }
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let dead = world.subdirectory("dead");
    // A namespace has a network of its own, so Claviger alone is put into a mount
    // namespace; the shell that made it holds the mount's other end.
    let namespace = Namespace::sharing_the_network(&format!(
        "exec 9<>/dev/fuse\nmount -i -t fuse none {dead:?} -o fd=9,rootmode=40000,user_id=0,group_id=0"
    ));
    let mut command = namespace.command(process::binary("claviger"));
    command.env_clear();
    let original = format!(
        "{}{}{}",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(&key_file)
    );
    let claviger = world.start_with(&original, command, &[]);
    let blocked = format!(
        "{original}[[route]]\nname = \"blocked\"\nhost = \"blocked.example.com\"\nupstream = \"mock\"\ncredential = \"file://{}\"\ncallers = \"open\"\n",
        dead.join("key").display()
    );
    std::fs::write(claviger.config(), blocked).expect("writable");
    claviger.process().signal(libc::SIGHUP);
    eventually("the reload to hang", || {
        reload_is_under_way(claviger.pid()).then_some(())
    });
    for _ in 0..50 {
        claviger.get(&world, "/echo").expect(200);
    }
    // The office itself is not blocked: it still answers.
    assert_eq!(claviger.status()["generation"], 1);
    assert!(reload_is_under_way(claviger.pid()), "it hangs still");
    // The mount's server is given up for lost; a good file is loaded after that.
    std::fs::write(claviger.config(), original + "# again\n").expect("writable");
    let mark = claviger.log().mark();
    drop(namespace);
    claviger.process().signal(libc::SIGHUP);
    claviger.wait_reloaded(mark);
    claviger.get(&world, "/echo").expect(200);
}

fn reload_is_under_way(pid: u32) -> bool {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .expect("our own child")
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("comm")).ok())
        .any(|name| name.trim() == "reload")
}

/// A source that could block by its nature is refused before it does.
#[test]
fn a_pipe_is_no_secret_source() {
    let site = Site::new();
    let fifo = site.world.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600))
        .expect("a fresh name");
    let original = std::fs::read_to_string(site.claviger.config()).expect("readable");
    let piped = original.replace(
        &site.key_file.display().to_string(),
        &fifo.display().to_string(),
    );
    std::fs::write(site.claviger.config(), piped).expect("writable");
    let mark = site.claviger.log().mark();
    site.claviger.process().signal(libc::SIGHUP);
    let refusal = site
        .claviger
        .log()
        .wait_event(mark, "the configuration could not be loaded");
    assert!(refusal.to_string().contains("regular file"), "{refusal}");
    site.get("/echo").expect(200);
}

/// The office stands still altogether: its thread alone is stopped, by a tracer.
#[test]
fn a_control_plane_that_stands_still() {
    if !nix::unistd::Uid::effective().is_root() {
        // Claviger forbids being traced, so this takes CAP_SYS_PTRACE.
        return cannot_run("only root may hold a thread of a process that is not dumpable");
    }
    let site = Site::new();
    site.get("/echo").expect(200);
    let stopped = Held::threads(site.claviger.pid(), |name, is_first| {
        // Workers serve; the first thread waits for signals.
        !name.starts_with("worker") && !is_first
    });
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
