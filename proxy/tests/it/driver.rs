//! The same exchanges on every driver. Where io_uring is missing or forbidden: epoll,
//! and the log says so, or a message with the cure.

use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::harness::process::Process;
use crate::harness::world::{HOST, Site, bearer_route};
use crate::harness::{Mock, World};

fn config(world: &World, mock: &Mock, key_file: &std::path::Path) -> String {
    format!(
        "{}{}{}",
        world.base(),
        mock.upstream("mock", HOST),
        bearer_route(key_file)
    )
}

/// The same exchanges whatever drives them.
#[track_caller]
fn exchange(world: &World, command: Command, arguments: &[&str]) -> String {
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let claviger = world.start_with(&config(world, &mock, &key_file), command, arguments);
    let mut client = claviger.connect(world);
    client.get(HOST, "/echo").expect(200);
    assert_eq!(
        client.get(HOST, "/bytes/3000000").expect(200).body.len(),
        3_000_000
    );
    let body = vec![b'x'; 1_000_000];
    let head = format!(
        "POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    assert_eq!(
        client
            .call([head.as_bytes(), &body].concat())
            .expect(200)
            .json()["bytes"],
        1_000_000
    );
    assert!(
        client
            .get(HOST, "/sse?n=3&ms=1")
            .expect(200)
            .text()
            .ends_with("data: [DONE]\n\n")
    );
    let status = claviger.status();
    let driver = status["driver"]
        .as_str()
        .unwrap_or_else(|| panic!("the status line names the driver: {status}"))
        .to_owned();
    claviger.terminate().expect_code(0);
    driver
}

#[test]
fn epoll_on_request() {
    let world = World::new();
    let driver = exchange(&world, world.command(), &["--driver", "epoll"]);
    assert!(driver.contains("epoll"), "{driver}");
}

#[test]
fn io_uring_on_request() {
    let world = World::new();
    let driver = exchange(&world, world.command(), &["--driver", "io_uring"]);
    assert!(driver.contains("io_uring"), "{driver}");
}

#[test]
fn auto_falls_back_and_says_so() {
    let world = World::new();
    let mut command = world.command();
    forbid_io_uring(&mut command);
    let driver = exchange(&world, command, &["--driver", "auto"]);
    assert!(driver.contains("epoll"), "{driver}");
}

#[test]
fn busy_polling_workers_serve_and_sleep() {
    let world = World::new();
    let (key, key_file) = world.key_file("key");
    let mock = Mock::start(&world, &[HOST], &["--auth", "bearer", "--key", &key]);
    let config = config(&world, &mock, &key_file).replacen(
        "[server]\n",
        "[server]\nbusy_poll_us = 200\n",
        1,
    );
    assert!(config.contains("busy_poll_us"), "{config}");
    let claviger = world.start_with(&config, world.command(), &[]);
    let mut client = claviger.connect(&world);
    for _ in 0..100 {
        client.get(HOST, "/echo").expect(200);
    }
    let driver = claviger.status()["driver"].clone();
    assert!(
        driver.as_str().is_some_and(|name| name.contains("epoll")),
        "{driver}"
    );
    claviger.terminate().expect_code(0);
}

#[test]
fn auto_is_io_uring() {
    let world = World::new();
    let driver = exchange(&world, world.command(), &[]);
    assert!(driver.contains("io_uring"), "{driver}");
}

#[test]
fn io_uring_alone_names_the_cause_and_the_cure() {
    let site = Site::new();
    let mut command = site.world.command();
    forbid_io_uring(&mut command);
    command
        .arg("run")
        .arg("--config")
        .arg(site.claviger.config())
        .args(["--driver", "io_uring"]);
    let finished = Process::run("claviger", command);
    assert!(!finished.status.success());
    let told = finished.err_text();
    assert!(
        told.contains("io_uring") && told.contains("--driver epoll"),
        "{told}"
    );
    assert!(
        told.contains("io_uring_disabled") || told.contains("seccomp"),
        "{told}"
    );
    site.world.evidence("the refusal", finished.all());
}

/// Has the child's `io_uring_setup` fail with EPERM, as container runtimes do.
fn forbid_io_uring(command: &mut Command) {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let filter = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let program = [
        // The system call's number is the first field of `struct seccomp_data`.
        filter(LOAD_NUMBER, 0, 0, 0),
        filter(
            JUMP_IF_EQUAL,
            0,
            1,
            u32::try_from(libc::SYS_io_uring_setup).expect("a small number"),
        ),
        filter(
            RETURN,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).expect("a small number"),
        ),
        filter(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: the closure runs between fork and exec and makes two system calls,
    // which allocate nothing and take no lock; `program` is moved into it, and the
    // kernel copies it before `prctl` returns.
    unsafe {
        command.pre_exec(move || {
            let filter = libc::sock_fprog {
                len: program.len() as u16,
                filter: program.as_ptr().cast_mut(),
            };
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const filter,
                ) != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}
