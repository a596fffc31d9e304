//! Every shape is found wherever people put keys, and nothing is that only resembles one.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use policy::{Fingerprint, Injection, Secret};

use super::search::KnownBy;
use super::*;
use crate::config::{Alphabet, Shape, shapes_by_provider, variables_by_provider};

/// Numbers that look random and are the same each time.
struct Draws(u64);

impl Draws {
    fn text(&mut self, alphabet: &[u8], length: usize) -> String {
        (0..length)
            .map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                char::from(alphabet[(self.0 >> 33) as usize % alphabet.len()])
            })
            .collect()
    }

    /// A key of this shape, as its provider would make it.
    fn key(&mut self, shape: &Shape) -> String {
        const BASE62: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        if shape.checksum.is_some() {
            return checksum::tests::checked(&shape.prefix, &self.text(BASE62, 30));
        }
        let alphabet = match shape.alphabet {
            Alphabet::Hex => &b"0123456789abcdef"[..],
            Alphabet::Upper => &BASE62[..36],
            _ => BASE62,
        };
        let length = shape
            .bytes_max
            .unwrap_or(shape.bytes_min.max(shape.prefix.len() + 16));
        format!(
            "{}{}",
            shape.prefix,
            self.text(alphabet, length - shape.prefix.len())
        )
    }
}

fn fingerprint(key: &str) -> Option<Fingerprint> {
    Fingerprint::of(key.as_bytes())
}

fn found_in(text: &str) -> Vec<search::Hit> {
    Searcher::new(&[]).search(text.as_bytes())
}

#[test]
fn every_shape_is_found_wherever_people_put_keys() {
    let mut draws = Draws(0x1234_5678_9abc_def1);
    for (title, preset, shape) in shapes_by_provider().filter(|(.., shape)| shape.hunted) {
        for _ in 0..20 {
            let key = draws.key(shape);
            let encoded = STANDARD.encode(&key);
            for (text, place, known_by) in [
                (key.clone(), &key, None),
                (format!("KEY={key}\n"), &key, None),
                (format!("export KEY='{key}' # ours\r\n"), &key, None),
                (format!("{{\"key\": \"{key}\"}}"), &key, None),
                (format!("\"text\\n{key}\\n\""), &key, None),
                (format!("https://x.example/?key%3D{key}&b=1"), &key, None),
                (format!("https://{key}:x@git.example.com/a.git"), &key, None),
                (format!("It is {key}."), &key, None),
                (format!("\u{fffd}{key}\u{fffd}"), &key, None),
                (
                    format!("  key: {encoded}\n"),
                    &encoded,
                    Some(KnownBy::Base64),
                ),
                (
                    format!(
                        "Authorization: Basic {}",
                        STANDARD.encode(format!("{key}:"))
                    ),
                    &STANDARD
                        .encode(format!("{key}:"))
                        .trim_end_matches('=')
                        .to_owned(),
                    Some(KnownBy::Base64),
                ),
            ] {
                let hits = found_in(&text);
                let [hit] = hits.as_slice() else {
                    panic!("{title}: {} hits in {text}: {hits:?}", hits.len());
                };
                assert_eq!(hit.fingerprint, fingerprint(&key), "{title}: {text}");
                assert!(
                    hit.owners.iter().any(|owner| owner.title == title),
                    "{title}: {hit:?}"
                );
                let named = hit
                    .owners
                    .iter()
                    .filter_map(|owner| owner.preset)
                    .map(|preset| preset.name);
                assert_eq!(
                    named
                        .into_iter()
                        .any(|name| Some(name) == preset.map(|preset| preset.name)),
                    preset.is_some()
                );
                let shown = &text[hit.range.clone()];
                assert_eq!(shown, place.trim_end_matches('='), "{title}: {text}");
                let otherwise = match shape.checksum {
                    Some(_) => KnownBy::Checksum,
                    None => KnownBy::Shape,
                };
                assert_eq!(hit.known_by, known_by.unwrap_or(otherwise), "{text}");
            }
        }
    }
}

#[test]
fn every_preset_is_hunted_for() {
    for name in crate::config::preset_names() {
        let is_of = |preset: Option<&'static crate::config::Preset>| {
            preset.is_some_and(|preset| preset.name == name)
        };
        assert!(
            variables_by_provider().any(|(_, preset, _)| is_of(preset)),
            "{name} has no variable"
        );
    }
}

#[test]
fn the_value_of_every_variable_is_found() {
    let mut draws = Draws(0xfeed_0000_0001);
    for (title, _, name) in variables_by_provider() {
        let key = draws.text(b"0123456789abcdef", 32);
        for text in [
            format!("{name}={key}\n"),
            format!("export {name}=\"{key}\"\n"),
            format!("MY_{name}: '{key}'\n"),
            format!("ENV {name} {key}\n"),
            format!("  \"{name}\": \"{key}\",\n"),
            format!("setenv(\"{name}\", \"{key}\")"),
            format!("os.environ[\"{name}\"] = \"{key}\""),
            format!("- name: {name}\n  value: {key}\n"),
            format!("{{ \"name\": \"{name}\",\n  \"value\": \"{key}\" }}"),
            format!("<key>{name}</key><string>{key}</string>"),
        ] {
            let hits = found_in(&text);
            let [hit] = hits.as_slice() else {
                panic!("{} hits in {text}: {hits:?}", hits.len());
            };
            assert_eq!(&text[hit.range.clone()], key, "{text}");
            assert_eq!(hit.known_by, KnownBy::Variable);
            assert!(
                hit.owners.iter().any(|owner| owner.title == title),
                "{text}"
            );
        }
        for text in [
            format!("{name}=\n{key}\n"),
            format!("{name}=${{{key}}}\n"),
            format!("{name}_ID={key}\n"),
            format!("X{name}X={key}\n"),
            format!("{name}: ${{{{ secrets.{name} }}}}\n  ref: {key}\n"),
            format!("{name}=file:///run/secrets/{key}\n"),
            format!("{name}=/run/secrets/{key}\n"),
            format!("{name} = os.environ[\"{name}\"]\n"),
            format!("{name}=your-{key}\n"),
            format!("{name}=changeme\n"),
            format!("{name}=xxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n"),
            format!("{name}=vault_read_the_secret(x)\n"),
        ] {
            let hits = found_in(&text);
            assert!(hits.is_empty(), "{text}: {hits:?}");
        }
    }
}

#[test]
fn what_only_resembles_a_key_is_none() {
    let mut draws = Draws(0xabcd_ef01_2345);
    let mut base62 = |length| {
        draws.text(
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
            length,
        )
    };
    let texts = [
        // UUIDs, hashes, lock files.
        "id = \"123e4567-e89b-42d3-a456-426614174000\"".to_owned(),
        "checksum = \"e0b3f8d5c2a1947f6d8e0b3f8d5c2a1947f6d8e0b3f8d5c2a1947f6d8e0b3f8d\"".to_owned(),
        "\"integrity\": \"sha512-9UZCFRHQdNrfTpGg8+1INIg93B6zE0aXMVFkw1WFwvO4SlZywU6aLg5Of0Ap/PgcbSw4LNxvMWXMeugwMCX0AA==\"".to_owned(),
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0Yq3mJ1X2b8e1m0Yq3mJ1X2b8e1m0Yq3mJ1X2b8e1m me@host".to_owned(),
        "commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904".to_owned(),
        // What documentation has in the place of keys.
        "sk_live_xxxxxxxxxxxxxxxxxxxxxxxx".to_owned(),
        "sk_test_your_secret_key_goes_here".to_owned(),
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE".to_owned(),
        "OPENAI_API_KEY=sk-1234567890abcdef1234567890abcdef".to_owned(),
        "export GITHUB_TOKEN=ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx".to_owned(),
        "SENDGRID_API_KEY=SG.xxxxxxxx.yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy".to_owned(),
        "xoxb-your-token-here-please-insert".to_owned(),
        "AIzaSyXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX".to_owned(),
        ["sk_test_", "4eC39HqLyjWDarjtT1zdp7dc"].concat(),
        // Names that begin as keys do.
        "sk-service-account-for-tests-2".to_owned(),
        ".sk-fading-circle-container-12 { }".to_owned(),
        "task-runner-configuration-0000001".to_owned(),
        "re_match_the_first_of_several_things".to_owned(),
        "key-management-service-endpoint-2024".to_owned(),
        "pypi-publish-to-the-index-with-a-trusted-publisher-and-no-token-1".to_owned(),
        // A token of GitHub's checks itself: this one does not.
        format!("ghp_{}", base62(36)),
        // In the middle of a word.
        format!("x{}", ["sk_live_", &base62(24)].concat()),
        format!("cache_re_{}", base62(30)),
        // Too short, too long.
        format!("sk_live_{}", base62(8)),
        format!("AKIA{}", base62(40).to_uppercase()),
        // A session.
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U".to_owned(),
    ];
    for text in texts {
        let hits = found_in(&text);
        assert!(hits.is_empty(), "{text}: {hits:?}");
    }
}

fn credential(injection: Injection, secret: &str) -> Arc<Credential> {
    let secret = Secret::new(secret.as_bytes().to_vec());
    Arc::new(Credential::new("vendor", "1", injection, &secret).expect("a key"))
}

#[test]
fn a_managed_key_is_found_whatever_it_looks_like() {
    let key = "correct horse battery/staple+1";
    let managed = [credential(Injection::Bearer, key)];
    let searcher = Searcher::new(&managed);
    for text in [
        format!("password = {key}"),
        format!(
            "url = https://x.example/?k={}",
            "correct%20horse%20battery%2Fstaple%2B1"
        ),
        format!("data: {}", STANDARD.encode(key)),
    ] {
        let hits = searcher.search(text.as_bytes());
        assert_eq!(hits.len(), 1, "{text}");
        assert_eq!(hits[0].managed.as_deref(), Some("vendor"));
        assert_eq!(hits[0].fingerprint, fingerprint(key));
        assert!(
            found_in(&text).is_empty(),
            "only the configuration knows it: {text}"
        );
    }
    assert!(
        searcher
            .search(b"correct horse battery/staple+2")
            .is_empty()
    );
    // Of a pair, the secret is what is looked for; its place says whose it is, too.
    let token = Draws(77).text(b"0123456789abcdef", 32);
    let managed = [credential(
        Injection::Basic { username: None },
        &format!("AC1:{token}"),
    )];
    let text = format!("TWILIO_AUTH_TOKEN={token}");
    let hits = Searcher::new(&managed).search(text.as_bytes());
    assert_eq!(hits.len(), 1, "{hits:?}");
    assert_eq!(hits[0].fingerprint, fingerprint(&token));
}

/// A tree with a key in each of its files that can be read, and the result of a hunt in it.
struct Ground {
    directory: tempfile::TempDir,
    key: String,
}

impl Ground {
    fn new() -> Self {
        let shape = shapes_by_provider()
            .find(|(.., shape)| shape.prefix == "sk_live_")
            .expect("Stripe's")
            .2;
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            key: Draws(4242).key(shape),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, bytes).expect("a file");
    }

    /// `name:line:column` of each finding, and `name: reason` of what was passed over.
    fn hunt(&self, change: impl FnOnce(&mut Options)) -> (Vec<String>, Vec<String>) {
        let mut options = Options {
            paths: vec![self.path().to_owned()],
            ..Options::default()
        };
        change(&mut options);
        let result = hunt(&options).expect("it can look");
        let (text, json) = (result.render(), result.to_json().to_string());
        for said in [&text, &json] {
            assert!(!said.contains(&self.key), "{said}");
            assert!(!said.contains(&self.key[8..]), "{said}");
        }
        let root = format!("{}/", self.path().display());
        let strip = |text: String| text.replace(&root, "");
        (
            result
                .findings
                .iter()
                .map(|finding| strip(finding.place.show()))
                .collect(),
            result
                .passed
                .iter()
                .map(|passed| strip(format!("{}: {}", passed.place, passed.reason)))
                .collect(),
        )
    }
}

#[test]
fn files_are_read_as_they_come() {
    let ground = Ground::new();
    let key = &ground.key;
    ground.write(".env", format!("A=1\nKEY={key}\n"));
    ground.write(
        "a/latin1.txt",
        [b"caf\xe9 ", key.as_bytes(), b"\xff\n"].concat(),
    );
    let mut wide = vec![0xff, 0xfe];
    wide.extend(
        format!("\r\nKEY={key}\r\n")
            .encode_utf16()
            .flat_map(u16::to_le_bytes),
    );
    ground.write("a/windows.ini", wide);
    ground.write("a/program", [&b"\x7fELF\0"[..], key.as_bytes()].concat());
    ground.write("empty", "");
    ground.write(".git/HEAD", "ref: refs/heads/main\n");
    ground.write(".git/refs/x", "");
    ground.write(
        ".git/config",
        format!("[remote \"o\"]\n\turl = https://{key}@x.example/a\n"),
    );
    ground.write(".git/objects/ab/cdef", key);
    ground.write("objects/kept", key);
    std::os::unix::fs::symlink(ground.path().join(".env"), ground.path().join("link"))
        .expect("a link");
    std::os::unix::fs::symlink(ground.path(), ground.path().join("a/round")).expect("a link");
    nix::unistd::mkfifo(&ground.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU)
        .expect("a pipe");
    // With a hole: no disk is filled.
    let large = std::fs::File::create(ground.path().join("large")).expect("a file");
    large.set_len(FILE_BYTES_MAX + 1).expect("a length");
    let (found, passed) = ground.hunt(|_| ());
    assert_eq!(
        found,
        [
            ".env:2:5",
            ".git/config:2:16",
            "a/latin1.txt:1:6",
            "a/windows.ini:2:5",
            "objects/kept:1:1"
        ]
    );
    assert_eq!(
        passed,
        [
            "a/program: not text".to_owned(),
            format!(
                "large: larger than {FILE_BYTES_MAX} bytes ({})",
                FILE_BYTES_MAX + 1
            )
        ]
    );
    // The path that is given may be a link; a device is not opened.
    let (found, passed) = ground.hunt(|options| {
        options.paths = vec![
            ground.path().join("link"),
            "/dev/zero".into(),
            ground.path().join("absent"),
        ];
    });
    assert_eq!(found, ["link:2:5"]);
    assert_eq!(passed[0], "/dev/zero: neither a file nor a directory");
    assert_eq!(passed[1], "absent: entity not found");
}

#[test]
fn what_git_ignores_is_looked_at_unless_one_asks_otherwise() {
    let ground = Ground::new();
    ground.write(".gitignore", ".env\n");
    ground.write(".env", &ground.key);
    ground.write("kept", &ground.key);
    ground.write("vendor/sdk.md", &ground.key);
    assert_eq!(ground.hunt(|_| ()).0.len(), 3);
    let (found, _) = ground.hunt(|options| options.ignored_by_git = Ignored::PassedOver);
    assert_eq!(found, ["kept:1:1", "vendor/sdk.md:1:1"]);
    let (found, _) =
        ground.hunt(|options| options.exclude = vec!["vendor/".to_owned(), "*.env".to_owned()]);
    assert_eq!(found, ["kept:1:1"]);
    let error = hunt(&Options {
        paths: vec![ground.path().to_owned()],
        exclude: vec!["a{".to_owned()],
        ..Options::default()
    });
    assert!(error.is_err_and(|error| error.starts_with("--exclude: ")));
}

#[test]
fn neither_a_file_s_name_nor_a_terminal_s_code_gets_out() {
    let ground = Ground::new();
    ground.write(&format!("{}.json", ground.key), &ground.key);
    ground.write("red\u{1b}[31m", &ground.key);
    let (found, _) = ground.hunt(|_| ());
    assert_eq!(found, ["red?[31m:1:1", "<hidden>:1:1"]);
}

#[test]
fn claviger_s_own_file_is_no_finding() {
    let ground = Ground::new();
    ground.write("keys/stripe", format!("{}\n", ground.key));
    ground.write(".env", format!("KEY={}\n", ground.key));
    let (found, passed) = ground.hunt(|options| {
        options.managed = vec![credential(Injection::Bearer, &ground.key)];
        options.keepers = vec![ground.path().join("keys/../keys/stripe")];
    });
    assert_eq!(found, [".env:1:5"]);
    assert_eq!(passed, ["keys/stripe: Claviger's own file of a key"]);
    // One that is too short to be told from chance.
    let (_, passed) =
        ground.hunt(|options| options.managed = vec![credential(Injection::Bearer, "short")]);
    assert_eq!(
        passed,
        ["credential vendor: its key is too short to be searched for"]
    );
}

#[test]
fn the_cure_names_the_host_that_needs_no_key() {
    let ground = Ground::new();
    ground.write(".env", &ground.key);
    let mut options = Options {
        paths: vec![ground.path().to_owned()],
        ..Options::default()
    };
    let text = hunt(&options).expect("it can look").render();
    let mut expected = String::new();
    let _ = write!(
        expected,
        "{}/.env:1:1\n    Stripe key {}\n    delete this line; once api.stripe.com is led to Claviger, the service needs no key \
         any more\n\n1 key in 1 place; 1 file looked at\n",
        ground.path().display(),
        fingerprint(&ground.key).expect("long enough"),
    );
    assert_eq!(text, expected);
    options.managed = vec![credential(Injection::Bearer, &ground.key)];
    let text = hunt(&options).expect("it can look").render();
    assert!(text.contains("Stripe key sha256:"), "{text}");
    assert!(
        text.contains(", which Claviger writes as credential vendor\n"),
        "{text}"
    );
}
