#!/bin/bash
# Makes the graphical desktop that the nested lab looks at (./x lab nested x): Debian's generic kernel, which has the driver of virtio's
# graphics adapter, a bare X server, a terminal and the agent of the clipboard.
#
#   make-x.sh OUTDIR
#
#   x.raw                    2 GiB, GPT, one ext4 partition; log in as root/root on the serial port
#   x.vmlinuz, x.initrd      its kernel and initial RAM disk
#
# /usr/local/bin/desktop starts X: a pattern of 16 by 16 pixels behind everything, and a terminal at the upper left that writes what is
# typed into /run/typed. Needs root. Safe to run again: what is current is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

IMAGE_BYTES=$((2 * 1024 * 1024 * 1024))
ROOT_UUID=8d8e1c55-90f3-4c0e-8a4e-1f1d0b5a7c26
PACKAGES=linux-image-amd64,systemd-sysv,udev,dbus,iproute2
PACKAGES=$PACKAGES,xserver-xorg-core,xserver-xorg-input-libinput,xinit,xterm,xfonts-base,x11-xserver-utils,xdotool,xclip,spice-vdagent
# Drivers of things that no virtual machine has: most of the kernel's package.
UNUSED_MODULES='drivers/net/wireless drivers/net/ethernet drivers/media drivers/gpu/drm/amd drivers/gpu/drm/i915 drivers/gpu/drm/nouveau
    drivers/gpu/drm/radeon drivers/infiniband drivers/scsi drivers/staging drivers/iio drivers/hwmon drivers/isdn sound net/wireless'

[ $# -eq 1 ] || die "usage: make-x.sh OUTDIR"
[ "$(id -u)" = 0 ] || die "run it as root"
own_mounts "$@"
need mmdebstrap:mmdebstrap sfdisk:fdisk mke2fs:e2fsprogs unshare:util-linux
start_work "$1"

image=$OUT/x.raw
if is_current "$image"; then
    say "x.raw is current"
    exit 0
fi
root=$WORK/root
find_mirrors
say "x.raw: installing Debian $SUITE"
mmdebstrap --quiet --mode=root --variant=minbase --dpkgopt=force-unsafe-io --include="$PACKAGES" \
    --aptopt='APT::Install-Recommends "false"' "$SUITE" "$root" "deb $MIRROR $SUITE main" 9>&-

echo "UUID=$ROOT_UUID / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
echo desktop >"$root/etc/hostname"
: >"$root/etc/machine-id"
echo root:root | chroot "$root" chpasswd
chroot "$root" systemctl --quiet enable serial-getty@ttyS0.service
# Nobody logs in at a seat here, so the agent must not look for who does.
echo 'SPICE_VDAGENTD_EXTRA_ARGS=-X' >"$root/etc/default/spice-vdagentd"
# Drawn by the processor: there is nothing else.
mkdir -p "$root/etc/X11/xorg.conf.d"
cat >"$root/etc/X11/xorg.conf.d/10-plain.conf" <<'CONF'
Section "Device"
    Identifier "adapter"
    Driver "modesetting"
    Option "AccelMethod" "none"
EndSection
Section "ServerFlags"
    Option "BlankTime" "0"
    Option "StandbyTime" "0"
    Option "OffTime" "0"
EndSection
CONF
# Eight columns of one colour, eight of the other, for eight rows; then the other way round.
cat >"$root/usr/local/share/squares.xbm" <<'XBM'
#define squares_width 16
#define squares_height 16
static char squares_bits[] = {
  0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00,
  0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff, 0x00, 0xff};
XBM
cat >"$root/usr/local/bin/session" <<'SESSION'
#!/bin/sh
xsetroot -bitmap /usr/local/share/squares.xbm -fg '#c04020' -bg '#2040c0'
spice-vdagent
exec xterm -geometry 60x12+20+20 -e sh -c 'cat >/run/typed'
SESSION
cat >"$root/usr/local/bin/desktop" <<'DESKTOP'
#!/bin/sh
# The agent's port is there when its driver is; X does not wait for it.
systemctl start spice-vdagentd.service
exec xinit /usr/local/bin/session -- /usr/lib/xorg/Xorg :0 vt7 -nolisten tcp -logfile /run/x.log
DESKTOP
chmod +x "$root"/usr/local/bin/session "$root"/usr/local/bin/desktop

kernel=$(basename "$root"/lib/modules/*)
for unused in $UNUSED_MODULES; do
    rm -rf "${root:?}/lib/modules/$kernel/kernel/$unused"
done
rm -rf "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/locale "$root"/var/cache/apt/archives
chroot "$root" depmod "$kernel"
# What the disk needs, and no more: it is unpacked on a processor that is emulated twice.
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/lab"
printf 'virtio_pci\nvirtio_blk\next4\n' >>"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k "$kernel" >"$WORK/initramfs.log" 2>&1 || {
    tail -20 "$WORK/initramfs.log" >&2
    die "no initial RAM disk"
}
cp "$root/boot/vmlinuz-$kernel" "$OUT/x.vmlinuz"
cp "$root/boot/initrd.img-$kernel" "$OUT/x.initrd"

say "x.raw: laying out the disk"
rm -f "$image.part"
truncate -s "$IMAGE_BYTES" "$image.part"
mke2fs -q -t ext4 -b 4096 -L root -U "$ROOT_UUID" -E "offset=$PARTITION_START" -d "$root" \
    "$image.part" "$(($(partition_bytes "$IMAGE_BYTES") / 1024))k"
sfdisk --quiet --no-reread --no-tell-kernel "$image.part" <<TABLE
label: gpt
start=2048, size=$(($(partition_bytes "$IMAGE_BYTES") / 512)), type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
TABLE
rm -rf --one-file-system "$root"
finish "$image"
