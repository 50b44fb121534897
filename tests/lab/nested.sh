#!/usr/bin/env bash
# Desktops on splice-vmm where no hardware KVM is; started by ./x lab nested [CHECK…].
#
# QEMU emulates a processor with AMD-V, so that a Debian kernel in its machine (L1) has KVM with hardware's semantics. In there, splice-vmm
# runs unmodified Debian desktops (L2), and lab-guest uses them. Serial logs, screenshots and a report page are left in the folder that is
# told at the end. About ten minutes on two cores.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/splice/target}")
images=${XDG_CACHE_HOME:-$HOME/.cache}/splice/images
export PATH=$PATH:/usr/sbin:/sbin

MEMORY_MIB=2048
LIMIT_SECONDS=${LIMIT_SECONDS:-3600}
# What the checks leave comes out of the machine as a tar archive on a disk of this size.
OUT_BYTES=$((256 * 1024 * 1024))

die() {
    printf 'lab: %s\n' "$*" >&2
    exit 1
}
say() { printf '==> %s\n' "$*" >&2; }

[ "$(id -u)" = 0 ] || exec sudo env "CARGO_TARGET_DIR=$target" "XDG_CACHE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}" bash "$here/nested.sh" "$@"

say "images in $images (made once, then kept)"
bash "$here/../images/make-small.sh" "$images" v1 >&2
bash "$here/../images/make-lab.sh" "$images" >&2

out=${OUT:-$target/lab/nested}
rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
machine=
clean_up() {
    set +e
    [ -z "$machine" ] || kill "$machine" 2>/dev/null
    wait
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

# What changes from run to run goes in by a disk of its own: programs, guest and what to do.
mkdir -p "$work/lab"
for program in splice-vmm lab-guest; do
    strip -o "$work/lab/$program" "$target/debug/$program"
done
ln "$images/debian-v1.vmlinuz" "$work/lab/kernel" 2>/dev/null || cp "$images/debian-v1.vmlinuz" "$work/lab/kernel"
ln "$images/debian-v1.initrd" "$work/lab/initrd" 2>/dev/null || cp "$images/debian-v1.initrd" "$work/lab/initrd"
cp --sparse=always "$images/debian-v1.raw" "$work/lab/disk"
# The kernel of L1, which has more drivers than that of a cloud image.
mkdir -p "$work/lab/generic"
cp "$images/lab.vmlinuz" "$work/lab/generic/kernel"
cp "$images/lab.initrd" "$work/lab/generic/initrd"
printf '%s\n' "$*" >"$work/lab/checks"
cat >"$work/lab/init" <<'INIT'
#!/bin/sh
# The first and only process of L1.
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs -o size=1500m tmp /tmp; mount -t tmpfs run /run
modprobe kvm-amd; modprobe tun; modprobe nbd 2>/dev/null
ip link set lo up
mkdir -p /tmp/out
/lab/splice-vmm check
/lab/lab-guest /lab /lab /tmp/out $(cat /lab/checks)
tar cf /dev/vdc -C /tmp/out .
sync
echo LAB ENDS
busybox poweroff -f
INIT
chmod +x "$work/lab/init"
say "a disk for what is tested"
mke2fs -q -t ext4 -d "$work/lab" "$work/lab.img" 1500M
truncate -s "$OUT_BYTES" "$work/out.img"
qemu-img create -q -f qcow2 -F raw -b "$images/lab.raw" "$work/root.qcow2"

say "the machine boots"
qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max,+svm -smp 2 -m "$MEMORY_MIB" -nodefaults -display none -no-reboot \
    -serial "file:$out/l1.serial" -monitor none -nic none \
    -kernel "$images/lab.vmlinuz" -initrd "$images/lab.initrd" \
    -append 'console=ttyS0 root=/dev/vda rw init=/bin/sh mitigations=off panic=-1 -- -c "mount /dev/vdb /lab && exec /lab/init"' \
    -drive "file=$work/root.qcow2,if=virtio,format=qcow2" \
    -drive "file=$work/lab.img,if=virtio,format=raw" \
    -drive "file=$work/out.img,if=virtio,format=raw" &
machine=$!
begun=$SECONDS shown=0
while kill -0 "$machine" 2>/dev/null; do
    sleep 1
    [ $((SECONDS - begun)) -lt "$LIMIT_SECONDS" ] || die "the checks did not end within $LIMIT_SECONDS s; see $out/l1.serial"
    lines=$(grep -acE '^(CHECK|NOTE) ' "$out/l1.serial" || true)
    if [ "$lines" -gt "$shown" ]; then
        grep -aE '^(CHECK|NOTE) ' "$out/l1.serial" | sed -n "$((shown + 1)),${lines}p" | tr -d '\r'
        shown=$lines
    fi
done
wait "$machine" || die "QEMU failed; see $out/l1.serial"
machine=
tar xf "$work/out.img" -C "$out" 2>/dev/null || true
bash "$here/report.sh" "$out" >"$out/report.html"
say "logs and report: $out/report.html"
grep -aq '^LAB ENDS' "$out/l1.serial" || die "the machine ended before the checks did; see $out/l1.serial"
! grep -aq '^CHECK .* FAILED' "$out/l1.serial" || die "a check failed; see $out"
grep -aq '^CHECK .* ok' "$out/l1.serial" || die "no check ran; see $out/l1.serial"
