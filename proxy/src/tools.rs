//! The commands that do not serve.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::CommandFactory;
use controlplane::config::{self, ResolveContext};
use controlplane::credentials::{self, SecretRef, SourcePolicy};
use controlplane::pki::{ExpiryState, Passphrase, authority, export, rollover};
use controlplane::{doctor, hunt, status};

use crate::cli;

/// What a command ends with: an exit code, or a message for standard error.
pub type Outcome = Result<ExitCode, String>;

/// `claviger check`: 0 when it could be served, 1 when not. Warnings do not count.
pub fn check(args: &cli::Check) -> Outcome {
    let colour = std::io::stderr().is_terminal();
    let mut audit_directory = None;
    let report = match config::load(&args.config.config) {
        Err(report) => report,
        Ok(file) => {
            audit_directory = missing_directory(&config::check(&file).0.settings.audit.path);
            match config::resolve(&file, &mut ResolveContext::to_look()) {
                Err(report) => report,
                Ok(resolved) => resolved.warnings,
            }
        }
    };
    let mut report = report;
    report.problems.extend(audit_directory);
    if !report.is_empty() {
        eprint!("{}", report.render(colour));
    }
    if report.has_errors() {
        return Ok(ExitCode::FAILURE);
    }
    println!(
        "{}: the configuration is good",
        args.config.config.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// The audit file is made when serving begins, and not by a check; its directory
/// has to be there.
fn missing_directory(audit: &std::path::Path) -> Option<config::Problem> {
    let directory = audit
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())?;
    (!directory.is_dir()).then(|| {
        config::Problem::warning(format!(
            "the audit trail's directory {} is not there: `run` will not start",
            directory.display()
        ))
        .cure("make it, writable for the service user, or set `path` in [audit]")
    })
}

/// `claviger explain`
pub fn explain(args: &cli::Explain) -> Outcome {
    let file = config::load(&args.config.config).map_err(|report| report.render(false))?;
    let resolved = config::resolve(&file, &mut ResolveContext::to_look())
        .map_err(|report| report.render(false))?;
    let explanation = config::explain(
        &resolved.snapshot,
        // Names are not resolved for an explanation: nothing is asked of anybody.
        &policy::AddressBook::default(),
        &config::Question {
            method: args.method.to_ascii_uppercase(),
            url: args.url.clone(),
            from: args.from,
        },
    )
    .map_err(|error| error.to_string())?;
    if args.json {
        print_out(format!("{:#}\n", explanation.to_json()).as_bytes())?;
    } else {
        print_out(explanation.to_string().as_bytes())?;
    }
    Ok(if explanation.is_allowed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// `claviger status`: 1 when a certificate has expired.
pub fn status(args: &cli::Status) -> Outcome {
    let file = config::load(&args.config.config).map_err(|report| report.render(false))?;
    let directory = config::check(&file).0.settings.state_dir;
    let report = status::ask(&directory.join(status::SOCKET_NAME))?;
    let text = if args.json {
        format!(
            "{:#}\n",
            serde_json::to_value(&report).map_err(|error| error.to_string())?
        )
    } else if args.metrics {
        report.metrics()
    } else {
        report.to_string()
    };
    print_out(text.as_bytes())?;
    let has_expired = |line: &status::CertificateLine| line.state == ExpiryState::Expired.as_str();
    Ok(if report.certificates.iter().any(has_expired) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// `claviger schema`
pub fn schema() -> Outcome {
    print_out(format!("{:#}\n", config::json_schema()).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// `claviger init`
pub fn init(args: &cli::Init) -> Outcome {
    let what = match &args.what {
        cli::InitWhat::Edge {
            hub,
            host,
            preset,
            token,
        } => config::Init::Edge {
            hubs: hub.clone(),
            by_token: *token,
            hosts: host.clone(),
            presets: preset.clone(),
        },
        cli::InitWhat::Hub {
            host,
            edge,
            edge_network,
            preset,
        } => config::Init::Hub {
            host: host.clone(),
            edge: edge.clone(),
            edge_networks: edge_network.clone(),
            presets: preset.clone(),
        },
        cli::InitWhat::Service { preset, caller } => config::Init::Service {
            preset: preset.clone(),
            callers: caller.clone(),
        },
    };
    let text = what.render(&config::Places {
        directory: args.dir.clone(),
        state: args.state_dir.clone(),
        audit: args.audit.clone(),
    })?;
    let Some(path) = &args.out else {
        print_out(text.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    match args.force {
        true => options.create(true).truncate(true),
        false => options.create_new(true),
    };
    let written = options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    match written {
        Ok(()) => {
            println!(
                "{} is written; it says what has to be put where",
                path.display()
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(format!(
            "{} is there already; write another file with --out, or replace it with --force",
            path.display()
        )),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// `claviger completions`
pub fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::Cli::command(), "claviger", &mut script);
    print_out(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// `claviger ca`
pub fn ca(args: &cli::Ca) -> Outcome {
    let now = SystemTime::now();
    match args {
        cli::Ca::Init {
            permit,
            host,
            config,
            dir,
            key_type,
            force,
            passphrase,
        } => {
            let hosts = match config {
                Some(path) => hosts_of(path)?,
                None => host.clone(),
            };
            let report = authority::init(&authority::InitOptions {
                dir: dir.clone(),
                permit: permit.clone(),
                hosts,
                key_type: key_type
                    .parse()
                    .map_err(|error| format!("--key-type: {error}"))?,
                force: *force,
                passphrase: passphrase_of(passphrase.as_ref())?,
                now,
            })
            .map_err(|error| error.to_string())?;
            print_out(format!("{}\n", report.to_string().trim_end()).as_bytes())?;
        }
        cli::Ca::Issue {
            hosts,
            dir,
            out,
            key_type,
            days,
            force,
            passphrase,
        } => {
            let report = authority::issue(&authority::IssueOptions {
                dir: dir.clone(),
                hosts: hosts.clone(),
                out: out.clone(),
                key_type: key_type
                    .parse()
                    .map_err(|error| format!("--key-type: {error}"))?,
                days: *days,
                force: *force,
                passphrase: passphrase_of(passphrase.as_ref())?,
                now,
            })
            .map_err(|error| error.to_string())?;
            print_out(format!("{}\n", report.to_string().trim_end()).as_bytes())?;
        }
        cli::Ca::Rollover(step) => rollover(step, now)?,
        cli::Ca::Encrypt {
            dir,
            passphrase,
            old,
        } => rekey(dir, old.as_ref(), Some(passphrase))?,
        cli::Ca::Decrypt { dir, passphrase } => rekey(dir, Some(passphrase), None)?,
        cli::Ca::Export {
            dir,
            out,
            format,
            der,
            password,
            force,
        } => {
            let report = export::export(&export::ExportOptions {
                dir: dir.clone(),
                out: out.clone(),
                format: match format {
                    _ if *der => export::ExportFormat::Der,
                    cli::ExportForm::Pem => export::ExportFormat::Pem,
                    cli::ExportForm::Der => export::ExportFormat::Der,
                    cli::ExportForm::Pkcs12 => {
                        export::ExportFormat::Pkcs12(store_password(password.as_ref())?)
                    }
                    cli::ExportForm::Deb => export::ExportFormat::Deb,
                },
                force: *force,
                now,
            })
            .map_err(|error| error.to_string())?;
            if out.is_none() {
                print_out(&report.bytes)?;
            } else {
                eprintln!("{}", report.to_string().trim_end());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `claviger doctor`: 0 when nothing is wrong, 1 when something is. Warnings do not count.
pub fn doctor(args: &cli::Doctor) -> Outcome {
    let host = args.host.trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() || host.contains(['/', ':', '@']) || !host.is_ascii() {
        return Err("HOST is a name alone, as in api.example.com (the port is --port)".to_owned());
    }
    if args.call.as_ref().is_some_and(|path| !is_path(path)) {
        return Err("--call takes a path, as in /v1/models".to_owned());
    }
    let search = match args.search.as_slice() {
        [] => doctor::SEARCH_DEFAULT.map(PathBuf::from).to_vec(),
        given => given.to_vec(),
    };
    let diagnosis = doctor::diagnose(&doctor::Options {
        host,
        port: args.port,
        call: args.call.clone(),
        search,
        public_resolvers: if args.no_egress {
            Vec::new()
        } else {
            let servers = controlplane::names::DnsSettings::default().servers;
            servers.iter().map(|server| server.address).collect()
        },
        office: args.config.as_ref().map(|config| doctor::OfficeOptions {
            config: config.clone(),
            method: args.method.clone(),
            path: args.path.clone(),
            from: args.from,
        }),
    });
    if args.json {
        print_out(format!("{:#}\n", diagnosis.to_json()).as_bytes())?;
    } else {
        print_out(diagnosis.render().as_bytes())?;
    }
    Ok(match diagnosis.first() {
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::SUCCESS,
    })
}

/// Whether a text can stand in a request line.
fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// `claviger hunt`: 0 when there is no key, 1 when there is one, 2 when something was not looked at.
pub fn hunt(args: &cli::Hunt) -> Outcome {
    const TROUBLE: u8 = 2;
    let mut options = hunt::Options {
        paths: args.paths.clone(),
        processes: args.environment,
        history: args.git_history,
        ignored_by_git: match args.respect_gitignore {
            true => hunt::Ignored::PassedOver,
            false => hunt::Ignored::Searched,
        },
        exclude: args.exclude.clone(),
        ..hunt::Options::default()
    };
    let found = match &args.config {
        Some(path) => managed(path, &mut options).and_then(|()| hunt::hunt(&options)),
        None => hunt::hunt(&options),
    };
    let found = match found {
        Ok(found) => found,
        Err(message) => {
            eprintln!("error: {}", message.trim_end());
            return Ok(ExitCode::from(TROUBLE));
        }
    };
    if args.json {
        print_out(format!("{:#}\n", found.to_json()).as_bytes())?;
    } else {
        print_out(found.render().as_bytes())?;
    }
    Ok(match (found.findings.is_empty(), found.has_gaps()) {
        (false, _) => ExitCode::FAILURE,
        (true, true) => ExitCode::from(TROUBLE),
        (true, false) => ExitCode::SUCCESS,
    })
}

/// Adds the keys that a configuration manages.
fn managed(path: &std::path::Path, options: &mut hunt::Options) -> Result<(), String> {
    let file = config::load(path).map_err(|report| report.render(false))?;
    let resolved = config::resolve(&file, &mut ResolveContext::to_look())
        .map_err(|report| report.render(false))?;
    options.managed = hunt::managed_by(&resolved.snapshot);
    let (draft, _) = config::check(&file);
    options.keepers = draft
        .credentials
        .iter()
        .filter_map(|credential| credential.reference.path())
        .collect();
    Ok(())
}

fn rollover(step: &cli::Rollover, now: SystemTime) -> Result<(), String> {
    let options = |ca: &cli::RolloverCa, permit: &[String]| {
        Ok::<_, String>(rollover::RolloverOptions {
            dir: ca.dir.clone(),
            permit: permit.to_vec(),
            passphrase: passphrase_of(ca.passphrase.as_ref())?,
            now,
        })
    };
    let report = match step {
        cli::Rollover::Start { ca, permit } => rollover::start(&options(ca, permit)?),
        cli::Rollover::Switch { ca } => rollover::switch(&options(ca, &[])?),
        cli::Rollover::Finish { ca } => rollover::finish(&options(ca, &[])?),
        cli::Rollover::Cancel { ca } => rollover::cancel(&options(ca, &[])?),
    };
    let report = report.map_err(|error| error.to_string())?;
    print_out(format!("{}\n", report.to_string().trim_end()).as_bytes())
}

fn store_password(reference: Option<&SecretRef>) -> Result<export::TrustStorePassword, String> {
    let Some(reference) = reference else {
        return Ok(export::TrustStorePassword::default());
    };
    let fetched = credentials::fetch(reference, &SourcePolicy::default())
        .map_err(|error| error.to_string())?;
    Ok(export::TrustStorePassword::new(fetched.secret))
}

fn rekey(
    dir: &std::path::Path,
    old: Option<&SecretRef>,
    new: Option<&SecretRef>,
) -> Result<(), String> {
    let report = authority::rekey(&authority::RekeyOptions {
        dir: dir.to_owned(),
        old: passphrase_of(old)?,
        new: passphrase_of(new)?,
    })
    .map_err(|error| error.to_string())?;
    print_out(format!("{}\n", report.to_string().trim_end()).as_bytes())
}

fn passphrase_of(reference: Option<&SecretRef>) -> Result<Option<Passphrase>, String> {
    let Some(reference) = reference else {
        return Ok(None);
    };
    let fetched = credentials::fetch(reference, &SourcePolicy::default())
        .map_err(|error| error.to_string())?;
    let passphrase = Passphrase::new(fetched.secret);
    passphrase
        .map(Some)
        .map_err(|problem| format!("the passphrase in {reference} {problem}"))
}

/// The hosts that a configuration serves with certificates of the internal CA.
fn hosts_of(path: &std::path::Path) -> Result<Vec<String>, String> {
    let file = config::load(path).map_err(|report| report.render(false))?;
    let (draft, report) = config::check(&file);
    if report.has_errors() {
        return Err(report.render(false));
    }
    Ok(draft
        .hosts
        .iter()
        .filter(|host| matches!(host.certificates, config::Certificates::Ca))
        .map(|host| host.name.clone())
        .collect())
}

/// Writes to standard output; a reader that has gone (`| head`) is no error.
pub fn print_out(bytes: &[u8]) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(format!("standard output: {error}")),
    }
}
