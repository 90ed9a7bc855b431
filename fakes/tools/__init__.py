# SPDX-License-Identifier: MIT
"""A minimal VMware Tools channel between a guest and its hypervisor, and from there to vCenter (`FIDELITY.md`).

Nouns:

    rpci        one request of the guest and its answer, over the guest's Unix socket
    daemon      the guest's end: says that Tools run, the host name, the addresses
    machine     the hypervisor's end: what the guest said last
    reporter    passes that on to vCenter over the fabric, as often as vCenter starts anew
"""
