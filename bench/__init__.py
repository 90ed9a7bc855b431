# SPDX-License-Identifier: MIT
"""Measurements against established tools, as ratios: everything compared is run in turn on the same machine.

`python -m bench [--size 512MiB] [--rounds 3] [--json FILE] [NAME…]`. A measurement is a module of this package with a `TITLE` and
`run(options) -> list[Row]`; `__main__` finds them (`bench/backup.py`; the lab's network measurement joins the same way).
"""
