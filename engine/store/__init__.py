# SPDX-License-Identifier: MIT
"""Restore points on a repository's disk: how they are written, chained, verified, merged, imported and read.

Concepts
    restore point   one folder `<repository>/<job>/<vm>/<point>/`: three files a disk (qcow2, digests, blocks) and a manifest.
    chain           a full and the incrementals above it; each file names the one below as `../<parent>/<file>` (any QEMU tool
                    opens it). kind: full, incremental, or synthetic-full (made from a chain, without the source).
    cluster         64 KiB of a disk: the unit that is compressed, hashed and looked up.
    digest          BLAKE3 of a cluster's bytes, taken where the source was read; 32 zero bytes: the cluster reads as zeros.
                    The digest file of every point covers the whole disk, inherited clusters included.
    root            BLAKE3 of a disk's digest file; it speaks of content only, so merging below does not change it.
    block           64 KiB of a file: its digest finds changed bytes that are no data (tables, refcounts, padding, header).
    visible         the folder has its final name. That is one rename, after verification and after everything is synced.
    lock            flock on the VM's folder: held shared by every reader, exclusive for the instants that change visible points.

Modules: `durable` (system calls), `segments` (streaming file), `clusters` (cut, hash, compress), `layout`, `writer`,
`reader` (qcow2), `readback` (verification while writing), `digests`, `blocks`, `manifest`, `chain`, `checks`, `locks`, `target`
(one disk in the making), `points` (begin, commit, abort, list), `space`, `merge`, `retention`, `importing`, `verify` (one
file), `health` (all files, what is intact), `point_disk` (a disk of a visible point), `restore` (to a sparse file), `view`
(random reads), `ext4`, `files`.
"""
