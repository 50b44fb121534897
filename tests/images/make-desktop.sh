#!/bin/bash
# Makes the large desktop image of the slow lane and of the update measurements, in three versions.
#
#   make-desktop.sh OUTDIR [v1|v2|v3]...   (default: v1)
#
#   desktop-v1.raw   10 GiB, MBR, one ext4 partition: Debian 12 with XFCE, boots by BIOS (extlinux) or direct kernel
#   desktop-v2.raw   v1 after a full upgrade from the updates and security suites
#   desktop-v3.raw   v2 with GIMP and Thunderbird
#   desktop-v1.vmlinuz, desktop-v1.initrd    its kernel and initial RAM disk
#
# A version's predecessors are made when they are missing. `user` is logged in at start; the password is `user`.
# Needs root, loop devices and about 6 GB a version. Safe to run again: what is current is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

IMAGE_BYTES=$((10 * 1024 * 1024 * 1024))
ROOT_UUID=a4d8b7c2-19e6-4b55-8d3f-52f0c6e1937a
V1_PACKAGES=task-xfce-desktop,linux-image-amd64,openssh-server,qemu-guest-agent,spice-vdagent,systemd-sysv,sudo,ca-certificates

[ $# -ge 1 ] || die "usage: make-desktop.sh OUTDIR [v1|v2|v3]..."
[ "$(id -u)" = 0 ] || die "run it as root"
own_mounts "$@"
need mmdebstrap:mmdebstrap sfdisk:fdisk mke2fs:e2fsprogs losetup:mount fstrim:util-linux unshare:util-linux extlinux:extlinux
MBR_CODE=/usr/lib/syslinux/mbr/mbr.bin
[ -f "$MBR_CODE" ] || die "$MBR_CODE is missing; install the Debian package syslinux-common"
start_work "$1"
shift

make_v1() {
    local image=$OUT/desktop-v1.raw
    find_mirrors
    rm -f "$image.part"
    truncate -s "$IMAGE_BYTES" "$image.part"
    echo "start=2048, size=$(($(partition_bytes "$IMAGE_BYTES") / 512)), type=83, bootable" |
        sfdisk --quiet --no-reread --no-tell-kernel --label dos "$image.part"
    dd if="$MBR_CODE" of="$image.part" bs=440 count=1 conv=notrunc status=none
    # extlinux reads 32-bit group descriptors only, hence no 64bit feature; the rest is the default.
    mke2fs -q -t ext4 -b 4096 -O ^64bit -L root -U "$ROOT_UUID" -E "offset=$PARTITION_START" \
        "$image.part" "$(($(partition_bytes "$IMAGE_BYTES") / 1024))k"
    attach "$image.part"
    say "desktop-v1.raw: installing Debian $SUITE with XFCE (several minutes)"
    mmdebstrap --quiet --mode=root --variant=important --skip=check/empty --dpkgopt=force-unsafe-io \
        --aptopt='APT::Install-Recommends "true"' --include="$V1_PACKAGES" "$SUITE" "$MNT" "deb $MIRROR $SUITE main" 9>&-

    say "desktop-v1.raw: configuring"
    echo "UUID=$ROOT_UUID / ext4 errors=remount-ro 0 1" >"$MNT/etc/fstab"
    echo desktop >"$MNT/etc/hostname"
    printf '127.0.0.1\tlocalhost\n127.0.1.1\tdesktop\n::1\tlocalhost ip6-localhost\n' >"$MNT/etc/hosts"
    : >"$MNT/etc/machine-id"
    chroot "$MNT" useradd -m -s /bin/bash -G sudo user
    printf 'user:user\nroot:root\n' | chroot "$MNT" chpasswd
    mkdir -p "$MNT/etc/lightdm/lightdm.conf.d" "$MNT/boot/extlinux"
    printf '[Seat:*]\nautologin-user=user\nautologin-session=xfce\n' >"$MNT/etc/lightdm/lightdm.conf.d/50-autologin.conf"
    cat >"$MNT/boot/extlinux/extlinux.conf" <<LOADER
DEFAULT linux
PROMPT 0
TIMEOUT 1
LABEL linux
  LINUX /vmlinuz
  INITRD /initrd.img
  APPEND root=UUID=$ROOT_UUID ro console=tty0 console=ttyS0,115200 quiet
LOADER
    extlinux --install "$MNT/boot/extlinux" >"$WORK/extlinux.log" 2>&1 || { cat "$WORK/extlinux.log" >&2; die "extlinux did not install"; }
    cp "$MNT"/boot/vmlinuz-* "$OUT/desktop-v1.vmlinuz"
    cp "$MNT"/boot/initrd.img-* "$OUT/desktop-v1.initrd"
    chroot "$MNT" dpkg-query -W >"$image.packages"
    trim
    detach
    finish "$image"
}

make_version() { # NUMBER
    local image=$OUT/desktop-v$1.raw before=$OUT/desktop-v$(($1 - 1)).raw
    case $1 in
    1)
        if is_current "$image"; then say "desktop-v1.raw: current"; else make_v1; fi
        return
        ;;
    2) make_version 1 ;;
    3) make_version 2 ;;
    esac
    if is_current "$image" "$before.stamp"; then
        say "$(basename "$image"): current"
        return
    fi
    case $1 in
    2) upgrade_in_place "$before" "$image" ;;
    3) upgrade_in_place "$before" "$image" gimp thunderbird ;;
    esac
    finish "$image" "$before.stamp"
}

[ $# -gt 0 ] || set -- v1
for version; do
    case $version in
    v1 | v2 | v3) make_version "${version#v}" ;;
    *) die "no version $version; there are v1, v2 and v3" ;;
    esac
done
