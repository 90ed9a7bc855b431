# SPDX-License-Identifier: MIT
"""The router's firewall: a policy by roles in force, live blocks on top of it, and what each rule has counted.

Rules come from `firewall_rules.render.nft`; every change is one transaction that replaces the chain without a gap
(lab reference section 2) and keeps the counters. Blocks persist until `reset`, cut open connections unless they are for
new ones only, and are data (`Overlay`), so that the oracle predicts with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from firewall_rules.errors import RuleError
from firewall_rules.evaluate import Decision, evaluate
from firewall_rules.load import check, load_matrix
from firewall_rules.model import DEFAULT_RULE, INVALID_RULE, STRAY_RULE, Action, Addresses, Matrix, Policy, Rule
from firewall_rules.overlay import Overlay, newest_first
from firewall_rules.ports import text as port_text
from firewall_rules.render.base import marks
from firewall_rules.render.nft import FAMILY, TABLE, Nft, counter_name, counters
from firewall_rules.world import addresses_of
from lab.observe.conntrack import Entry, Table
from lab.realise.nft_errors import FirewallFailed, FirewallMissing, PolicyInvalid, RequestInvalid, TargetUnknown
from lab.realise.nft_library import NftLibrary
from lab.realise.nft_requests import WITH, Target, allowed_everywhere

Listener = Callable[[tuple[Overlay, ...]], None]
# Bytes and times per flow; a packet in the middle of a connection never opens one (it is `stray`).
SETTINGS = {
    "netfilter/nf_conntrack_acct": "1",
    "netfilter/nf_conntrack_timestamp": "1",
    "netfilter/nf_conntrack_tcp_loose": "0",
}


@dataclass(frozen=True, slots=True)
class Count:
    """Packets and bytes that met a rule: connections on an allowing rule, attempts or repeats on the others."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class RuleState:
    """One line of `show`: a rule in the order in which rules decide, and what it has counted.

    `kind` is overlay, policy or built-in. `row` is the matrix row. `sources` and `responders` are hosts or roles.
    """

    rule: str
    kind: str
    row: str | None
    sources: tuple[str, ...]
    responders: tuple[str, ...]
    protocol: str
    ports: str
    action: str
    new_only: bool
    comment: str
    packets: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with `from` and `to`."""
        fields = asdict(self)
        fields["from"], fields["to"] = list(fields.pop("sources")), list(fields.pop("responders"))
        return fields


class Firewall:
    """Drives the firewall of one router namespace, given as an open descriptor (None: this namespace).

    `matrix` stands in for the shipped one of the policy's profile.
    """

    def __init__(self, netns: int | None, matrix: Matrix | None = None) -> None:
        self._netns = netns
        self._nft = NftLibrary(netns)
        self._matrix = matrix
        self._policy: Policy | None = None
        self._addresses: Addresses = {}
        self._overlays: tuple[Overlay, ...] = ()
        self._counters: dict[str, str] | None = None
        self._made = 0
        self._change = asyncio.Lock()
        self._listeners: list[Listener] = []

    @property
    def policy(self) -> Policy:
        """The policy in force.

        Raises:
            FirewallMissing: none has been applied.
        """
        if self._policy is None:
            raise FirewallMissing(
                "no policy has been applied to the router yet", next="Bring the lab up: `vadplab up`."
            )
        return self._policy

    @property
    def matrix(self) -> Matrix:
        """The matrix of the policy's profile."""
        return self._matrix or load_matrix(self.policy.profile)

    @property
    def overlays(self) -> tuple[Overlay, ...]:
        """Live changes in the order in which they were made."""
        return self._overlays

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener(overlays)` after every change of the overlays; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def marks(self) -> dict[int, str]:
        """{connection mark: rule id} of the rules in force."""
        return marks(self.policy, self._overlays)

    def evaluate(self, initiator: str, responder: str, protocol: str, port: int) -> Decision:
        """What the oracle says about a connection attempt under the policy and overlays in force."""
        try:
            return evaluate(self.policy, self._addresses, initiator, responder, protocol, port, self._overlays)
        except ValueError as exc:
            raise TargetUnknown(str(exc)) from exc

    async def apply(self, policy: Policy, addresses: Mapping[str, Mapping[str, str]]) -> None:
        """Puts a policy in force for a world, in place of the one before; overlays and counters stay.

        Raises:
            PolicyInvalid: unknown roles or rows. FirewallMissing, FirewallFailed: nothing was changed.
        """
        try:
            check(policy, self._matrix)
        except RuleError as exc:
            raise PolicyInvalid(str(exc)) from exc
        async with self._change:
            await self._nft.settings(SETTINGS)
            await self._load(policy, addresses, self._overlays)

    async def block(self, target: Target, with_: str = "drop", new_only: bool = False) -> tuple[Overlay, int]:
        """Blocks a row or a pair until `reset` or `allow`; returns the overlay and how many open connections were cut.

        Args:
            with_: `drop` (time-out), `reset` (refused) or `icmp` (prohibited). new_only: leave open connections alone.

        Raises:
            TargetUnknown, RequestInvalid, FirewallMissing, FirewallFailed.
        """
        if with_ not in WITH:
            raise RequestInvalid(f"{with_!r} is not a way to block: {', '.join(WITH)}")
        async with self._change:
            made = target.overlay(self._next_id("block"), WITH[with_], self.matrix, self._addresses, new_only)
            kept = tuple(o for o in self._overlays if not o.same_target(made))
            await self._load(self.policy, self._addresses, (*kept, made))
            self._made += 1
            cut = await self._cut(made) if made.cuts else 0
        return made, cut

    async def allow(self, target: Target) -> tuple[list[Overlay], Overlay | None]:
        """Takes blocks of this target away and, if it is still not allowed, allows it live.

        Returns the blocks that went, and the overlay that now allows it (None: the policy does).

        Raises:
            TargetUnknown, RequestInvalid, FirewallMissing, FirewallFailed.
        """
        async with self._change:
            made = target.overlay(self._next_id("allow"), Action.ALLOW, self.matrix, self._addresses, False)
            gone = [o for o in self._overlays if o.same_target(made)]
            kept = tuple(o for o in self._overlays if o not in gone)
            enough = allowed_everywhere(made, self.policy, self._addresses, kept)
            await self._load(self.policy, self._addresses, kept if enough else (*kept, made))
            self._made += 0 if enough else 1
        return [o for o in gone if o.action is not Action.ALLOW], None if enough else made

    async def reset(self) -> list[Overlay]:
        """Takes every live change away; returns them."""
        async with self._change:
            gone = list(self._overlays)
            await self._load(self.policy, self._addresses, ())
        return gone

    async def counters(self) -> dict[str, Count]:
        """{rule id: count} of every rule in force, built-in ones included."""
        if self._counters is None:
            raise FirewallMissing(
                "no policy has been applied to the router yet", next="Bring the lab up: `vadplab up`."
            )
        return self._named(await self._nft.query(f"list counters table {FAMILY} {TABLE}"))

    async def zero(self) -> dict[str, Count]:
        """Sets every counter to zero; returns what they were, without losing a packet in between."""
        if self._counters is None:
            raise FirewallMissing(
                "no policy has been applied to the router yet", next="Bring the lab up: `vadplab up`."
            )
        return self._named(await self._nft.query(f"reset counters table {FAMILY} {TABLE}"))

    async def show(self) -> list[RuleState]:
        """Every rule in the order in which rules decide, with its count."""
        policy, counted = self.policy, await self.counters()
        states = [_state(o, "overlay", counted) for o in newest_first(self._overlays)]
        states += [_state(rule, "policy", counted) for rule in policy.rules]
        for rule_id, action in ((INVALID_RULE, Action.DROP), (STRAY_RULE, Action.DROP), (DEFAULT_RULE, policy.default)):
            count = counted.get(rule_id, Count(0, 0))
            everyone = ("any",)
            states.append(
                RuleState(
                    rule_id, "built-in", None, everyone, everyone, "any", "any", action, False, _BUILT_IN[rule_id],
                    count.packets, count.bytes,
                )
            )  # fmt: skip
        return states

    async def control(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The supervisor's control requests `firewall.show|block|allow|reset|counters|zero`.

        Parameters: `row`, or `from`, `to`, `port`; `with`; `new_only`. Results: see each branch.

        Raises:
            RequestInvalid: unknown method or parameter; otherwise as the methods.
        """
        verb = method.removeprefix("firewall.")
        if verb not in _PARAMETERS:
            raise RequestInvalid(f"no firewall request {method!r}")
        if unknown := set(params) - _PARAMETERS[verb]:
            raise RequestInvalid(f"firewall.{verb} has no parameter {sorted(unknown)[0]!r}")
        if verb == "block":
            overlay, cut = await self.block(
                Target.of(params), str(params.get("with") or "drop"), bool(params.get("new_only", False))
            )
            return {"overlay": _document(overlay), "cut": cut}
        if verb == "allow":
            gone, made = await self.allow(Target.of(params))
            return {"removed": [_document(o) for o in gone], "overlay": _document(made) if made else None}
        if verb == "reset":
            return {"removed": [_document(o) for o in await self.reset()]}
        if verb in ("counters", "zero"):
            counted = await (self.counters() if verb == "counters" else self.zero())
            return {"counters": {rule: asdict(count) for rule, count in counted.items()}}
        return await self.document()

    async def document(self) -> dict[str, Any]:
        """`show` as a JSON document."""
        policy = self.policy
        return {
            "policy": policy.name,
            "profile": policy.profile,
            "default": policy.default.value,
            "rules": [state.to_dict() for state in await self.show()],
            "overlays": [_document(overlay) for overlay in self._overlays],
        }

    async def close(self) -> None:
        """Lets go of the library; rules stay in force as long as the namespace."""
        await self._nft.close()

    def _next_id(self, kind: str) -> str:
        """Numbers are not used again in the life of a firewall, so that an id in a log means one thing."""
        return f"{kind}-{self._made + 1}"

    async def _load(self, policy: Policy, addresses: Addresses, overlays: tuple[Overlay, ...]) -> None:
        before = await self._present()
        try:
            names = counters(policy, overlays)
            text = Nft().render(policy, addresses, overlays, retired=[n for n in before if n not in names])
        except RuleError as exc:
            raise PolicyInvalid(f"policy {policy.name}: {exc}") from exc
        await self._nft.run(text)
        changed = overlays != self._overlays
        self._policy, self._addresses, self._overlays, self._counters = policy, addresses, overlays, names
        if changed:
            for listener in list(self._listeners):
                listener(overlays)

    async def _present(self) -> list[str]:
        """Counters that the table has: ours, or left by whoever ran here before."""
        if self._counters is not None:
            return list(self._counters)
        try:
            found = await self._nft.query(f"list counters table {FAMILY} {TABLE}")
        except FirewallFailed:  # there is no table yet
            return []
        return [str(item["counter"]["name"]) for item in found if "counter" in item]

    def _named(self, found: list[dict[str, Any]]) -> dict[str, Count]:
        table = {item["counter"]["name"]: item["counter"] for item in found if "counter" in item}
        names = self._counters or {}
        return {
            rule: Count(int(table[name]["packets"]), int(table[name]["bytes"]))
            for name, rule in names.items()
            if name in table
        }

    async def _cut(self, overlay: Overlay) -> int:
        """Makes connection tracking forget what the overlay blocks, so that nothing is `established` any more."""
        sources = addresses_of(overlay.initiators, self._addresses)
        responders = addresses_of(overlay.responders, self._addresses)

        def hit(entry: Entry) -> bool:
            return (
                entry.proto in overlay.protocol.parts
                and (sources is None or entry.src in sources)
                and (responders is None or entry.dst in responders)
                and any(entry.dport in r for r in overlay.ports)
            )

        def work() -> int:
            table = Table(self._netns)
            live = [entry for entry in table.entries() if hit(entry)]
            gone = table.delete(live)
            return min(gone, sum(1 for entry in live if entry.state in (None, "SYN_RECV", "ESTABLISHED")))

        try:
            return await asyncio.to_thread(work)
        except OSError as exc:
            raise FirewallFailed(f"open connections could not be cut: {exc.strerror}") from exc


_ENDS = {"row", "from", "to", "port"}
_PARAMETERS: dict[str, set[str]] = {
    "show": set(),
    "counters": set(),
    "zero": set(),
    "reset": set(),
    "allow": _ENDS,
    "block": _ENDS | {"with", "new_only"},
}
_BUILT_IN = {
    INVALID_RULE: "packets that fit no connection",
    STRAY_RULE: "packets in the middle of a connection that is not known",
    DEFAULT_RULE: "what no rule allows",
}


def _state(rule: Rule | Overlay, kind: str, counted: Mapping[str, Count]) -> RuleState:
    count = counted.get(rule.id, Count(0, 0))
    return RuleState(
        rule=rule.id,
        kind=kind,
        row=rule.row,
        sources=rule.initiators,
        responders=rule.responders,
        protocol=rule.protocol.value,
        ports=port_text(rule.ports),
        action=rule.action.value,
        new_only=isinstance(rule, Overlay) and rule.new_only,
        comment=rule.comment if isinstance(rule, Rule) else "",
        packets=count.packets,
        bytes=count.bytes,
    )


def _document(overlay: Overlay) -> dict[str, Any]:
    return overlay.model_dump(mode="json", by_alias=True)


__all__ = ["Count", "Firewall", "RuleState", "Target", "counter_name"]
