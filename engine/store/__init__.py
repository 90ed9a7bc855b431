# SPDX-License-Identifier: MIT
"""Restore points on a repository's disk: how they are written, verified, listed and read.

Concepts
    restore point   one folder `<repository>/<job>/<vm>/<point>/`: a qcow2 file and a digest file per disk, a manifest.
    cluster         64 KiB of a disk: the unit that is compressed, hashed and looked up.
    digest          BLAKE3 of a cluster's bytes, taken where the source was read; 32 zero bytes: the cluster reads as zeros.
    root            BLAKE3 of a disk's whole digest file; the manifest carries it.
    visible         the folder has its final name. That is one rename, after verification and after everything is synced.

Modules: `durable` (system calls), `segments` (streaming file), `clusters` (cut, hash, compress), `layout`, `writer`,
`reader` (qcow2), `digests`, `verify`, `manifest`, `points` (begin, commit, abort, list), `restore` (to a sparse file).
"""
