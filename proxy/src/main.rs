//! The binary `claviger`: the command line, and the start and end of a process.

#![deny(unsafe_code)]

mod boot;
mod cli;
mod demo;
mod descriptors;
mod handover;
mod privileges;
mod prove;
mod service;
mod signals;
mod sockets;
mod tools;

use std::process::ExitCode;

use clap::Parser;

/// Memory that one core frees is mostly memory that it allocated.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let outcome = match &cli.command {
        cli::Command::Run(args) => {
            boot::run(args, boot::Dumps::Forbid).map_err(|error| error.to_string())
        }
        cli::Command::Check(args) => tools::check(args),
        cli::Command::Explain(args) => tools::explain(args),
        cli::Command::Status(args) => tools::status(args),
        cli::Command::Schema => tools::schema(),
        cli::Command::Init(args) => tools::init(args),
        cli::Command::Ca(args) => tools::ca(args),
        cli::Command::Doctor(args) => tools::doctor(args),
        cli::Command::Hunt(args) => tools::hunt(args),
        cli::Command::Demo(args) => demo::run(args),
        cli::Command::Prove(args) => prove::run(args),
        cli::Command::ProveServe(args) => prove::serve(args).map_err(|error| error.to_string()),
        cli::Command::Completions { shell } => tools::completions(*shell),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            // A report of the configuration speaks for itself.
            let message = message.trim_end();
            if message.contains("error:") || message.contains("error\u{1b}") {
                eprintln!("{message}");
            } else {
                eprintln!("error: {message}");
            }
            ExitCode::FAILURE
        }
    }
}
