# SPDX-License-Identifier: MIT
"""Single files of a disk that can be read at any offset, without mounting anything and without root.

`partitions` finds the file system on a disk, `ext4` reads it, `files` lists and writes out what it holds.
"""
