#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The demo: lab up, job `demo`, its flows, every disk restored, compared with the storage's truth and checked, lab down.
# Arguments go to `vadplab up` (for example --vcsim docker).
set -euo pipefail
cd "$(dirname "$0")/.."
vadplab=$PWD/.venv/bin/vadplab
lab=demo-$$
work=$(mktemp -d)
finish() { "$vadplab" --lab "$lab" down --purge >/dev/null 2>&1 || true; rm -rf "$work"; }
trap finish EXIT

title() { printf '\n== %s\n' "$*"; }

title "lab up"
"$vadplab" --lab "$lab" up "$@"
title "job demo"
"$vadplab" --lab "$lab" job run demo
title "steps and flows"
"$vadplab" --lab "$lab" flows
title "restore points"
"$vadplab" --lab "$lab" points
title "restore, compare with the storage's truth, check file system and ledger"
"$vadplab" --lab "$lab" points --json >"$work/points.json"
.venv/bin/python - "$work/points.json" >"$work/disks" <<'PY'
import json, sys
for point in json.load(open(sys.argv[1]))["points"]:
    for disk in point["disks"]:
        print(point["point"], point["vm"], disk["key"])
PY
[ -s "$work/disks" ] || { echo "demo: no restore point to restore" >&2; exit 1; }
while read -r point vm key; do
  "$vadplab" --lab "$lab" restore "$point" --vm "$vm" --disk "$key" --to "$work/$vm-$key.img" --compare --check
done <"$work/disks"
title "lab down"
trap - EXIT
"$vadplab" --lab "$lab" down --purge
rm -rf "$work"
