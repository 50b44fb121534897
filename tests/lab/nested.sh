#!/usr/bin/env bash
# Desktops on splice-vmm where no hardware KVM is; started by ./x lab nested [CHECK…].
#
# QEMU emulates a processor with AMD-V, so that a Debian kernel in its machine (L1) has KVM with hardware's semantics. In there, splice-vmm
# runs unmodified Debian desktops (L2), and lab-guest uses them. Serial logs, screenshots and a report page are left in the folder that is
# told at the end. Half an hour or more on two cores. Longer, and only by name: `./x lab nested demo` runs the whole demo in there,
# `./x lab nested xfce` boots a whole XFCE desktop, which may take an hour.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/splice/target}")
images=${XDG_CACHE_HOME:-$HOME/.cache}/splice/images
export PATH=$PATH:/usr/sbin:/sbin

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

# "demo" among the checks is the whole ./x demo, in there; the graphical desktops are made only for those who look at them.
with_demo='' with_x='' with_xfce=''
[ $# -gt 0 ] || with_x=yes
for check; do
    case $check in demo) with_demo=yes ;; x) with_x=yes ;; xfce) with_xfce=yes ;; esac
done
: "${LIMIT_SECONDS:=$([ "$with_xfce" ] && echo 10800 || echo 5400)}"

# What changes from run to run goes in by a disk of its own: programs, guest and what to do. Disks and boot files are those of the demo.
programs=(splice-vmm lab-guest)
# Room for the disk that a check works on, for a copy of that, and for the second machine's of two that are compared, with what they read.
disk_mib=2800 memory_mib=2048
mkdir -p "$work/lab"
if [ "$with_x" ]; then
    bash "$here/../images/make-x.sh" "$images" >&2
    disk_mib=$((disk_mib + 2000))
    mkdir "$work/lab/x"
fi
if [ "$with_demo" ]; then
    programs+=(xtask splice splice-datacenter splice-branch sim-wan)
    # Two stores, two caches and two desktops.
    disk_mib=$((disk_mib + 10500)) memory_mib=6144
    bash "$here/../images/make-small.sh" "$images" >&2
fi
if [ "$with_xfce" ]; then
    bash "$here/../images/make-desktop.sh" "$images" v1 >&2
    # 10 GiB, most of which is holes; the machine that has it wants 1.5 GiB and a cache behind it.
    disk_mib=$((disk_mib + 11500))
    [ "$memory_mib" -ge 4096 ] || memory_mib=4096
    mkdir "$work/lab/desktop"
fi
for program in "${programs[@]}"; do
    strip -o "$work/lab/$program" "$target/debug/$program"
done
own() { ln "$images/$1" "$work/lab/$2" 2>/dev/null || cp --sparse=always "$images/$1" "$work/lab/$2"; }
own debian-v1.vmlinuz kernel
own debian-v1.initrd initrd
own debian-v1.raw disk
[ ! "$with_demo" ] || own debian-v2.raw disk-v2
# The kernel of L1, which has more drivers than that of a cloud image.
mkdir "$work/lab/generic"
own lab.vmlinuz generic/kernel
own lab.initrd generic/initrd
if [ "$with_x" ]; then
    own x.vmlinuz x/kernel
    own x.initrd x/initrd
    own x.raw x/disk
fi
if [ "$with_xfce" ]; then
    own desktop-v1.vmlinuz desktop/kernel
    own desktop-v1.initrd desktop/initrd
    own desktop-v1.raw desktop/disk
fi
printf '%s\n' "$*" >"$work/lab/checks"
cat >"$work/lab/init" <<'INIT'
#!/bin/sh
# The first and only process of L1.
export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys 2>/dev/null; mount -t tmpfs -o size=50% tmp /tmp; mount -t tmpfs run /run
modprobe kvm-amd; modprobe tun; modprobe loop 2>/dev/null; modprobe nbd 2>/dev/null
ip link set lo up
mkdir -p /tmp/out
/lab/splice-vmm check
checks=
for check in $(cat /lab/checks); do [ "$check" = demo ] || checks="$checks $check"; done
# What desktops print goes out as it comes, so that it is there also when this machine does not live to hand it out.
stty -F /dev/ttyS1 raw
if [ "$checks" ] || [ ! -s /lab/checks ] || [ "$(cat /lab/checks)" != demo ]; then
    LAB_ECHO=/dev/ttyS1 /lab/lab-guest /lab /lab /tmp/out $checks
fi
case " $(cat /lab/checks) " in *" demo "*)
    began=$(date +%s)
    # Nothing is quick in a machine that is emulated.
    if /lab/xtask demo --image /lab/disk --image2 /lab/disk-v2 --login user:user --work /lab/demo --html /tmp/out/demo.html \
        --json /tmp/out/demo.json >/tmp/out/demo.log 2>&1; then
        echo "CHECK demo ok $(($(date +%s) - began))"
    else
        echo "CHECK demo FAILED $(tail -n 1 /tmp/out/demo.log)"
    fi
    cp -r /lab/demo/logs /tmp/out/demo-logs
    ;;
esac
tar cf /dev/vdc -C /tmp/out .
sync
echo LAB ENDS
busybox poweroff -f
INIT
chmod +x "$work/lab/init"
say "a disk for what is tested"
mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1 -d "$work/lab" "$work/lab.img" "${disk_mib}M"
truncate -s "$OUT_BYTES" "$work/out.img"
qemu-img create -q -f qcow2 -F raw -b "$images/lab.raw" "$work/root.qcow2"

say "the machine boots"
qemu-system-x86_64 -M q35 -accel tcg,thread=multi -cpu max,+svm -smp 1 -m "$memory_mib" -nodefaults -display none -no-reboot \
    -serial "file:$out/l1.serial" -serial "file:$out/desktops.serial" -monitor none -nic none \
    -kernel "$images/lab.vmlinuz" -initrd "$images/lab.initrd" \
    -append 'console=ttyS0 root=/dev/vda rw init=/bin/sh mitigations=off panic=-1 -- -c "mount /dev/vdb /lab && exec /lab/init"' \
    -drive "file=$work/root.qcow2,if=virtio,format=qcow2,cache=unsafe" \
    -drive "file=$work/lab.img,if=virtio,format=raw,cache=unsafe" \
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
