# SPDX-License-Identifier: MIT
"""What a Data Mover is started for: at which end of which stream of blocks it works.

A backup has a `source` on the proxy, which reads the VM's disk, and a `target` on the repository, which writes the restore point.
A restore has a `reader` on the repository, which reads the restore point, and into a VM also a `writer` on the proxy, which
writes the VM's disk.
"""

from __future__ import annotations

from typing import Literal, get_args

Role = Literal["source", "target", "reader", "writer"]
ROLES: tuple[Role, ...] = get_args(Role)
