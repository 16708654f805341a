#!/bin/sh
# Installs what is missing, and nothing else. Called by make; safe to run again at any time.
#
#   setup.sh [run] [test] [lint] [fuzz]      (default: run)
#
#   run    what sandboxes need: bubblewrap, QEMU, virtiofsd, vhost-device-vsock, python3; and to build
#          firn: musl, where rustup has it
#   test   cargo-nextest, cpio to check an initramfs with, and nodejs to have sessions of
#   lint   cargo-deny, cargo-machete, typos
#   fuzz   cargo-fuzz
#
# Debian packages come from apt (as root, or through sudo). Programs that Debian 12 does not have
# are built from crates.io, once: they are kept outside the checkout, in $tools, and the two a
# sandbox needs are copied to $prefix/bin. An interrupted build goes on where it stopped.
set -eu

cache=${XDG_CACHE_HOME:-$HOME/.cache}/firn
tools=$cache/tools
if [ "$(id -u)" = 0 ]; then prefix=${FIRN_SETUP_PREFIX:-/usr/local}; else prefix=${FIRN_SETUP_PREFIX:-$HOME/.local}; fi
PATH=$PATH:$prefix/bin:$tools/bin

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# at_least VERSION WANTED: whether VERSION is WANTED or later.
at_least() { [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# good_enough PROGRAM VERSION: whether a PROGRAM that is on PATH is VERSION or later. It must answer
# with a version, after its name at most: QEMU's old C program is called virtiofsd too, and says
# "virtiofsd version 7.2".
good_enough() {
    command -v "$1" >/dev/null 2>&1 || return 1
    at_least "$("$1" --version 2>/dev/null </dev/null |
        sed -nE '1s/^([a-z-]+ )?(backend )?([0-9]+(\.[0-9]+)+).*/\3/p')" "$2"
}

# ---- Debian packages ------------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null 2>&1; then sudo "$@"
    else die "root is needed for: $*"
    fi
}

# apt COMMAND…: never asks, and waits for another apt instead of failing.
apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300 "$@"; }

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

packages() {
    if ! command -v dpkg-query >/dev/null 2>&1; then
        say "not a Debian system: please see yourself to the likes of: $*"
        return
    fi
    missing=
    for package; do is_installed "$package" || missing="$missing $package"; done
    # firn fetches a guest kernel through apt where none is installed: that needs apt's lists.
    if [ -z "$missing" ] && { ls /boot/vmlinuz-* >/dev/null 2>&1 ||
        apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1; }; then
        return
    fi
    # Lists that are old or absent name packages the mirror no longer has.
    apt update || say "apt-get update failed, going on with the lists that are there"
    [ -n "$missing" ] || return 0
    say "installing$missing"
    # shellcheck disable=SC2086  # a list
    set -- install --no-install-recommends --no-remove $missing
    if apt -s "$@" >/dev/null 2>&1; then
        apt "$@"
        return
    fi
    # A qemu-utils from backports conflicts with the release's qemu-system-x86, and apt would
    # remove it. The release's own qemu-utils beside QEMU leaves the user with the same tools.
    version=$(apt-cache policy qemu-system-x86 | sed -n 's/^ *Candidate: //p')
    set -- "$@" --allow-downgrades "qemu-utils=$version"
    if is_installed qemu-utils && apt -s "$@" >/dev/null 2>&1; then
        say "qemu-utils $(dpkg-query -W -f '${Version}' qemu-utils) conflicts with qemu-system-x86: replacing it by $version"
        apt "$@"
        return
    fi
    apt -s install --no-install-recommends $missing >&2 || true
    die "apt-get cannot install$missing without removing other packages (see above): please decide"
}

# ---- Programs from crates.io ----------------------------------------------------------------

# crate NAME PROGRAM MINIMUM VERSION [OPTION…]: builds NAME at VERSION into $tools unless a PROGRAM of
# at least MINIMUM is there already.
crate() {
    good_enough "$2" "$3" && return
    command -v cargo >/dev/null 2>&1 || die "cargo is missing: install a Rust toolchain first (rustup.rs)"
    say "building $1 $4 (once, some minutes)"
    # RUSTFLAGS and the like are meant for firn; a shared target folder lets crates share work.
    env -u RUSTFLAGS -u CARGO_BUILD_TARGET CARGO_TARGET_DIR="$cache/build" \
        CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --root "$tools" --version "$4" ${5:-} "$1"
}

# wheel NAME VERSION: the program built by its own makers, where there is a pip to fetch it.
wheel() {
    python3 -m pip --version >/dev/null 2>&1 || return 0
    python3 -m pip install --quiet --root-user-action=ignore --no-deps --only-binary :all: --target "$cache/wheels/$1" "$1==$2" || return 0
    mkdir -p "$tools/bin"
    install -m 755 "$cache/wheels/$1/bin/$1" "$tools/bin/$1"
}

# program NAME MINIMUM VERSION: as above, and where firn finds it.
program() {
    good_enough "$1" "$2" && return
    crate "$1" "$1" "$2" "$3"
    mkdir -p "$prefix/bin"
    install -m 755 "$tools/bin/$1" "$prefix/bin/$1"
    say "installed $prefix/bin/$1"
}

# musl: Rust's library for it. Without, firn is linked with glibc: larger and slower to start.
musl() {
    target=$(rustc -vV | sed -n 's/^host: //p' | sed 's/-gnu$/-musl/')
    [ -d "$(rustc --print target-libdir --target "$target" 2>/dev/null)" ] && return
    command -v rustup >/dev/null 2>&1 && rustup target add "$target" && return
    say "Rust's library for $target cannot be had: firn will be linked with glibc"
}

# ---------------------------------------------------------------------------------------------

[ $# -gt 0 ] || set -- run
# Debian 12 and later keep the Rust virtiofsd, where they have one, off the PATH.
PATH=$PATH:/usr/libexec
wanted=
for part; do
    case $part in
    run)
        wanted="$wanted qemu-system-x86 bubblewrap python3 ca-certificates musl-tools"
        good_enough virtiofsd 1.10 || wanted="$wanted gcc libc6-dev pkg-config libcap-ng-dev libseccomp-dev"
        ;;
    test) wanted="$wanted cpio nodejs" ;;
    fuzz) wanted="$wanted g++" ;;
    lint) ;;
    *) die "what is '$part'? Known: run, test, lint, fuzz" ;;
    esac
done
# shellcheck disable=SC2086  # a list
packages $wanted
for part; do
    case $part in
    run)
        program virtiofsd 1.10 1.14.0
        program vhost-device-vsock 0.3 0.3.0
        musl
        ;;
    test) crate cargo-nextest cargo-nextest 0.9.100 0.9.114 ;;
    lint)
        # Not optimized: they run for seconds, and building them is what takes minutes.
        crate cargo-deny cargo-deny 0.18 0.20.2 --debug
        crate cargo-machete cargo-machete 0.9 0.9.2 --debug
        good_enough typos 1.40 || wheel typos 1.52.0
        crate typos-cli typos 1.40 1.42.3 --debug
        ;;
    fuzz) crate cargo-fuzz cargo-fuzz 0.13 0.13.2 ;;
    esac
done
# The tools are kept, what they were built from is not: gigabytes.
rm -rf "$cache/build" "$cache/wheels"
