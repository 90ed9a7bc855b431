# SPDX-License-Identifier: MIT
"""Measurements against established tools, as ratios: everything compared is run in turn on the same machine.

`python -m bench [--size 1GiB] [--rounds 3] [--json FILE] [NAME…]`. A measurement is a module of this package with a
`TITLE`, `run(options) -> Result or list[Row]`, and perhaps `TOOLS` (program -> Debian package); `__main__` finds them
(`bench/backup.py`: the engine's movers alone, with a profile of each stage; `bench/jobs.py`: jobs through a whole lab;
`bench/network.py`). Times are those of the machine as it is: the load is printed beside them.
"""
