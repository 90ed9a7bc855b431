#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Style, types and the import contract.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/lint-imports
