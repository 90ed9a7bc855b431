# SPDX-License-Identifier: MIT
"""The nouns of the rules: matrix rows, the matrix, policies and their rules.

A *row* says that one role may have to open a connection to another, at which steps, under which condition, what
happens when it is blocked, and who says so. A *matrix* is the rows of one product version (*profile*). A *policy* is
what a firewall is told: rules by roles, in order, first match decides, with a default that never allows. What an
operator changes live is an *overlay* (`firewall_rules.overlay`).

YAML uses `from` and `to` for the roles; a single value may stand for a list of one.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from firewall_rules import roles
from firewall_rules.errors import UnknownRow
from firewall_rules.ports import PortRange, parse_ports

# {role: {host: IPv4 address}}: the world that a policy by roles is applied to. A host with two roles stands under both.
Addresses = Mapping[str, Mapping[str, str]]

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,30}")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def _identifier(value: str) -> str:
    if not _ID.fullmatch(value):
        raise ValueError(f"{value!r} is not an id: a letter, then letters, digits, '.', '_' or '-', at most 31 in all")
    return value


def _known_role(value: str) -> str:
    if not roles.known(value):
        raise ValueError(f"{value!r} is not a role; roles are {', '.join(roles.ROLES)}")
    return value


def _ports_out(ranges: tuple[PortRange, ...]) -> list[int | str]:
    return [r.first if r.first == r.last else str(r) for r in ranges]


Identifier = Annotated[str, AfterValidator(_identifier)]
Role = Annotated[str, AfterValidator(_known_role)]
Ports = Annotated[tuple[PortRange, ...], BeforeValidator(parse_ports), PlainSerializer(_ports_out)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
StepIds = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class Strict(BaseModel):
    """Frozen, and refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Protocol(StrEnum):
    """Transport protocol of a row or rule; `tcp+udp` is one row that needs both."""

    TCP = "tcp"
    UDP = "udp"
    BOTH = "tcp+udp"

    @property
    def parts(self) -> tuple[str, ...]:
        """The single protocols: `("tcp",)`, `("udp",)` or both."""
        return ("tcp", "udp") if self is Protocol.BOTH else (self.value,)

    def covers(self, other: Protocol | str) -> bool:
        """True when every protocol of `other` is one of these."""
        return set(Protocol(other).parts) <= set(self.parts)


class Semantics(StrEnum):
    """How a row is meant: always needed, second choice, one of several, inside one machine, needed sometimes, never here."""

    REQUIRED = "required"
    FAILOVER = "failover"
    ALTERNATIVE = "alternative"
    LOCAL = "local"
    CONDITIONAL = "conditional"
    NOT_IN_RUN = "not-in-run"


class Phase(StrEnum):
    """When a row is used."""

    INSTALL = "install"
    CONSOLE = "console"
    INIT = "init"
    GUEST = "guest"
    SNAPSHOT = "snapshot"
    TRANSPORT = "transport"
    COMMIT = "commit"
    METADATA_RETURN = "metadata return"
    LOG_BACKUP = "log backup"
    RESTORE = "restore"
    SURROUNDINGS = "surroundings"


class Consequence(StrEnum):
    """What becomes of the run when a row is blocked."""

    FAILS = "fails"
    WARNS = "warns"
    FALLS_BACK = "falls back"
    NOTHING = "nothing"


class Blocked(Strict):
    """What happens when a row is blocked: the first step that notices, what becomes of the run, and how it shows."""

    step: str | None = None
    run: Consequence
    symptom: str


class Source(Strict):
    """Who says so, and when."""

    text: str
    date: Annotated[str, BeforeValidator(str)]
    note: str = ""

    @model_validator(mode="after")
    def _dated(self) -> Source:
        if not re.fullmatch(r"\d{4}-\d{2}(-\d{2})?", self.date):
            raise ValueError(f"date {self.date!r}: write YYYY-MM or YYYY-MM-DD")
        datetime.date.fromisoformat(self.date if len(self.date) == 10 else self.date + "-01")
        return self


class Row(Strict):
    """One row of the port matrix.

    `opens` are the steps that may open this connection, `uses` those that send over it without opening one (engine step
    ids; `r…` restore, `i…` rescan). `when` is the condition as facts of a run (see `firewall_rules.needs`), `condition`
    the same for people.
    """

    id: Identifier
    product: str
    version: str
    initiators: Annotated[tuple[Role, ...], BeforeValidator(_as_list)] = Field(alias="from", min_length=1)
    responders: Annotated[tuple[Role, ...], BeforeValidator(_as_list)] = Field(alias="to", min_length=1)
    protocol: Protocol = Protocol.TCP
    ports: Ports
    semantics: Semantics
    phase: Phase
    title: str = ""
    opens: StepIds = ()
    uses: StepIds = ()
    condition: str = ""
    when: Mapping[str, Names] = Field(default_factory=dict)
    blocked: Blocked
    source: Source
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Row:
        if self.semantics in (Semantics.REQUIRED, Semantics.ALTERNATIVE) and not self.opens:
            raise ValueError(f"row {self.id} is {self.semantics} but no step opens it")
        if self.semantics in (Semantics.NOT_IN_RUN, Semantics.LOCAL) and self.opens:
            raise ValueError(f"row {self.id} is {self.semantics} but step {self.opens[0]} opens it")
        if self.when and not self.condition:
            raise ValueError(f"row {self.id} depends on {', '.join(self.when)}: say so in `condition`, for people")
        return self

    @property
    def steps(self) -> tuple[str, ...]:
        """Every step that may appear on a connection of this row."""
        return (*self.opens, *(s for s in self.uses if s not in self.opens))

    def matches(self, initiator: str, responder: str, protocol: str, port: int) -> bool:
        """True when a connection between these roles belongs to this row."""
        return (
            initiator in self.initiators
            and responder in self.responders
            and protocol in self.protocol.parts
            and any(port in r for r in self.ports)
        )


class Matrix(Strict):
    """The rows of one profile."""

    profile: str
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _unique(self) -> Matrix:
        seen: set[str] = set()
        for row in self.rows:
            if row.id in seen:
                raise ValueError(f"row {row.id} stands twice in the matrix {self.profile}")
            seen.add(row.id)
        return self

    def row(self, row_id: str) -> Row:
        """The row with this id (case does not matter).

        Raises:
            UnknownRow: there is none; the message lists the ids.
        """
        for row in self.rows:
            if row.id.casefold() == row_id.casefold():
                return row
        raise UnknownRow(f"no row {row_id!r} in profile {self.profile}; rows are {', '.join(r.id for r in self.rows)}")

    def has(self, row_id: str) -> bool:
        """True when a row has exactly this id."""
        return any(row.id == row_id for row in self.rows)

    def find(self, initiators: Iterable[str], responders: Iterable[str], protocol: str, port: int) -> tuple[Row, ...]:
        """Rows that a connection between hosts with these roles may belong to, the narrowest port range first."""
        pairs = [(i, r) for i in initiators for r in responders]
        found = [row for row in self.rows if any(row.matches(i, r, protocol, port) for i, r in pairs)]
        return tuple(sorted(found, key=lambda row: sum(p.last - p.first for p in row.ports)))


class Action(StrEnum):
    """What a rule does with a new connection; the refusals differ in what the client sees (flow reference section 8)."""

    ALLOW = "allow"
    DROP = "drop"
    RESET = "reset"
    PROHIBIT = "prohibit"


class Rule(Strict):
    """One rule of a policy. Roles are plain names here, so that `lint` can report unknown ones; `any` means every host."""

    id: Identifier
    row: str | None = None
    initiators: Names = Field(alias="from", min_length=1)
    responders: Names = Field(alias="to", min_length=1)
    protocol: Protocol = Protocol.TCP
    ports: Ports
    action: Action = Action.ALLOW
    comment: str = ""

    @model_validator(mode="after")
    def _one_line(self) -> Rule:
        if any(c in self.comment for c in '"\n\r\\'):
            raise ValueError(f"rule {self.id}: the comment is one line without quotes and backslashes")
        return self


class Policy(Strict):
    """Rules in order, first match decides; what no rule matches meets `default`, which never allows."""

    name: Identifier
    profile: str
    description: str = ""
    default: Action = Action.DROP
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _sound(self) -> Policy:
        if self.default is Action.ALLOW:
            raise ValueError(f"policy {self.name}: the default is deny (drop, reset or prohibit), never allow")
        seen: dict[str, str] = {}
        for rule in self.rules:
            key = re.sub(r"[^a-z0-9]", "_", rule.id.casefold())
            if key in seen:
                raise ValueError(f"policy {self.name}: rule ids {seen[key]} and {rule.id} are the same or too alike")
            if key in RESERVED:
                raise ValueError(f"policy {self.name}: {rule.id} is reserved, choose another rule id")
            seen[key] = rule.id
        return self

    def rule(self, rule_id: str) -> Rule | None:
        """The rule with this id, or None."""
        return next((rule for rule in self.rules if rule.id == rule_id), None)

    def without(self, *rule_ids: str) -> Policy:
        """The same policy with these rules taken away (necessity proofs)."""
        return self.model_copy(update={"rules": tuple(r for r in self.rules if r.id not in rule_ids)})


# What decided when no rule of the policy did: ids of the built-in rules, in logs, counters and verdicts.
DEFAULT_RULE = "default"
INVALID_RULE = "invalid"
STRAY_RULE = "stray"
RESERVED = frozenset({DEFAULT_RULE, INVALID_RULE, STRAY_RULE, "established", "loopback"})
