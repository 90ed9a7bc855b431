# SPDX-License-Identifier: MIT
"""The files of a restore point's disks: qcow2 version 3 with zstd clusters, as any QEMU tool reads it.

`layout`: the bytes of header, tables and entries. `writer`: one file, by streaming, its header last. `reader`: one file or the top
of a chain of them.
"""
