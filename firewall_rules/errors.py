# SPDX-License-Identifier: MIT
"""Errors of the rules: one class per kind of bad input, each with a stable `code`.

    RuleError                rules.invalid
    ├── FileInvalid          rules.file            a YAML file cannot be used
    ├── PolicyUnusable       rules.policy          a policy names roles or rows that do not exist
    ├── PortsInvalid         rules.ports           a port specification cannot be understood
    ├── UnknownRow           rules.unknown-row     a row id that the matrix does not have
    ├── UnknownEndpoint      rules.unknown-host    neither a role nor a host of this world
    └── RenderFailed         rules.render          a policy that cannot be expressed

Callers outside this folder wrap them into their own catalogue (exit code 2, bad input).
"""

from __future__ import annotations

from typing import ClassVar


class RuleError(ValueError):
    """A matrix, policy, overlay or question about them is wrong."""

    code: ClassVar[str] = "rules.invalid"


class FileInvalid(RuleError):
    """A matrix or policy file cannot be used."""

    code = "rules.file"


class PolicyUnusable(RuleError):
    """A policy names roles or rows that do not exist."""

    code = "rules.policy"


class PortsInvalid(RuleError):
    """A port specification cannot be understood."""

    code = "rules.ports"


class UnknownRow(RuleError):
    """No row of the matrix has this id."""

    code = "rules.unknown-row"


class UnknownEndpoint(RuleError):
    """A name that is neither a role nor a host of this world."""

    code = "rules.unknown-host"


class RenderFailed(RuleError):
    """A policy that cannot be expressed in the target language."""

    code = "rules.render"
