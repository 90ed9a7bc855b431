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

The way of a block in, from the data link to the durable, verified point:
    `points`        begins the point in a hidden folder, with room kept for it (`space`) and the chain locked (`locks`); the
                    folder must be the repository that it was (`marker`).
    `clusters`      what comes over the link: a batch of clusters, each with its digest, compressed where it was read.
    `target`        one disk in the making takes the batch, notes its digests (`digests`) and passes it to
    `qcow2.writer`  which appends it to a qcow2 file (`qcow2.layout`: the format), and to
    `segments`      the thread that writes whole segments past the page cache.
    `readback`      reads it from the device again, expands it and compares it with its digest, while the stream goes on.
    `verify`        then walks the tables of the finished file; `digests` and `blocks` (digests of the files) are written.
    `checks`        binds files, `manifest` and parent together; `durable` syncs; `points` renames: the point is visible.

The way out, from the point to whoever asks:
    `point_disk`    opens a disk of a visible point, locked against merging: its manifests and files as a `chain`, and
    `qcow2.reader`  finds a cluster in whichever file of the chain holds it, checked against the digests of the file's blocks.
    `point_disk`    then gives batches as they are stored, or single clusters, expanded and compared with their digests.
    `view`          reads at any offset, for single files (`engine.filesystem`) and instant recovery; `restore` writes the disk to
                    a `sparse` file.

What else happens to points: `merge` turns a chain into a synthetic full, which `retention` asks for before points go; `importing`
takes points from elsewhere; `health` says what is damaged and what can be restored all the same.
"""
