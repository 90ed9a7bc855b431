# SPDX-License-Identifier: MIT
"""The one wire format of the engine: length-prefixed msgpack over mutual TLS (`docs/wire.md`).

`frames` packs and reads messages, `identity` makes the TLS contexts, `server` answers calls, `client` makes them.
"""
