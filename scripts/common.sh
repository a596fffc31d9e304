# What scripts/test and scripts/demo share. Sourced, not run.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}

# Colour on a terminal only, and not where NO_COLOR asks for none.
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' YELLOW=$'\e[33m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' DIM='' GREEN='' YELLOW='' RED='' PLAIN=''
fi

# step TEXT: the heading of what comes next.
step() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }
# note TEXT: a quiet remark.
note() { printf '%s%s%s\n' "$DIM" "$*" "$PLAIN"; }
# fail TEXT...: says what is wrong, and on further lines the cure, and ends the script.
fail() {
    printf '\n%serror:%s %s\n' "$RED" "$PLAIN" "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}

# Things to do at the end, however it comes, the latest first.
AT_END=()
at_end() { AT_END=("$1" "${AT_END[@]}"); }
run_at_end() {
    local status=$? command
    trap - EXIT
    for command in "${AT_END[@]}"; do eval "$command" || true; done
    exit "$status"
}
trap run_at_end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# need_rust: cargo and a rustc that is new enough, or the cure.
need_rust() {
    local want have
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
    if ! command -v cargo >/dev/null || ! command -v rustc >/dev/null; then
        [ -x "$HOME/.cargo/bin/cargo" ] && PATH="$HOME/.cargo/bin:$PATH"
    fi
    command -v cargo >/dev/null && command -v rustc >/dev/null || fail "cargo was not found." \
        "Install Rust $want or newer with rustup (https://rustup.rs):" \
        "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" \
        "and open a new shell. A distribution's own package may be too old."
    have=$(rustc --version | sed -n 's/^rustc \([0-9]*\.[0-9]*\).*/\1/p')
    if [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ]; then
        fail "this is Rust $have ($(command -v rustc)); Claviger needs $want or newer." \
            "With rustup:    rustup update stable" \
            "Without rustup: install it (https://rustup.rs). A distribution's rustc is often too old;" \
            "                rustup's takes precedence once ~/.cargo/bin stands first in PATH."
    fi
}

# need_packages NAME...: installs the Debian packages that are missing. While it
# does, a policy-rc.d keeps their services from starting; it is removed afterwards,
# also on failure, and one that was there before is put back.
need_packages() {
    local package sudo='' missing=()
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "these Debian packages (or their like) are needed: ${missing[*]}" \
        "This machine has no apt-get: install what they hold in its own way."
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null && sudo='sudo -n'
        [ -n "$sudo" ] || fail "these Debian packages are needed: ${missing[*]}" \
            "Run, as root:  apt-get install --no-install-recommends ${missing[*]}" \
            "and start this script again. (As root it installs them itself.)"
    fi
    note "installing ${missing[*]}; no service is started"
    local policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        $sudo mv "$policy" "$policy.claviger-saved"
        at_end "[ ! -e $policy.claviger-saved ] || $sudo mv $policy.claviger-saved $policy"
    else
        at_end "$sudo rm -f $policy"
    fi
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
    local log="$TARGET/apt.log" apt="$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0"
    mkdir -p "$TARGET"
    if ! { $apt update && $apt install --no-install-recommends "${missing[@]}"; } </dev/null >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        fail "apt-get could not install ${missing[*]} (all it said: $log)."
    fi
    # Now, and not only at the end: what follows may be the user's own session.
    local command=${AT_END[0]}
    AT_END=("${AT_END[@]:1}")
    eval "$command"
}

# need_compiler: what a Rust build with one C library (aws-lc) takes.
need_compiler() {
    command -v cc >/dev/null && command -v ld >/dev/null || need_packages gcc libc6-dev binutils
}
