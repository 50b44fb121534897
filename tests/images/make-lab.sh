#!/bin/bash
# Makes the machine in which the nested lab runs desktops on KVM (./x lab nested): a minimal Debian whose kernel has KVM.
#
#   make-lab.sh OUTDIR
#
#   lab.raw                      2 GiB, ext4 without partitions, starts /lab/init
#   lab.vmlinuz, lab.initrd      its kernel and initial RAM disk
#
# Needs root. Safe to run again: what is current is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

IMAGE_BYTES=$((2 * 1024 * 1024 * 1024))
PACKAGES=linux-image-amd64,udev,kmod,iproute2,busybox-static,qemu-system-x86,qemu-utils,dnsmasq-base,rsync

[ $# -eq 1 ] || die "usage: make-lab.sh OUTDIR"
[ "$(id -u)" = 0 ] || die "run it as root"
own_mounts "$@"
need mmdebstrap:mmdebstrap mke2fs:e2fsprogs
start_work "$1"

image=$OUT/lab.raw
if is_current "$image"; then
    say "lab.raw is current"
    exit 0
fi
root=$WORK/root
find_mirrors
say "lab.raw: installing Debian $SUITE"
mmdebstrap --quiet --mode=root --variant=minbase --dpkgopt=force-unsafe-io --include="$PACKAGES" \
    --aptopt='APT::Install-Recommends "false"' "$SUITE" "$root" "deb $MIRROR $SUITE main" 9>&-
mkdir "$root/lab"
cp "$root"/boot/vmlinuz-* "$OUT/lab.vmlinuz"
cp "$root"/boot/initrd.img-* "$OUT/lab.initrd"
truncate -s "$IMAGE_BYTES" "$image.part"
mke2fs -q -F -t ext4 -d "$root" "$image.part"
rm -rf --one-file-system "$root"
finish "$image"
