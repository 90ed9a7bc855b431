# SPDX-License-Identifier: MIT
"""Instant recovery: a disk of a restore point served over NBD straight from the repository, before anything is restored.

nbdkit owns the protocol; `plugin` answers it from `disk`. Reads come from the chain, a cluster at a time, each checked against
its digest (damaged data is an I/O error, never wrong bytes). Writes go to an *overlay*, a file of its own: the restore point
is never changed, and its chain is locked against merging as long as the process lives.

    python -m engine.recovery --point FOLDER --disk KEY (--unix PATH | --listen HOST:PORT) [--overlay FILE]

prints the NBD URI as its first line once NBD answers, ends on SIGTERM (connected clients are cut), dies with its parent.
With `--config FILE [--port N]` in place of an address it serves for that machine's Transport Service: on its address, on a free
port of its `mover_ports`, over TLS that asks clients for a certificate of the same CA; the first line is `{"port": N}` or
`{"error": …}`.
Without `--overlay` what was written is gone at the end; with it, the next start with the same file continues there.
"""
