# SPDX-License-Identifier: MIT
"""Verdicts about a run: pure functions from evidence to a report.

Nouns: *evidence* (what a run folder holds), *flow* (one connection attempt), *witness* (one of five independent
sources that say what became of it), *foreign* (packets that no event explains), *invariant* (what must hold in every
run). `folder` reads, `join` puts observers together, `verdict` judges a flow, `invariants` and `steps` the run,
`report` sums up; `judge` writes the documents.
"""
