#!/usr/bin/env bash
# A desktop's disk over two lines, from two kinds of file; see tests/scenarios/tests/desktop_disk.rs. Needs root for making the disk,
# 25 GB and a quarter of an hour. Safe to run again: the disks are kept.
set -euo pipefail
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
disks=${XDG_CACHE_HOME:-$HOME/.cache}/splice/images
export PATH=$PATH:/usr/sbin:/sbin
"$tree/tests/images/make-desktop.sh" "$disks" v1
qcow2=$disks/desktop-v1.qcow2
if [ ! -f "$qcow2" ] || [ "$qcow2" -ot "$disks/desktop-v1.raw" ]; then
    echo "==> the same disk as a compressed qcow2 file"
    qemu-img convert -c -O qcow2 "$disks/desktop-v1.raw" "$qcow2.part"
    mv "$qcow2.part" "$qcow2"
fi
cd "$tree"
SPLICE_DISKS=$disks exec cargo test --locked -p scenarios --test desktop_disk -- --ignored --nocapture
