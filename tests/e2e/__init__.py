# SPDX-License-Identifier: MIT
"""Whole labs through the real command line: what a user types, and what the evidence says afterwards."""
