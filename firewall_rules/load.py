# SPDX-License-Identifier: MIT
"""Loading: matrix and policy YAML files into models, with errors that name the file, the entry and what is wrong."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from firewall_rules.errors import FileInvalid, PolicyUnusable, RuleError
from firewall_rules.lint import unusable
from firewall_rules.model import Matrix, Policy, Row

HERE = Path(__file__).parent
MATRIX_FOLDER = HERE / "matrix"
POLICY_FOLDER = HERE / "policies"
DEFAULT_PROFILE = "12.3"


def load_matrix(profile: str = DEFAULT_PROFILE, folder: Path = MATRIX_FOLDER) -> Matrix:
    """All rows of one profile, from every file of `folder` whose `version` is that profile.

    Raises:
        FileInvalid: a file is broken, or no file has this profile.
    """
    if folder == MATRIX_FOLDER:
        return _shipped(profile)
    return _read_matrix(profile, folder)


@functools.cache
def _shipped(profile: str) -> Matrix:
    return _read_matrix(profile, MATRIX_FOLDER)


def _read_matrix(profile: str, folder: Path) -> Matrix:
    rows: list[Row] = []
    profiles: set[str] = set()
    for path in sorted(folder.glob("*.yaml")):
        body = _mapping(path)
        if extra := set(body) - {"product", "version", "source", "rows"}:
            raise FileInvalid(f"{path.name}: unknown field {sorted(extra)[0]!r}")
        profiles.add(str(body.get("version")))
        if str(body.get("version")) == profile:
            rows.extend(_rows(path, body))
    if not rows:
        raise FileInvalid(f"no matrix for profile {profile!r}; there are {', '.join(sorted(profiles)) or 'none'}")
    try:
        return Matrix(profile=profile, rows=tuple(rows))
    except ValidationError as exc:
        raise FileInvalid(f"matrix {profile}: {explain(exc)}") from exc


def _rows(path: Path, body: dict[str, Any]) -> list[Row]:
    shared = {key: body[key] for key in ("product", "version", "source") if key in body}
    entries = body.get("rows")
    if not isinstance(entries, list) or not entries:
        raise FileInvalid(f"{path.name}: `rows` must be a list with at least one row")
    found = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise FileInvalid(f"{path.name}: row number {number} is not a mapping")
        try:
            found.append(Row.model_validate({**shared, **entry}))
        except ValidationError as exc:
            raise FileInvalid(f"{path.name}: row {entry.get('id', number)}: {explain(exc)}") from exc
    return found


def load_policy(source: str | Path, *, names: bool = True) -> Policy:
    """A policy from a file, or a shipped one by its name (`default-12.3`).

    Args:
        names: refuse unknown roles and rows; without it `lint` can report them.

    Raises:
        FileInvalid: no such policy, or the file is broken. PolicyUnusable: it names what does not exist.
    """
    path = Path(source)
    if not path.is_file() and path.name == str(source):
        path = POLICY_FOLDER / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        raise FileInvalid(f"no policy {str(source)!r}: give a file, or one of {', '.join(policy_names())}")
    body = _mapping(path)
    try:
        policy = Policy.model_validate(body)
    except ValidationError as exc:
        raise FileInvalid(f"{path.name}: {explain(exc)}") from exc
    if names:
        check(policy)
    return policy


def check(policy: Policy, matrix: Matrix | None = None) -> None:
    """Refuses a policy that cannot be put in force.

    Raises:
        FileInvalid: no matrix for its profile. PolicyUnusable: unknown roles or rows, all of them in one message.
    """
    if wrong := unusable(policy, matrix or load_matrix(policy.profile)):
        raise PolicyUnusable(f"policy {policy.name}: " + "; ".join(f"{f.message}. {f.next}" for f in wrong))


def policy_names() -> list[str]:
    """Names of the shipped policies."""
    return sorted(path.stem for path in POLICY_FOLDER.glob("*.yaml"))


def dump_policy(policy: Policy) -> str:
    """The policy as YAML that `load_policy` reads back."""
    body = policy.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise FileInvalid(f"{path}: {exc.strerror}") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise FileInvalid(f"{path.name}: not YAML: {' '.join(str(exc).split())}") from exc
    if not isinstance(body, dict):
        raise FileInvalid(f"{path.name}: the file must be a mapping")
    return body


def explain(error: ValidationError | RuleError) -> str:
    """One line: the first field that is wrong, and how many more there are."""
    if isinstance(error, RuleError):
        return str(error)
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}{more}"
