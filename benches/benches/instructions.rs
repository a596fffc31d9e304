//! Every case under callgrind, one per process. Run by `perf/instructions`, which says how.
//!
//! ```text
//! instructions --list       the names of all cases, one per line
//! instructions --machine    what the code that looks at the processor sees of it
//! instructions CASE         prepares the case, warms it up, and calls `counted` once
//! ```
//!
//! Callgrind collects inside [`counted`] only (`--toggle-collect`). A function's name is all that it
//! needs, so there are no client requests, hence no assembly and no header files of valgrind's.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Calls before the one that is counted: buffers grow, caches of the allocator fill.
const WARM_UP_CALLS: usize = 3;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let cases = claviger_benches::cases();
    match &argument[..] {
        "--list" => {
            for case in &cases {
                println!("{}", case.name);
            }
        }
        "--machine" => println!("{}", machine()),
        // What `cargo bench` passes.
        "--bench" => println!("instructions are counted by `perf/instructions`"),
        name => {
            let Some(case) = cases.iter().find(|case| case.name == name) else {
                eprintln!(
                    "there is no case `{name}`; `--list` tells those that there are. `perf/instructions` runs them"
                );
                return ExitCode::FAILURE;
            };
            let mut run = (case.prepare)();
            for _ in 0..WARM_UP_CALLS {
                run();
            }
            counted(&mut *run);
        }
    }
    ExitCode::SUCCESS
}

/// What is counted. Never inlined, since callgrind knows it by its name.
#[inline(never)]
fn counted(run: &mut dyn FnMut()) {
    run();
}

/// The extensions by which libraries choose their code at run time. Under valgrind this is the processor that
/// valgrind plays, which is not quite the machine's.
#[cfg(target_arch = "x86_64")]
fn machine() -> String {
    macro_rules! detected {
        ($($feature:tt)*) => {
            [$(($feature, std::arch::is_x86_feature_detected!($feature))),*]
        };
    }
    let features = detected!("ssse3" "sse4.2" "avx" "avx2" "bmi1" "bmi2" "adx" "fma" "aes" "pclmulqdq"
        "vaes" "vpclmulqdq" "sha" "rdrand" "rdseed" "avx512f" "avx512bw");
    let mut machine = String::from("x86_64");
    for (feature, detected) in features {
        if detected {
            machine.push(' ');
            machine.push_str(feature);
        }
    }
    machine
}

#[cfg(not(target_arch = "x86_64"))]
fn machine() -> String {
    std::env::consts::ARCH.to_owned()
}
