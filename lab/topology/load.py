# SPDX-License-Identifier: MIT
"""Reading a topology file: every problem is one line that begins with file and line number."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lab.errors import TopologyInvalid
from lab.topology.check import Loc, Problem, problems
from lab.topology.topology import Topology, derive_inventory

SHIPPED = Path(__file__).resolve().parent.parent / "topologies"
_SAFE = yaml.SafeLoader


def find(name: str | Path | None) -> Path:
    """The file that `--topology` means: a path, or the name of a shipped topology (default `demo`).

    Raises:
        TopologyInvalid: there is no such file.
    """
    if name is None:
        return SHIPPED / "demo.yaml"
    path = Path(name)
    if path.is_file():
        return path
    shipped = SHIPPED / f"{name}.yaml"
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.yaml")))
    raise TopologyInvalid(
        f"{name}: no such file, and no shipped topology of that name ({names})",
        next="Name a file or a shipped topology; `vadplab topology schema` prints the format.",
    )


def load(path: Path) -> Topology:
    """Reads and checks a topology file.

    Raises:
        TopologyInvalid: one line `file:line: place: problem` for each problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise TopologyInvalid(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    return parse(text, path.name)


def parse(text: str, name: str = "topology.yaml") -> Topology:
    """As `load`, from text; `name` begins each line of the error."""
    try:
        node = yaml.compose(text, Loader=_SAFE)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise TopologyInvalid(f"{name}:{line}: not YAML: {exc.problem or exc.context}") from exc
    except yaml.YAMLError as exc:
        raise TopologyInvalid(f"{name}:1: not YAML: {exc}") from exc
    if not isinstance(node, yaml.MappingNode):
        raise TopologyInvalid(f"{name}:1: a topology is a mapping with the keys name, zones, hosts, vsphere, backup")
    found = _duplicate_keys(node)
    if not found:
        found, topology = _validate(yaml.load(text, Loader=_SAFE))
        if topology is not None:
            return topology
    lines = sorted((_line(node, problem.loc), _render(problem)) for problem in found)
    raise TopologyInvalid("\n".join(f"{name}:{line}: {text}" for line, text in lines))


def schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Topology.model_json_schema()}


def dump(topology: Topology) -> str:
    """The topology as YAML text that `parse` reads back to an equal one."""
    data = json.loads(topology.model_dump_json())
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _validate(document: Any) -> tuple[list[Problem], Topology | None]:
    try:
        topology = Topology.model_validate(document)
    except ValidationError as exc:
        return [Problem(tuple(error["loc"]), _explain(dict(error))) for error in exc.errors()], None
    found = problems(topology)
    if found:
        return found, None
    try:
        derive_inventory(topology)
    except ValueError as exc:
        return [Problem(("vsphere",), str(exc))], None
    return [], topology


def _explain(error: dict[str, Any]) -> str:
    """The problem in this file's words; `error` is one of pydantic's."""
    kind, context = error["type"], error.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return "unknown key"
        case "too_short":
            return "must not be empty"
        case "missing":
            return "is missing"
        case "enum" | "literal_error":
            return f"{error['input']!r} is not one of {context['expected']}"
        case "string_pattern_mismatch":
            return f"{error['input']!r} is not a name (lower-case letters, digits and hyphens, a letter first)"
        case "value_error":
            return str(context["error"])
        case _:
            return re.sub(r"^Input should", f"{error['input']!r} should", error["msg"])


def _render(problem: Problem) -> str:
    place = ".".join(str(part) for part in problem.loc if part != "[key]")
    return f"{place}: {problem.text}" if place else problem.text


def _line(node: yaml.Node, loc: Loc) -> int:
    """The line (from 1) of the deepest node of `loc` that exists."""
    mark = node.start_mark
    current: yaml.Node | None = node
    for part in loc:
        if isinstance(current, yaml.MappingNode):
            pair = next(((k, v) for k, v in current.value if k.value == str(part)), None)
            if pair is None:
                break
            mark, current = pair[0].start_mark, pair[1]
        elif isinstance(current, yaml.SequenceNode) and isinstance(part, int) and part < len(current.value):
            current = current.value[part]
            mark = current.start_mark
        else:
            break
    return int(mark.line) + 1


def _duplicate_keys(node: yaml.Node, loc: Loc = ()) -> list[Problem]:
    """YAML readers keep the last of two equal keys in silence; here that is an error."""
    found: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.value in seen:
                where = seen[key.value] + 1
                found.append(
                    Problem(
                        (*loc, key.value),
                        f"this key stands twice (first on line {where}, again on line {key.start_mark.line + 1})",
                    )
                )
            seen[key.value] = key.start_mark.line
            found.extend(_duplicate_keys(value, (*loc, key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found.extend(_duplicate_keys(value, (*loc, index)))
    return found
