# SPDX-License-Identifier: MIT
"""Ports: single ports, ranges, sets of them; our strict notation and the vendor tables' loose one.

Ours (`parse_ports`): `443`, `"2500-3300"`, `"any"` or a list of these. Anything else is an error that says what to write.

Vendor tables (`read_cell`) write lists with spaces, commas and semicolons, ranges with `to`, open ends with `+`, words
instead of numbers, and the same comma for "both" and for "the second when the first fails" (flow reference section 6).
The reader never guesses: what only the note beside the cell can tell comes back as `unclear`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from firewall_rules.errors import PortsInvalid

HIGHEST = 65535


class PortRange(NamedTuple):
    """Ports `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and self.first <= port <= self.last


ANY: tuple[PortRange, ...] = (PortRange(1, HIGHEST),)

_SINGLE = re.compile(r"[0-9]{1,5}")
_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")


def parse_ports(value: Any) -> tuple[PortRange, ...]:
    """A port specification in our notation as sorted, merged ranges.

    Raises:
        PortsInvalid: with what was found and what to write instead.
    """
    items = list(value) if _is_list(value) else [value]
    if not items:
        raise PortsInvalid('no ports: write a port, a range such as "2500-3300", a list, or "any"')
    return merge(_parse_one(item) for item in items)


def merge(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """Sorted ranges without overlap; neighbours are joined."""
    merged: list[PortRange] = []
    for item in sorted(ranges):
        if merged and item.first <= merged[-1].last + 1:
            merged[-1] = PortRange(merged[-1].first, max(merged[-1].last, item.last))
        else:
            merged.append(item)
    return tuple(merged)


def covers(outer: Iterable[PortRange], inner: Iterable[PortRange]) -> bool:
    """True when every port of `inner` is in `outer` (both merged)."""
    wide = tuple(outer)
    return all(any(w.first <= n.first and n.last <= w.last for w in wide) for n in inner)


def overlaps(left: Iterable[PortRange], right: Iterable[PortRange]) -> bool:
    """True when the two sets share a port."""
    other = tuple(right)
    return any(a.first <= b.last and b.first <= a.last for a in left for b in other)


def intersect(left: Iterable[PortRange], right: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """The ports that are in both sets."""
    other = tuple(right)
    shared = [PortRange(max(a.first, b.first), min(a.last, b.last)) for a in left for b in other]
    return merge(r for r in shared if r.first <= r.last)


def subtract(left: Iterable[PortRange], right: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """The ports of `left` that are not in `right`."""
    rest = list(left)
    for hole in right:
        pieces: list[PortRange] = []
        for item in rest:
            if hole.last < item.first or item.last < hole.first:
                pieces.append(item)
                continue
            pieces += [PortRange(item.first, hole.first - 1), PortRange(hole.last + 1, item.last)]
        rest = [p for p in pieces if p.first <= p.last]
    return merge(rest)


def text(ranges: Iterable[PortRange]) -> str:
    """For people: `2500-3300, 6162`, or `any`."""
    found = tuple(ranges)
    return "any" if found == ANY else ", ".join(str(r) for r in found)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | set | frozenset) and not isinstance(value, PortRange)


def _parse_one(item: Any) -> PortRange:
    if isinstance(item, PortRange):
        return _checked(item.first, item.last, item)
    if isinstance(item, int) and not isinstance(item, bool):
        return _checked(item, item, item)
    if isinstance(item, str):
        word = item.strip()
        if word == "any":
            return ANY[0]
        if _SINGLE.fullmatch(word):
            return _checked(int(word), int(word), item)
        if found := _RANGE.fullmatch(word.replace(" ", "")):
            return _checked(int(found[1]), int(found[2]), item)
        if re.fullmatch(r"[0-9\s,;-]+", word):
            raise PortsInvalid(f"{item!r} holds several ports: write a list, one port or range an entry")
    raise PortsInvalid(f'{item!r} is not a port: write 1-{HIGHEST}, a range such as "2500-3300", or "any"')


def _checked(first: int, last: int, item: Any) -> PortRange:
    if not (1 <= first <= HIGHEST and 1 <= last <= HIGHEST):
        raise PortsInvalid(f"{item!r} is outside 1-{HIGHEST}")
    if first > last:
        raise PortsInvalid(f"{item!r} runs backwards: write {last}-{first}")
    return PortRange(first, last)


# --- vendor tables ------------------------------------------------------------------------------------------------


class Relation(StrEnum):
    """How several ports of one vendor cell belong together."""

    ALL = "all"
    EITHER = "either"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Cell:
    """A vendor table's port cell: ports, how they belong together, open-ended first ports, words that are no port."""

    ports: tuple[PortRange, ...]
    relation: Relation
    open_ended: tuple[int, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True when the cell alone says which ports are meant."""
        return bool(self.ports) and self.relation is not Relation.UNCLEAR and not self.open_ended and not self.words


_ITEM = re.compile(r"(?P<first>\d{1,5})(?:\s*(?:-|–|to)\s*(?P<last>\d{1,5}))?(?P<open>\+)?", re.IGNORECASE)


def read_cell(cell: str) -> Cell:
    """Reads a vendor table's port cell without guessing.

    `445 135` and `135; 445` mean both; `6162 or 2500 to 3300` means either; with a comma only the note tells, so the
    relation is `unclear`. `2049+` is open-ended; words (`mountd_port`, `Depends on ...`) are returned as words.
    """
    body = cell.replace("\\_", "_").strip()
    ranges: list[PortRange] = []
    open_ended: list[int] = []
    words: list[str] = []
    has_or = bool(re.search(r"\bor\b", body, re.IGNORECASE))
    for part in re.split(r"[,;]|\bor\b|\band\b", body, flags=re.IGNORECASE):
        rest = part
        for found in _ITEM.finditer(part):
            if _inside_word(part, found):
                continue
            rest = rest.replace(found[0], " ", 1)
            try:
                _collect(found, ranges, open_ended)
            except PortsInvalid:
                words.append(found[0])
        if left := re.sub(r"\s+", " ", rest).strip(" -–"):
            words.append(left)
    several = len(ranges) + len(open_ended) > 1
    if has_or:
        relation = Relation.EITHER
    elif several and "," in body:
        relation = Relation.UNCLEAR
    else:
        relation = Relation.ALL
    return Cell(tuple(ranges), relation, tuple(open_ended), tuple(words))


def _inside_word(part: str, found: re.Match[str]) -> bool:
    before = part[found.start() - 1] if found.start() else " "
    after = part[found.end()] if found.end() < len(part) else " "
    return before.isalnum() or before in "_." or after.isalnum() or after in "_."


def _collect(found: re.Match[str], ranges: list[PortRange], open_ended: list[int]) -> None:
    first = int(found["first"])
    item = _checked(first, int(found["last"] or first), found[0])
    if found["open"]:
        open_ended.append(first)
    else:
        ranges.append(item)
