# SPDX-License-Identifier: MIT
"""The former place of `engine.report`."""

from engine.manager.results import document
from engine.report import RESULT_SCHEMA, Reporter

__all__ = ["RESULT_SCHEMA", "Reporter", "document"]
