#!/bin/sh
# Installs what is missing, and nothing else. Called by make; safe to run again at any time.
#
#   setup.sh [run] [test] [lint] [fuzz] [nix]      (default: run)
#
#   run    what sandboxes need: bubblewrap, QEMU, virtiofsd, vhost-device-vsock, python3; and to build
#          firn: musl, where rustup has it
#   test   cargo-nextest, cpio to check an initramfs with, and nodejs to have sessions of
#   lint   cargo-deny, cargo-machete, typos, nixfmt, deadnix
#   fuzz   cargo-fuzz
#   nix    a Nix that knows flakes, and static programs, for the tests of nix/
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

# ---- Nix ------------------------------------------------------------------------------------

# The Debian release whose Nix is taken, the packages, and the oldest Nix that will do: flakes, and
# locks of version 7. Debian 12 has 2.8. The packages after nix-bin are what tests make environments of.
nix_release=trixie
nix_packages='nix-bin bash-static busybox-static bubblewrap'
nix_least=2.18
nix_home=$cache/nix

# nix_version PROGRAM: it says "nix (Nix) 2.26.3".
nix_version() { "$1" --version 2>/dev/null | sed -nE '1s/^nix .* ([0-9]+(\.[0-9]+)+).*/\1/p'; }

# nix: Debian's Nix beside the system, whatever else there is: what the tests say does not depend on it.
# Nothing is upgraded: the packages are unpacked into a folder and run through their own dynamic linker.
# apt checks them against the archive's signature, which the keyring of the system vouches for.
nix() {
    at_least "$(nix_version "$nix_home/bin/nix")" "$nix_least" && return
    command -v dpkg-deb >/dev/null 2>&1 || die "Nix is unpacked from Debian's packages, and there is no dpkg-deb"
    [ "$(dpkg --print-architecture)" = amd64 ] || die "Nix is unpacked on amd64 only"
    # The one thing outside: the paths of the store are part of what is built.
    [ -d /nix/store ] || [ -w /nix ] || { as_root mkdir -p /nix && as_root chown "$(id -u)" /nix; }
    say "unpacking Debian $nix_release's Nix into $nix_home (once)"
    rm -rf "$nix_home.part"
    unpack_nix "$nix_home.part"
    rm -rf "$nix_home"
    mv "$nix_home.part" "$nix_home"
    at_least "$(nix_version "$nix_home/bin/nix")" "$nix_least" || die "$nix_home/bin/nix does not run"
}

# apt_nix FOLDER COMMAND…: apt with lists, archives and a record of what is installed of its own.
apt_nix() {
    folder=$1
    shift
    apt-get -qq -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State="$folder" -o Dir::State::status="$folder/status" -o Dir::Cache="$folder" \
        -o APT::Install-Recommends=false -o Acquire::Languages=none -o APT::Sandbox::User= "$@"
}

unpack_nix() {
    apt_folder=$1/apt
    mkdir -p "$apt_folder/lists/partial" "$apt_folder/archives/partial" "$1/root" "$1/bin"
    : >"$apt_folder/status"
    mirror=$(sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+).*/\2/p' \
        /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "${mirror:-http://deb.debian.org/debian} $nix_release main" >"$apt_folder/sources.list"
    apt_nix "$apt_folder" update
    # shellcheck disable=SC2086  # a list
    apt_nix "$apt_folder" -y --download-only install $nix_packages
    for package in "$apt_folder"/archives/*.deb; do dpkg-deb -x "$package" "$1/root"; done
    rm -rf "$apt_folder"
    for name in nix nix-instantiate; do
        cat >"$1/bin/$name" <<EOF
#!/bin/sh
# Nix reads what it is to do from its name. A build hook would be started without this linker.
export NIX_CONF_DIR=$nix_home/etc NIX_CONFIG="build-hook =
\$NIX_CONFIG"
exec $nix_home/root/usr/lib64/ld-linux-x86-64.so.2 --argv0 $name \\
    --library-path $nix_home/root/usr/lib/x86_64-linux-gnu $nix_home/root/usr/bin/nix "\$@"
EOF
        chmod 755 "$1/bin/$name"
    done
    mkdir -p "$1/etc"
    cat >"$1/etc/nix.conf" <<EOF
experimental-features = nix-command flakes
sandbox = true
sandbox-fallback = false
sandbox-paths = /bin/sh=$nix_home/root/usr/bin/bash-static
build-users-group =
substituters =
flake-registry =
EOF
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
    lint | nix) ;;
    *) die "what is '$part'? Known: run, test, lint, fuzz, nix" ;;
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
        crate nixfmt_rs nixfmt 0.5 0.5.3 --debug
        crate deadnix deadnix 1.3 1.3.1 --debug
        ;;
    fuzz) crate cargo-fuzz cargo-fuzz 0.13 0.13.2 ;;
    nix) nix ;;
    esac
done
# The tools are kept, what they were built from is not: gigabytes.
rm -rf "$cache/build" "$cache/wheels"
