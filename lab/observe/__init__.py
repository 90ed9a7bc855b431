# SPDX-License-Identifier: MIT
"""What the router saw: capture, packets, firewall log, connection tracking, and the folder that keeps them.

Nouns: a *run folder* holds the evidence of one run; a *recorder* fills it; a *frame* is one packet as one interface of
the router saw it (a forwarded packet is two frames: in and out); a *TCP flow* is one connection attempt put together
from frames. Everything that imports scapy runs as a process of its own (`lab.observe.packets`).
"""
