#!/bin/bash
# Boots an image made here to its login prompt and says how long that took and how much of the disk it read.
#
#   boot-check.sh IMAGE [SECONDS]
#
# IMAGE is OUTDIR/NAME-v1.raw or a later version; the kernel is taken from NAME-v1.vmlinuz and NAME-v1.initrd beside it.
# QEMU's own CPU emulation is used, so that the figure means the same on every machine. The image is not written to.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# -ge 1 ] && [ -f "$1" ] || die "usage: boot-check.sh IMAGE [SECONDS]"
need qemu-system-x86_64:qemu-system-x86 blkid:util-linux
image=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
limit=${2:-300}
stem=${image%-v*.raw}-v1
work=$(mktemp -d)
qemu=
trap 'set +e; [ -z "$qemu" ] || kill "$qemu" 2>/dev/null; rm -rf "$work"' EXIT

uuid=$(blkid -p -O "$PARTITION_START" -s UUID -o value "$image") || die "no file system at 1 MiB in $image"
mkfifo "$work/monitor"
exec 8<>"$work/monitor"
begun=$(date +%s%N)
qemu-system-x86_64 -accel tcg,thread=multi -M q35 -cpu max -smp 2 -m 1024 -nodefaults -no-user-config \
    -kernel "$stem.vmlinuz" -initrd "$stem.initrd" -append "root=UUID=$uuid ro console=ttyS0" \
    -drive "file=$image,if=virtio,format=raw,snapshot=on" -nic none -display none \
    -serial "file:$work/serial" -monitor stdio <&8 >"$work/answers" 2>"$work/errors" &
qemu=$!
until grep -aq 'login:' "$work/serial" 2>/dev/null; do
    kill -0 "$qemu" 2>/dev/null || { cat "$work/errors" >&2; die "QEMU ended before the login prompt"; }
    if [ $((($(date +%s%N) - begun) / 1000000000)) -ge "$limit" ]; then
        tail -n 20 "$work/serial" >&2
        die "no login prompt after $limit s"
    fi
    sleep 0.2
done
tenths=$((($(date +%s%N) - begun) / 100000000))
printf 'info blockstats\nquit\n' >&8
wait "$qemu" || true
qemu=
read_bytes=$(grep -ao 'rd_bytes=[0-9]*' "$work/answers" | head -1 | cut -d= -f2)
say "$(basename "$image"): login prompt after $((tenths / 10)).$((tenths % 10)) s, ${read_bytes:-unknown} bytes read from the disk"
