#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The test suite: checks first, then all tests, two files at a time; arguments go to pytest instead of the defaults.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/lint.sh
if [ $# -gt 0 ]; then exec .venv/bin/pytest "$@"; fi

# Labs of a whole run take gigabytes: they stay only where a test failed. (Short, since Unix socket paths go below it.)
kept="/tmp/vt$$"
.venv/bin/pytest -n 2 --dist loadfile --basetemp "$kept" --tb short --durations 15 -ra
rm -rf --one-file-system "$kept" || echo "test: $kept could not be removed whole"
