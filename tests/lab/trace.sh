#!/usr/bin/env bash
# Records a boot trace (docs/boot-trace.md); started by ./x lab trace IMAGE OUT.
#
# Boots IMAGE to its settled desktop under QEMU's CPU emulation from nbdkit with its log filter, and makes a trace of the log in which
# what lies in files is named by them. About 12 minutes of a core. IMAGE is not written to. Mounting it (read-only) at the end needs root.
set -euo pipefail
target=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/splice/target}
export PATH=$PATH:/usr/sbin:/sbin
as_root=
if [ "$(id -u)" != 0 ]; then as_root=sudo; fi

# A boot has settled when the disk is not read for so long, and not before it has come as far as a file system.
SETTLED_SECONDS=75
READS_MIN=1000
LIMIT_SECONDS=${LIMIT_SECONDS:-3600}

die() {
    printf 'lab: %s\n' "$*" >&2
    exit 1
}

[ $# = 2 ] && [ -f "$1" ] || die "usage: ./x lab trace IMAGE OUT"
[ -z "$as_root" ] || command -v sudo >/dev/null || die "mounting the image needs root; run it as root"
begun=$SECONDS reads=0
image=$(realpath "$1")
out=$(realpath -m "$2")
work=$(mktemp -d)
server= machine=
clean_up() {
    set +e
    [ -z "$machine" ] || kill "$machine" 2>/dev/null
    [ -z "$server" ] || kill "$server" 2>/dev/null
    wait
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
nbdkit -f -r -U "$work/nbd.sock" --filter=log file "$image" "logfile=$work/log" &
server=$!
until [ -S "$work/nbd.sock" ]; do
    kill -0 "$server" || die "nbdkit ended"
    sleep 0.1
done
# Writes go into an overlay, so that what is read is the image's own bytes.
qemu-img create -q -f qcow2 -F raw -b "nbd+unix:///?socket=$work/nbd.sock" "$work/overlay.qcow2"
qemu-system-x86_64 -accel tcg,thread=multi -M q35 -cpu max -smp 2 -m 2048 -nic none -display none -serial none -monitor none \
    -drive "file=$work/overlay.qcow2,if=virtio,format=qcow2" &
machine=$!
now=$SECONDS
until [ "$reads" -ge "$READS_MIN" ] && [ $((SECONDS - now)) -ge "$SETTLED_SECONDS" ]; do
    sleep 1
    kill -0 "$machine" 2>/dev/null || die "QEMU ended before the desktop had settled"
    [ $((SECONDS - begun)) -lt "$LIMIT_SECONDS" ] || die "the desktop has not settled after $LIMIT_SECONDS s"
    before=$reads
    reads=$(grep -c ' Read id' "$work/log" || true)
    [ "$reads" = "$before" ] || now=$SECONDS
    [ $(((SECONDS - begun) % 60)) != 0 ] || echo "lab: $((SECONDS - begun)) s, $((reads)) reads" >&2
done
kill "$machine" "$server"
# What was recorded is worth keeping, should its conversion not work here: `bench trace LOG OUT --image IMAGE` does it again.
cp "$work/log" "$out.log"
$as_root "$target/debug/bench" trace "$work/log" "$out" --image "$image"
rm -f "$out.log"
