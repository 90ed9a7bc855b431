# SPDX-License-Identifier: MIT
"""Verdicts about a restored disk: the same bytes as the storage's record (`truth`), and whole in itself (`consistency`)."""
