#!/bin/bash
# Makes a copy of a Debian image with the agent installed.
#
#   add-agent.sh OUTDIR IMAGE DEB      OUTDIR/NAME-agent.raw, where IMAGE is NAME.raw and DEB is of branch/agent/make-deb.sh
#
# IMAGE is one that make-small.sh or make-desktop.sh made: a partition at 1 MiB, ext4. Needs root and loop devices. Safe to run again: what is current
# is kept.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[ $# = 3 ] || die "usage: add-agent.sh OUTDIR IMAGE DEB"
[ "$(id -u)" = 0 ] || die "run it as root"
own_mounts "$@"
need losetup:mount fstrim:util-linux unshare:util-linux dpkg-deb:dpkg
from=$(realpath "$2")
deb=$(realpath "$3")
start_work "$1"
to=$OUT/$(basename "$from" .raw)-agent.raw

# What the result is made of, besides this script.
before=$WORK/before
{ cat "$from.stamp" 2>/dev/null || stat -c '%s %Y' "$from"; sha256sum <"$deb"; } >"$before"
if is_current "$to" "$before"; then
    say "$(basename "$to"): current"
    exit 0
fi
say "$(basename "$to"): installing $(basename "$deb")"
cp --sparse=always "$from" "$to.part"
attach "$to.part"
enter_chroot
cp "$deb" "$MNT/splice-agent.deb"
in_chroot dpkg --install /splice-agent.deb >"$WORK/dpkg.log" 2>&1 ||
    { tail -20 "$WORK/dpkg.log" >&2; die "the package was not installed"; }
rm "$MNT/splice-agent.deb"
leave_chroot
trim
detach
for file in vmlinuz initrd; do
    [ ! -f "${from%.raw}.$file" ] || cp "${from%.raw}.$file" "${to%.raw}.$file"
done
finish "$to" "$before"
