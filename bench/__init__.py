# SPDX-License-Identifier: MIT
"""Measurements against established tools, as ratios: everything compared is run in turn on the same machine.

`python -m bench [--size 512MiB] [--rounds 3] [--json FILE] [NAME…]`. A measurement is a module of this package with a
`TITLE`, `run(options) -> list[Row]`, and perhaps `TOOLS` (program -> Debian package); `__main__` finds them
(`bench/backup.py`; the lab's network measurement joins the same way).
"""
