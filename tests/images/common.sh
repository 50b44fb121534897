# Shared by the image makers in this folder: mirrors, stamps, loop mounts and their clean-up. Sourced, not run.
# Everything is made under a name ending in .part and renamed when it is whole, so that a killed run leaves nothing
# that looks finished. Mounts are made in a namespace of their own and loop devices belong to their mounts, so that both are gone
# however a run ends; the EXIT trap removes the rest. The checkout may go away in the midst of a run: nothing is read from it late.

export LC_ALL=C DEBIAN_FRONTEND=noninteractive
SUITE=bookworm
PARTITION_START=$((1024 * 1024))
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SELF=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
# Of the scripts that make a result.
RECIPE=$(cat "$HERE/common.sh" "$SELF")

say() { printf '%s  %s\n' "$(date -u +%T)" "$*"; }
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Starts the script once more where its mounts are nobody else's, and end with it. Call it as root.
own_mounts() { # ARGUMENT...
    [ "${SPLICE_OWN_MOUNTS:-}" = "$$" ] || SPLICE_OWN_MOUNTS=$$ exec unshare --mount --propagation private -- bash "$SELF" "$@"
}

need() { # PROGRAM:PACKAGE...
    local pair
    for pair; do
        command -v "${pair%%:*}" >/dev/null || die "${pair%%:*} is missing; install the Debian package ${pair##*:}"
    done
}

# Asked for by whoever makes something, not where all is current: a machine without package lists can use what it has.
# The Debian mirrors that this machine's own apt uses, unless MIRROR and SECURITY_MIRROR name others.
find_mirrors() {
    MIRROR=${MIRROR:-$(target_uri "$SUITE")}
    SECURITY_MIRROR=${SECURITY_MIRROR:-$(target_uri "$SUITE-security")}
    [ -n "$MIRROR" ] && [ -n "$SECURITY_MIRROR" ] ||
        die "apt on this machine knows no mirror of $SUITE (run apt-get update), and MIRROR, SECURITY_MIRROR are not set"
}
target_uri() { # CODENAME or SUITE
    apt-get indextargets --format '$(CODENAME) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk -v name="$1" '($1 == name || $2 == name) && !found { print $3; found = 1 }'
}

# A result is current when its stamp holds the hash of the scripts that make it and of the stage before it.
stamp_of() { # [PREVIOUS-STAMP-FILE]
    { printf '%s\n' "$RECIPE"; [ -z "${1:-}" ] || cat "$1"; } | sha256sum | cut -d' ' -f1
}
is_current() { # FILE [PREVIOUS-STAMP-FILE]
    [ -f "$1" ] && [ -f "$1.stamp" ] && [ "$(cat "$1.stamp")" = "$(stamp_of "${2:-}")" ]
}
finish() { # FILE [PREVIOUS-STAMP-FILE]
    mv "$1.part" "$1"
    stamp_of "${2:-}" >"$1.stamp"
    say "$(basename "$1"): $(stat -c %s "$1") bytes, $(($(stat -c %b "$1") * 512)) allocated"
}

WORK=
LOOP=
start_work() { # OUTDIR
    mkdir -p "$1"
    OUT=$(cd "$1" && pwd)
    # Two runs into one folder take turns; the second finds the first one's results current.
    exec 9>"$OUT/.lock"
    flock -n 9 || {
        say "another run is making images in $OUT; waiting"
        flock 9
    }
    # Of runs that were killed; nobody else works here while we have the lock.
    rm -rf --one-file-system "$OUT"/.work.* 2>/dev/null || true
    WORK=$(mktemp -d -p "$OUT" .work.XXXXXX)
    MNT=$WORK/mnt
    mkdir "$MNT"
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP
}
clean_up() {
    local status=$?
    set +e
    [ -n "$WORK" ] || exit "$status"
    if mountpoint -q "$MNT"; then umount -R "$MNT" || umount -R -l "$MNT"; fi
    [ -z "$LOOP" ] || losetup -d "$LOOP"
    # --one-file-system: were anything still mounted below, it must not be emptied.
    rm -rf --one-file-system "$WORK"
    exit "$status"
}

attach() { # IMAGE: mounts its only partition at $MNT
    local bytes
    bytes=$(partition_bytes "$(stat -c %s "$1")")
    # Device nodes may be missing in containers; the kernel makes them on the first losetup -f.
    LOOP=$(losetup -f --show -o "$PARTITION_START" --sizelimit "$bytes" "$1")
    # noinit_itable: the kernel would otherwise fill unused inode tables with zeros that are really written.
    mount -o noatime,noinit_itable "$LOOP" "$MNT"
    # From now on the kernel frees it when it is unmounted, whoever does that.
    losetup -d "$LOOP"
    LOOP=
}
detach() {
    sync -f "$MNT"
    umount "$MNT"
}
# The partition leaves 1 MiB at each end, room for either partition table.
partition_bytes() { echo $(($1 - 2 * PARTITION_START)); } # IMAGE-BYTES

trim() {
    # What was freed can be trimmed only after the journal has committed it.
    sync -f "$MNT"
    fstrim "$MNT"
}

enter_chroot() {
    mount -t proc proc "$MNT/proc"
    mount -t sysfs -o ro sysfs "$MNT/sys"
    mount --bind /dev "$MNT/dev"
    cp -L /etc/resolv.conf "$MNT/etc/resolv.conf"
    # No service is to start inside the chroot.
    printf '#!/bin/sh\nexit 101\n' >"$MNT/usr/sbin/policy-rc.d"
    chmod 755 "$MNT/usr/sbin/policy-rc.d"
}
leave_chroot() {
    rm -f "$MNT/usr/sbin/policy-rc.d"
    : >"$MNT/etc/resolv.conf"
    umount "$MNT/dev" "$MNT/sys" "$MNT/proc"
}
# Without descriptor 9: an agent that a package leaves running must not keep the folder's lock.
in_chroot() { chroot "$MNT" /usr/bin/env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@" 9>&-; }

write_sources() { # ROOT: base, updates and security suites
    cat >"$1/etc/apt/sources.list" <<SOURCES
deb $MIRROR $SUITE main
deb $MIRROR $SUITE-updates main
deb $SECURITY_MIRROR $SUITE-security main
SOURCES
}

# A version made as administrators make it: packages upgraded and added in the running system's own file system.
upgrade_in_place() { # FROM TO PACKAGE...
    local from=$1 to=$2
    shift 2
    find_mirrors
    cp --sparse=always "$from" "$to.part"
    attach "$to.part"
    enter_chroot
    write_sources "$MNT"
    say "$(basename "$to"): package lists"
    in_chroot apt-get -q=2 -o Acquire::Check-Valid-Until=false update
    say "$(basename "$to"): full upgrade"
    in_chroot apt-get -q=2 -y -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 full-upgrade >"$WORK/apt.log" 2>&1 ||
        { tail -20 "$WORK/apt.log" >&2; die "the upgrade did not complete"; }
    [ $# -eq 0 ] || say "$(basename "$to"): installing $*"
    [ $# -eq 0 ] || in_chroot apt-get -q=2 -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@" >"$WORK/apt.log" 2>&1 ||
        { tail -20 "$WORK/apt.log" >&2; die "the installation did not complete"; }
    in_chroot apt-get clean
    rm -rf "$MNT"/var/lib/apt/lists/*
    in_chroot dpkg-query -W >"$to.packages"
    leave_chroot
    trim
    say "$(basename "$to"): $(df -B1 --output=used "$MNT" | tail -1) bytes in its file system"
    detach
}
