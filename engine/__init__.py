# SPDX-License-Identifier: MIT
"""The backup engine: what would run in production. It knows nothing of the lab, the fakes or the rules.

Rooms: `service` (Backup Service), `scheduler` (pure), `manager` (one Backup Manager per job run: the steps of the
sequence, in order), `transport` (Transport Service), `mover` (Data Mover), `modes` (transport modes), `guest` (guest
processing), `store` (restore points), `rpc` (the one wire format), `model` (the configuration database), `console`.
"""
