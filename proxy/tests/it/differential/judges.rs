//! [`Judge`]: a parser that others wrote, and [`Seen`], what it saw.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::hyper::hyper;
use super::nginx::Nginx;
use crate::harness::World;

/// A request as somebody read it. Bytes are written as Latin-1.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The target.
    pub target: String,
    /// Header fields in their order; `None` where the parser does not tell.
    pub fields: Option<Vec<(String, String)>>,
    /// The body, without its framing.
    pub body: String,
    /// Trailer fields, likewise.
    pub trailers: Option<Vec<(String, String)>>,
}

/// What a connection's bytes are to somebody.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Reading {
    /// The requests, up to an error.
    pub requests: Vec<Seen>,
    /// Why nothing more was read.
    pub error: Option<String>,
}

impl Reading {
    /// Whether both read the same. Names are compared without their case, values without
    /// the blanks around them, in the order that they have among those of one name; what
    /// one does not tell is not compared, nor are the fields that are `unseen`.
    pub fn agrees(&self, other: &Reading, unseen: &[&str]) -> bool {
        let known = |one: &Option<Vec<(String, String)>>, other: &Option<Vec<(String, String)>>| {
            let (Some(one), Some(other)) = (one, other) else {
                return true;
            };
            comparable(one, unseen) == comparable(other, unseen)
        };
        self.error.is_none()
            && other.error.is_none()
            && self.requests.len() == other.requests.len()
            && self
                .requests
                .iter()
                .zip(&other.requests)
                .all(|(one, other)| {
                    one.method == other.method
                        && one.target == other.target
                        && one.body == other.body
                        && known(&one.fields, &other.fields)
                        && known(&one.trailers, &other.trailers)
                })
    }
}

/// Fields as they are compared: see [`Reading::agrees`].
pub fn comparable(fields: &[(String, String)], unseen: &[&str]) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = fields
        .iter()
        .map(|(name, value)| {
            let value = value.trim_matches([' ', '\t']).to_owned();
            (name.to_ascii_lowercase(), value)
        })
        .filter(|(name, _)| !unseen.contains(&&**name))
        .collect();
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields
}

/// A parser that others wrote.
pub struct Judge {
    /// What it is.
    pub name: &'static str,
    /// Fields, in lower case, that it does not pass on.
    pub unseen: &'static [&'static str],
    /// What of its errors says that it is stricter than others, and why it is right to be
    /// so: it then reads nothing, and so nothing differently.
    pub stricter: &'static [(&'static str, &'static str)],
    way: Way,
}

/// How it is asked.
enum Way {
    /// A process that is sent bytes, and answers with JSON.
    Process(Box<Talker>),
    /// A server that is called, with this test behind it.
    Nginx(Nginx),
    /// A function.
    Here(fn(&[u8]) -> Reading),
}

impl Judge {
    /// llhttp as Node runs it; h11, gunicorn and waitress from PyPI, which `scripts/test
    /// --setup` installs; nginx; hyper, whose heads httparse reads as it does Claviger's,
    /// and whose framing is its own.
    pub fn all(world: &World, python: &Path) -> Vec<Self> {
        let parsers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/differential/parsers");
        let node = Talker::start("node".into(), &[parsers.join("judge.mjs")]);
        let of_python = |name: &'static str, stricter| {
            let arguments = ["-B".into(), parsers.join("judges.py"), name.into()];
            let talker = Talker::start(python.to_owned(), &arguments);
            Self::new(name, Way::Process(Box::new(talker)), stricter)
        };
        vec![
            Self::new("llhttp", Way::Process(Box::new(node)), &[]),
            of_python("h11", &[]),
            of_python(
                "gunicorn",
                &[(
                    "InvalidHeader('CONTENT-TYPE')",
                    "it takes one Content-Type; to others the first or the last counts, which moves no boundary",
                )],
            ),
            of_python("waitress", &[]),
            Self {
                unseen: &[
                    "connection",
                    "content-length",
                    "transfer-encoding",
                    "expect",
                    "keep-alive",
                    "te",
                    "upgrade",
                ],
                ..Self::new(
                    "nginx",
                    Way::Nginx(Nginx::start(world)),
                    &[(
                        "400",
                        "it decodes paths, and refuses those that it cannot (`%zz`, `%00`, `/../..`), and `*`",
                    )],
                )
            },
            Self::new(
                "hyper",
                Way::Here(hyper),
                &[(
                    "Parse(Uri)",
                    "its targets are RFC 3986's to the letter, which many clients' are not (`<`, `>`, `` ` ``)",
                )],
            ),
        ]
    }

    fn new(name: &'static str, way: Way, stricter: &'static [(&str, &str)]) -> Self {
        Self {
            name,
            unseen: &[],
            stricter,
            way,
        }
    }

    /// How it reads the bytes of one connection.
    #[track_caller]
    pub fn read(&mut self, stream: &[u8]) -> Reading {
        match &mut self.way {
            Way::Process(talker) => talker
                .ask(stream)
                .unwrap_or_else(|err| panic!("the judge {} is lost: {err}", self.name)),
            Way::Nginx(nginx) => nginx.read(stream),
            Way::Here(read) => read(stream),
        }
    }

    /// Whether it refuses this one request, as it is known to.
    pub fn refuses(&self, reading: &Reading) -> bool {
        let error = reading.error.as_deref().unwrap_or_default();
        reading.requests.is_empty() && self.stricter.iter().any(|(part, _)| error.contains(part))
    }
}

/// A parser in a process of its own: each message is four bytes of length, then that many.
pub struct Talker {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl Talker {
    /// Starts it.
    pub fn start(program: PathBuf, arguments: &[PathBuf]) -> Self {
        let mut child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| {
                panic!(
                    "{}: {err}; `scripts/test --setup` installs it",
                    program.display()
                )
            });
        let output = child.stdout.take().expect("piped");
        Self {
            input: child.stdin.take(),
            output,
            child,
        }
    }

    /// What it makes of a message.
    pub fn ask<R: DeserializeOwned>(&mut self, stream: &[u8]) -> std::io::Result<R> {
        let input = self.input.as_mut().expect("it is open until the end");
        let length = u32::try_from(stream.len()).expect("short");
        input.write_all(&length.to_be_bytes())?;
        input.write_all(stream)?;
        input.flush()?;
        let mut length = [0; 4];
        self.output.read_exact(&mut length)?;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        self.output.read_exact(&mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
