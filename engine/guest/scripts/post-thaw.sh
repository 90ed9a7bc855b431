#!/bin/sh
# SPDX-License-Identifier: MIT
# Post-thaw script, run in the guest right after the snapshot: thaws what the pre-freeze script froze. Safe to run twice.
set -u
for m in ${FREEZE_MOUNTS:-$(awk '$1 ~ "^/dev/" && $3 ~ "^(ext4|xfs)$" && $4 ~ "(^|,)rw(,|$)" && !seen[$1]++ { print $2 }' /proc/mounts)}; do
  fsfreeze -u "$m" 2>/dev/null || true # not frozen: nothing to do
done
echo "thawed"
