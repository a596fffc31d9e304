//! nginx, as a proxy in front of this test: what it passes on is what it read.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use super::judges::{Reading, Seen};
use super::{latin, read};
use crate::harness::process::Process;
use crate::harness::{PATIENCE, World, eventually};

/// What follows the bytes of a connection: whoever finds their end elsewhere does not see
/// it, or not as it is.
const LAST: &str = "GET /the-last-one HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n";

/// The running nginx.
pub struct Nginx {
    socket: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
    _process: Process,
}

impl Nginx {
    /// Starts it, with its sockets and files in the world.
    pub fn start(world: &World) -> Self {
        let directory = world.subdirectory("nginx");
        let at = |name: &str| directory.join(name).display().to_string();
        let listener = UnixListener::bind(at("up")).expect("a short path");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        thread::spawn({
            let seen = Arc::clone(&seen);
            // Ends with the test's process; one connection is one request.
            move || {
                for socket in listener.incoming() {
                    let _ = socket.map(|socket| note(socket, &seen));
                }
            }
        });
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("    {kind}_temp_path {};\n", at(kind)))
            .collect();
        let config = format!(
            "daemon off;
master_process off;
pid {pid};
error_log {errors} crit;
events {{ worker_connections 64; }}
http {{
    access_log off;
{temporary}    server {{
        listen unix:{socket};
        client_max_body_size 0;
        client_header_buffer_size 64k;
        large_client_header_buffers 8 64k;
        keepalive_requests 1000000;
        ignore_invalid_headers off;
        underscores_in_headers on;
        location / {{
            proxy_pass http://unix:{up};
            proxy_http_version 1.1;
            proxy_next_upstream off;
            proxy_set_header Host $http_host;
        }}
    }}
}}
",
            pid = at("pid"),
            errors = at("errors"),
            socket = at("down"),
            up = at("up"),
        );
        let file = directory.join("nginx.conf");
        std::fs::write(&file, config).expect("written");
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&file).arg("-e").arg(at("errors"));
        let process = Process::start("nginx", command);
        let socket = directory.join("down");
        eventually("nginx listens", || UnixStream::connect(&socket).ok());
        Self {
            socket,
            seen,
            _process: process,
        }
    }

    /// How it reads the bytes of one connection.
    pub fn read(&mut self, stream: &[u8]) -> Reading {
        let mut socket = UnixStream::connect(&self.socket).expect("it listens");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket that is there");
        // It may refuse, and close, before it has all been sent.
        let _ = socket.write_all(&[stream, LAST.as_bytes()].concat());
        let mut answers = Vec::new();
        let ended = socket.read_to_end(&mut answers);
        let mut requests = std::mem::take(&mut *self.seen.lock().expect("no panic while held"));
        let answers = latin(&answers);
        let refused = answers
            .split("HTTP/1.1 ")
            .find(|answer| !answer.is_empty() && !answer.starts_with(['1', '2']));
        let error = match (ended, refused, requests.pop()) {
            (Err(error), _, _) => Some(error.to_string()),
            (_, Some(refused), last) => {
                requests.extend(last);
                Some(refused.chars().take(30).collect())
            }
            (_, None, Some(last)) if last.target == "/the-last-one" && last.body.is_empty() => None,
            (_, None, last) => {
                requests.extend(last);
                Some("the bytes do not end where they end".to_owned())
            }
        };
        Reading { requests, error }
    }
}

/// Reads what nginx passes on, notes it, and then answers it.
fn note(mut socket: UnixStream, all: &Mutex<Vec<Seen>>) -> Option<()> {
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    let seen = loop {
        if let Some((seen, Some(_))) = read(&bytes) {
            break seen;
        }
        match socket.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
        }
    };
    // Trailers are not told: nginx's side of them ends here.
    all.lock().expect("no panic while held").push(Seen {
        trailers: None,
        ..seen
    });
    // Without a body, whatever the method.
    let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
    socket.write_all(answer).ok()
}
