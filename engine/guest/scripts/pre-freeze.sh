#!/bin/sh
# SPDX-License-Identifier: MIT
# Pre-freeze script, run in the guest before the snapshot: freezes every writable ext4 or xfs file system on a block device.
# A script of your own may stop or flush an application instead; exit 0 means "ready for the snapshot".
set -eu
frozen=""
undo() { for m in $frozen; do fsfreeze -u "$m" || true; done; }
trap 'undo; exit 1' HUP INT TERM
sync
for m in ${FREEZE_MOUNTS:-$(awk '$1 ~ "^/dev/" && $3 ~ "^(ext4|xfs)$" && $4 ~ "(^|,)rw(,|$)" && !seen[$1]++ { print $2 }' /proc/mounts)}; do
  if fsfreeze -f "$m"; then
    frozen="$m $frozen"
  else
    undo
    exit 1
  fi
done
echo "frozen: ${frozen:-nothing}"
