#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# The test suite: checks first, then all tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/lint.sh
exec .venv/bin/pytest "$@"
