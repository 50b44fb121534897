#!/bin/bash
# Makes the small Debian desktop image that the demo, the tests and the benches boot, in two versions.
#
#   make-small.sh OUTDIR [v1|v2]...        (default: both)
#
#   debian-v1.raw   2 GiB, GPT, one ext4 partition: Debian 12 with systemd, ssh and a login on the serial port
#   debian-v2.raw   v1 after a full upgrade and the installation of vim, git and Python, made in place
#   debian-v1.vmlinuz, debian-v1.initrd    its kernel and initial RAM disk, for checks without our own inspection
#
# Log in as user/user or root/root. Needs root, and loop devices for v2. Safe to run again: what is current is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

IMAGE_BYTES=$((2 * 1024 * 1024 * 1024))
ROOT_UUID=3c0ce1a2-8f4b-4e0e-9a51-6d2b7f90c5d1
V1_PACKAGES=linux-image-cloud-amd64,systemd-sysv,udev,dbus,openssh-server,ca-certificates,sudo

[ $# -ge 1 ] || die "usage: make-small.sh OUTDIR [v1|v2]..."
[ "$(id -u)" = 0 ] || die "run it as root"
own_mounts "$@"
need mmdebstrap:mmdebstrap sfdisk:fdisk mke2fs:e2fsprogs losetup:mount fstrim:util-linux unshare:util-linux
start_work "$1"
shift

make_v1() {
    local image=$OUT/debian-v1.raw root=$WORK/root
    find_mirrors
    say "debian-v1.raw: installing Debian $SUITE"
    mmdebstrap --quiet --mode=root --variant=important --dpkgopt=force-unsafe-io \
        --include="$V1_PACKAGES" "$SUITE" "$root" "deb $MIRROR $SUITE main" 9>&-

    echo "UUID=$ROOT_UUID / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
    echo desktop >"$root/etc/hostname"
    printf '127.0.0.1\tlocalhost\n127.0.1.1\tdesktop\n::1\tlocalhost ip6-localhost\n' >"$root/etc/hosts"
    : >"$root/etc/resolv.conf"
    # Every desktop is to have an identity of its own from its first boot.
    : >"$root/etc/machine-id"
    mkdir -p "$root/etc/systemd/network"
    printf '[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/80-dhcp.network"
    chroot "$root" useradd -m -s /bin/bash -G sudo user
    printf 'user:user\nroot:root\n' | chroot "$root" chpasswd
    # What waits for a network or works in the background would only blur a measured boot.
    chroot "$root" systemctl --quiet enable systemd-networkd.service serial-getty@ttyS0.service
    chroot "$root" systemctl --quiet mask systemd-networkd-wait-online.service networking.service \
        apt-daily.timer apt-daily-upgrade.timer man-db.timer e2scrub_all.timer e2scrub_reap.service
    chroot "$root" dpkg-query -W >"$image.packages"
    cp "$root"/boot/vmlinuz-* "$OUT/debian-v1.vmlinuz"
    cp "$root"/boot/initrd.img-* "$OUT/debian-v1.initrd"

    say "debian-v1.raw: laying out the disk"
    rm -f "$image.part"
    truncate -s "$IMAGE_BYTES" "$image.part"
    mke2fs -q -t ext4 -b 4096 -L root -U "$ROOT_UUID" -E "offset=$PARTITION_START" -d "$root" \
        "$image.part" "$(($(partition_bytes "$IMAGE_BYTES") / 1024))k"
    sfdisk --quiet --no-reread --no-tell-kernel "$image.part" <<TABLE
label: gpt
label-id: 0F6A1E0B-52D4-4C39-9B0C-7E5D3C1A8842
start=2048, size=$(($(partition_bytes "$IMAGE_BYTES") / 512)), type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=6E4D2C1B-3A59-4F70-8C66-1B2A9D0E7F35, name=root
TABLE
    rm -rf --one-file-system "$root"
    finish "$image"
}

make_v2() {
    local image=$OUT/debian-v2.raw
    upgrade_in_place "$OUT/debian-v1.raw" "$image" vim git python3
    finish "$image" "$OUT/debian-v1.raw.stamp"
}

[ $# -gt 0 ] || set -- v1 v2
for version; do
    case $version in
    v1 | v2)
        if is_current "$OUT/debian-v1.raw"; then say "debian-v1.raw: current"; else make_v1; fi
        [ "$version" = v2 ] || continue
        if is_current "$OUT/debian-v2.raw" "$OUT/debian-v1.raw.stamp"; then say "debian-v2.raw: current"; else make_v2; fi
        ;;
    *) die "no version $version; there are v1 and v2" ;;
    esac
done
