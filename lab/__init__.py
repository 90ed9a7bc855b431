# SPDX-License-Identifier: MIT
"""The laboratory: topology (data), realise (namespaces, firewall, processes), observe (packets), judge (verdicts), cli."""
