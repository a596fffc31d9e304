//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use controlplane::credentials::SecretRef;

/// Where the configuration is unless `--config` says otherwise.
const CONFIG_DEFAULT: &str = "/etc/claviger/claviger.toml";

/// Keeper of the keys: an API-key proxy that holds the real third-party keys so
/// that nobody else has to.
#[derive(Debug, Parser)]
#[command(name = "claviger", version, about, long_about = None, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve.
    Run(Run),
    /// Check the configuration, with everything that can be known without serving.
    Check(Check),
    /// Say what would happen to a request: listener, route, strip, injection, upstream.
    Explain(Explain),
    /// Ask the process that serves how it is: its certificates' ends, its figures.
    Status(Status),
    /// Print the JSON Schema of the configuration.
    Schema,
    /// Write a configuration to begin with: for an edge, a hub, or one service.
    Init(Init),
    /// The internal certificate authority.
    #[command(subcommand)]
    Ca(Ca),
    /// Look at the whole way of a call to HOST, and name the first thing that is wrong with its cure: on a service's
    /// machine, or with --config on Claviger's own. Sends no credential. Ends with 1 if something is wrong.
    Doctor(Doctor),
    /// Find the keys that services still have, and say what to remove. Shows no key. Ends with 0 if there is
    /// none, 1 if there is one, 2 if something could not be looked at.
    Hunt(Hunt),
    /// Show the whole thing at work: a mock API, a real call, and what each side saw.
    Demo(Demo),
    /// Show that no key comes out: canaries for keys, every route and every error driven, and all
    /// that came out searched. Ends with 1 if a key is found, or a search is blind.
    Prove(Prove),
    /// Serve, for `prove`.
    #[command(hide = true)]
    ProveServe(ProveServe),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Which configuration.
#[derive(Debug, Args)]
pub struct Config {
    /// The configuration file; `conf.d/*.toml` beside it belong to it.
    #[arg(long, short, default_value = CONFIG_DEFAULT, value_name = "FILE")]
    pub config: PathBuf,
}

/// `claviger run`
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub config: Config,
    /// The I/O driver, instead of the configuration's.
    #[arg(long, value_enum)]
    pub driver: Option<Driver>,
    /// The log level, instead of the configuration's: error, warn, info, debug, trace.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// The I/O drivers.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Driver {
    /// io_uring where it works, or else epoll.
    Auto,
    /// io_uring, or an error that says why not.
    #[value(name = "io_uring", alias = "io-uring")]
    IoUring,
    /// epoll.
    Epoll,
}

/// `claviger check`
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub config: Config,
}

/// `claviger status`
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub config: Config,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Print the text format of Prometheus.
    #[arg(long, conflicts_with = "json")]
    pub metrics: bool,
}

/// `claviger explain`
#[derive(Debug, Args)]
pub struct Explain {
    /// The request's method.
    pub method: String,
    /// The request's URL, as the caller would write it.
    pub url: String,
    /// The caller's address.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub from: IpAddr,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub config: Config,
}

/// `claviger init`
#[derive(Debug, Args)]
pub struct Init {
    #[command(subcommand)]
    pub what: InitWhat,
    /// The file to write; default: standard output.
    #[arg(long, global = true, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Overwrite a file that is there.
    #[arg(long, global = true)]
    pub force: bool,
    /// Where keys, certificates and tokens are.
    #[arg(
        long,
        global = true,
        default_value = "/etc/claviger",
        value_name = "DIR"
    )]
    pub dir: PathBuf,
    /// Where state is kept.
    #[arg(
        long,
        global = true,
        default_value = "/var/lib/claviger",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
    /// The audit trail.
    #[arg(
        long,
        global = true,
        default_value = "/var/log/claviger/audit.ndjson",
        value_name = "FILE"
    )]
    pub audit: PathBuf,
}

/// Which configuration.
#[derive(Debug, Subcommand)]
pub enum InitWhat {
    /// A Claviger without keys, near its callers, that forwards to a hub.
    Edge {
        /// A hub's name; several stand in for each other, the first one is preferred.
        #[arg(long, required = true, value_name = "HOST")]
        hub: Vec<String>,
        /// A host that services here call; may be repeated.
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// A provider whose hosts services here call; may be repeated.
        #[arg(long, value_name = "NAME")]
        preset: Vec<String>,
        /// Show the hub a token in place of a client certificate.
        #[arg(long)]
        token: bool,
    },
    /// A Claviger with keys, that edges come to.
    Hub {
        /// The name by which edges know it.
        #[arg(long, value_name = "HOST")]
        host: String,
        /// The edge's name here.
        #[arg(long, default_value = "edge", value_name = "NAME")]
        edge: String,
        /// Where the edge comes from, as in 203.0.113.7/32; may be repeated.
        #[arg(long, value_name = "NETWORK")]
        edge_network: Vec<String>,
        /// A provider whose key is held here; may be repeated.
        #[arg(long, value_name = "NAME")]
        preset: Vec<String>,
    },
    /// One provider's API, as a file for conf.d.
    Service {
        /// The provider.
        #[arg(long, value_name = "NAME")]
        preset: String,
        /// Who may use it: "open", a network, or the name of a [caller.NAME]; may be repeated.
        #[arg(long, value_name = "CALLER")]
        caller: Vec<String>,
    },
}

/// `claviger ca`
#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Make a root limited to some domains, and an intermediate that issues.
    Init {
        /// A domain that the authority may issue for, with all names under it; may be repeated.
        #[arg(long, required = true, value_name = "DOMAIN", num_args = 1..)]
        permit: Vec<String>,
        /// A host that the intermediate is limited to; may be repeated. Default: the hosts
        /// of --config, or else the permitted domains.
        #[arg(long, value_name = "HOST", num_args = 1..)]
        host: Vec<String>,
        /// A configuration whose hosts the intermediate is limited to.
        #[arg(long, short, value_name = "FILE", conflicts_with = "host")]
        config: Option<PathBuf>,
        /// Where the authority's files are.
        #[arg(long, default_value = "/var/lib/claviger/ca", value_name = "DIR")]
        dir: PathBuf,
        /// The kind of keys: ecdsa or rsa.
        #[arg(long, default_value = "ecdsa", value_name = "TYPE")]
        key_type: String,
        /// Replace an authority that is there.
        #[arg(long)]
        force: bool,
        /// Where the passphrase is that the keys are encrypted under: file:///path,
        /// credential://NAME or env://NAME. Default: they are not encrypted.
        #[arg(long, value_name = "REF")]
        passphrase: Option<SecretRef>,
    },
    /// Issue a certificate for one or more host names.
    Issue {
        /// The names; the first one names the files.
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
        /// Where the authority's files are.
        #[arg(long, default_value = "/var/lib/claviger/ca", value_name = "DIR")]
        dir: PathBuf,
        /// Where HOST.pem and HOST.key are written.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// The kind of key: ecdsa or rsa.
        #[arg(long, default_value = "ecdsa", value_name = "TYPE")]
        key_type: String,
        /// Days until it expires.
        #[arg(long, default_value_t = 30)]
        days: u32,
        /// Overwrite files that are there.
        #[arg(long)]
        force: bool,
        /// Where the passphrase of the authority's keys is.
        #[arg(long, value_name = "REF")]
        passphrase: Option<SecretRef>,
    },
    /// Replace the root, with a time in which machines may trust either.
    #[command(subcommand)]
    Rollover(Rollover),
    /// Encrypt the authority's private keys under a passphrase, or under another one.
    Encrypt {
        /// Where the authority's files are.
        #[arg(long, default_value = "/var/lib/claviger/ca", value_name = "DIR")]
        dir: PathBuf,
        /// Where the passphrase is: file:///path, credential://NAME or env://NAME.
        #[arg(long, value_name = "REF")]
        passphrase: SecretRef,
        /// Where the passphrase is that they are encrypted under now.
        #[arg(long, value_name = "REF")]
        old: Option<SecretRef>,
    },
    /// Leave the authority's private keys unencrypted.
    Decrypt {
        /// Where the authority's files are.
        #[arg(long, default_value = "/var/lib/claviger/ca", value_name = "DIR")]
        dir: PathBuf,
        /// Where the passphrase is that they are encrypted under.
        #[arg(long, value_name = "REF")]
        passphrase: SecretRef,
    },
    /// Write the root certificate, for the machines that shall trust it.
    Export {
        /// Where the authority's files are.
        #[arg(long, default_value = "/var/lib/claviger/ca", value_name = "DIR")]
        dir: PathBuf,
        /// The file to write; default: standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// In which form: pem, der, pkcs12 (a trust store, as Java takes it) or deb (a Debian
        /// package that installs it).
        #[arg(long, value_enum, default_value = "pem", value_name = "FORM")]
        format: ExportForm,
        /// The same as --format der.
        #[arg(long, conflicts_with = "format")]
        der: bool,
        /// Where the password of a PKCS#12 store is. Default: changeit, as Java's own has.
        #[arg(long, value_name = "REF")]
        password: Option<SecretRef>,
        /// Overwrite a file that is there.
        #[arg(long)]
        force: bool,
    },
}

/// `claviger doctor`
#[derive(Debug, Args)]
pub struct Doctor {
    /// The API's host, as services write it.
    pub host: String,
    /// Its port.
    #[arg(long, default_value_t = 443)]
    pub port: u16,
    /// Call this path with GET and without credentials, once all is trusted. It may go on to the API, with the key.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    pub call: Option<String>,
    /// Where bundles of roots and Java keystores are looked for; may be repeated. Default: where they usually are.
    #[arg(long, value_name = "DIR")]
    pub search: Vec<PathBuf>,
    /// Do not try whether the API can be reached directly, which asks public resolvers for it.
    #[arg(long)]
    pub no_egress: bool,
    /// Claviger's configuration, on its own machine: looks at the rule, the key and the way to the API or the hub.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// With --config: where the call comes from.
    #[arg(
        long,
        default_value = "127.0.0.1",
        value_name = "ADDRESS",
        requires = "config"
    )]
    pub from: IpAddr,
    /// With --config: the method of the call.
    #[arg(long, default_value = "GET", requires = "config")]
    pub method: String,
    /// With --config: the path of the call.
    #[arg(long, default_value = "/", requires = "config")]
    pub path: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `claviger hunt`
#[derive(Debug, Args)]
pub struct Hunt {
    /// Files and directories. Links in them are not followed; files that Git ignores are looked at, as
    /// `.env` usually is one.
    #[arg(required_unless_present = "environment", value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Look at the environments and command lines of running processes, too: the caller's own, or, for
    /// root, everybody's.
    #[arg(long)]
    pub environment: bool,
    /// Look at all that the Git repositories at the paths ever held, too.
    #[arg(long, requires = "paths")]
    pub git_history: bool,
    /// Pass over what Git ignores.
    #[arg(long)]
    pub respect_gitignore: bool,
    /// Pass over what matches, as in a `.gitignore`; may be repeated.
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Look for the keys of this configuration, too, whatever their shape. Reads them; the files
    /// that hold them are passed over.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// In which form roots are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ExportForm {
    /// Text; both roots of a roll-over.
    Pem,
    /// One certificate in DER.
    Der,
    /// A trust store.
    Pkcs12,
    /// A Debian package.
    Deb,
}

/// `claviger ca rollover`
#[derive(Debug, Subcommand)]
pub enum Rollover {
    /// Make the next root. From here on both are exported, and either verifies.
    Start {
        #[command(flatten)]
        ca: RolloverCa,
        /// A domain that the next root may issue for; may be repeated. Default: as the present one.
        #[arg(long, value_name = "DOMAIN", num_args = 1..)]
        permit: Vec<String>,
    },
    /// Issue from the next root. Either still verifies.
    Switch {
        #[command(flatten)]
        ca: RolloverCa,
    },
    /// Trust the former root no more.
    Finish {
        #[command(flatten)]
        ca: RolloverCa,
    },
    /// Give the next root up before the switch.
    Cancel {
        #[command(flatten)]
        ca: RolloverCa,
    },
}

/// Which authority is rolled over.
#[derive(Debug, Args)]
pub struct RolloverCa {
    /// Where the authority's files are.
    #[arg(long, default_value = "/var/lib/claviger/ca", value_name = "DIR")]
    pub dir: PathBuf,
    /// Where the passphrase of its keys is.
    #[arg(long, value_name = "REF")]
    pub passphrase: Option<SecretRef>,
}

/// `claviger demo`
#[derive(Debug, Args)]
pub struct Demo {
    /// End by itself after the call.
    #[arg(long)]
    pub once: bool,
}

/// `claviger prove`
#[derive(Debug, Args)]
pub struct Prove {
    /// Drive the routes of this configuration, with canaries in place of its secrets, which are
    /// not read. Default: a built-in one that uses every way of writing a key and every preset.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Leave everything that was searched, and say where it is.
    #[arg(long)]
    pub keep: bool,
}

/// `claviger prove-serve`
#[derive(Debug, Args)]
pub struct ProveServe {
    #[command(flatten)]
    pub run: Run,
    /// Leave a core after a crash: what the proof looks like when it fails.
    #[arg(long)]
    pub permit_dumps: bool,
}
