#!/usr/bin/env bash
# Makes the Debian package of the agent that runs inside desktops.
#
#   branch/agent/make-deb.sh OUTDIR      writes OUTDIR/splice-agent_VERSION_amd64.deb and says its name
#
# The same sources and the same compiler make the same bytes: times are the last commit's (or SOURCE_DATE_EPOCH's), owners are root, paths of this machine
# are not in the program. The program is static: for musl where rustup has that target, else with Debian's libc.a. Needs no root.
set -euo pipefail
export LC_ALL=C
umask 022

die() {
    printf 'make-deb.sh: %s\n' "$*" >&2
    exit 1
}

[ $# -eq 1 ] || die "usage: make-deb.sh OUTDIR"
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
tree=$PWD
for program in cargo rustc dpkg-deb; do
    command -v "$program" >/dev/null || die "$program is missing"
done

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null) || SOURCE_DATE_EPOCH=1700000000
fi
export SOURCE_DATE_EPOCH

target=x86_64-unknown-linux-gnu
if [ -d "$(rustc --print sysroot)/lib/rustlib/x86_64-unknown-linux-musl" ]; then target=x86_64-unknown-linux-musl; fi
[ $target != x86_64-unknown-linux-gnu ] || compgen -G '/usr/lib/*/libc.a' >/dev/null ||
    die "no libc.a; install the Debian package libc6-dev, or rustup target add x86_64-unknown-linux-musl"

# A target folder of its own: other flags would have everything else built anew.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/splice/target}/agent
home=${CARGO_HOME:-$HOME/.cargo}
export RUSTFLAGS="-Ctarget-feature=+crt-static -Cstrip=symbols --remap-path-prefix=$tree=/splice --remap-path-prefix=$home=/cargo"
export CARGO_PROFILE_RELEASE_OPT_LEVEL=s CARGO_PROFILE_RELEASE_LTO=true CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1
export CARGO_PROFILE_RELEASE_PANIC=abort CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true CARGO_INCREMENTAL=0
cargo build --quiet --locked --release --package branch-agent --bin splice-agent --target $target
program=$CARGO_TARGET_DIR/$target/release/splice-agent

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)
[ -n "$version" ] || die "no version in Cargo.toml"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
units=$root/lib/systemd/system
install -D -m 755 "$program" "$root/usr/sbin/splice-agent"
install -D -m 644 branch/agent/splice-agent.service "$units/splice-agent.service"
# Enabled by the package itself: no script has to run, so that it can be installed into an image that is not running.
mkdir -p "$units/multi-user.target.wants"
ln -s ../splice-agent.service "$units/multi-user.target.wants/splice-agent.service"
install -D -m 644 LICENSE "$root/usr/share/doc/splice-agent/copyright"
mkdir -p "$root/DEBIAN"
cat >"$root/DEBIAN/control" <<CONTROL
Package: splice-agent
Version: $version
Architecture: amd64
Maintainer: Splice <splice@example.invalid>
Section: admin
Priority: optional
Installed-Size: $(find "$root/usr" "$root/lib" -type f -printf '%s\n' | awk '{ sum += $1 } END { print int((sum + 1023) / 1024) }')
Depends: e2fsprogs, util-linux, mount
Recommends: systemd, openssh-client
Description: agent of a Splice branch inside a desktop
 Gives a desktop the identity that its branch tells it, mounts the user's
 volume before people log on, and reports who is there and what is wrong.
 On a machine that no branch runs it ends at once.
CONTROL
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
deb=$out/splice-agent_${version}_amd64.deb
dpkg-deb --root-owner-group -Zxz -z6 --build "$root" "$work/new.deb" >/dev/null
mv "$work/new.deb" "$deb"
printf '%s\n' "$deb"
