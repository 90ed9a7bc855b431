# SPDX-License-Identifier: MIT
"""Protocol-faithful stand-ins for vCenter, ESXi, storage and guests. They know nothing of the engine or the lab.

Each folder holds state, wire, server and faults, and a FIDELITY.md: the real behaviour it reproduces, its source, and
its known differences. What the fakes say to each other goes over the *fabric* (see `fakes.core.fabric`).
"""
