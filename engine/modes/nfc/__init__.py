# SPDX-License-Identifier: MIT
"""NFC client for TCP 902 of an ESXi host (nfc reference).

`stream` moves bytes (raw, and TLS that can be left without a close_notify), `authd` is the text dialogue, `classic` and
`aio` are the messages, `client` is one connection: files and disks opened on it, several reads in flight.
"""
