# SPDX-License-Identifier: MIT
"""nftables: a policy as one table `inet vadplab` with one forward chain, for nft 1.0.6 or newer.

Facts behind the form (lab reference section 2, flow reference section 8):

* The chain is never deleted and its policy is drop; a replacement flushes the chain and fills it again in the same
  transaction, and the chain ends with an explicit, counted drop: no packet slips through in between.
* `ct state established,related accept` makes counters on allowing rules count connections (a SYN that is repeated because
  nobody answers carries the mark by then and passes uncounted); a counter on a dropping rule counts SYN repeats, one on
  a refusing rule attempts. A new TCP connection must begin with a SYN; everything else that
  belongs to no connection meets `invalid` or `stray`, so that it never looks like an attempt.
* `ct mark set N` lets connection tracking give packets and bytes per rule (`marks`). `log group 5` with the rule's id
  as prefix names the deciding rule for every first packet; `queue-threshold 1` makes the kernel deliver at once.
* A block stands before the established rule, matches both directions of what its initiator opened, and so cuts it.
* nft 1.0.6: one brace a line; generated names have a prefix and never equal a keyword.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from firewall_rules.errors import RenderFailed
from firewall_rules.model import DEFAULT_RULE, INVALID_RULE, STRAY_RULE, Action, Addresses, Policy, Rule
from firewall_rules.overlay import Overlay, newest_first
from firewall_rules.ports import ANY, PortRange
from firewall_rules.render.base import Renderer, marks, overlay_mark
from firewall_rules.world import addresses_of

FAMILY, TABLE, CHAIN = "inet", "vadplab", "vp_forward"
LOG_GROUP = 5
SNAPLEN = 96
COUNTER_PREFIX = "vp_"

_NEW = {"tcp": "ct state new tcp flags & (fin | syn | rst | ack) == syn", "udp": "ct state new"}
# An open connection's packets, told apart by who opened it: a block of A to B leaves what B opened to A alone.
_OPEN_THERE = "ct state established,related ct direction original"
_OPEN_BACK = "ct state established,related ct direction reply"
_VERDICT = {
    Action.ALLOW: "accept",
    Action.DROP: "drop",
    Action.PROHIBIT: "reject with icmpx type admin-prohibited",
}
_BUILT_IN = (INVALID_RULE, STRAY_RULE, DEFAULT_RULE)


class Nft(Renderer):
    """Renders for nftables. `retired` are counter names of an earlier policy that go in the same transaction."""

    name = "nft"

    def render(
        self,
        policy: Policy,
        addresses: Addresses,
        overlays: Sequence[Overlay] = (),
        retired: Iterable[str] = (),
    ) -> str:
        """One `nft -f` transaction that makes or replaces the table.

        Raises:
            UnknownEndpoint: a rule or overlay names what is neither role nor host. RenderFailed: names collide.
        """
        names = counters(policy, overlays)
        lines = [f"# policy {policy.name}, profile {policy.profile}", f"table {FAMILY} {TABLE} {{"]
        for counter in names:
            lines += [f"\tcounter {counter} {{", "\t}"]
        lines += [f"\tchain {CHAIN} {{", "\t\ttype filter hook forward priority filter; policy drop;", "\t}", "}"]
        lines.append(f"flush chain {FAMILY} {TABLE} {CHAIN}")
        lines += [f"delete counter {FAMILY} {TABLE} {name}" for name in retired if name not in names]
        lines += [f"table {FAMILY} {TABLE} {{", f"\tchain {CHAIN} {{"]
        lines += [f"\t\t{line}" for line in self._chain(policy, addresses, overlays)]
        lines += ["\t}", "}"]
        return "\n".join(lines) + "\n"

    def decisions(self, text: str) -> list[tuple[str, Action]]:
        """Rule ids and actions of a rendered text in order, without the built-in rules but the default."""
        found: list[tuple[str, Action]] = []
        for line in text.splitlines():
            match = re.search(r'log group \d+ .*prefix "([^"]+)" (.+?) comment ', line)
            if not match or match[1] in (INVALID_RULE, STRAY_RULE):
                continue
            action = _action_of(match[2])
            if not found or found[-1] != (match[1], action):
                found.append((match[1], action))
        return found

    def _chain(self, policy: Policy, addresses: Addresses, overlays: Sequence[Overlay]) -> list[str]:
        lines: list[str] = []
        for overlay in newest_first(overlays):
            lines += _overlay_lines(overlay, addresses)
        lines.append('ct state established,related accept comment "established"')
        lines.append('ct state new ct mark != 0 accept comment "repeated SYN of an allowed connection"')
        lines.append(
            f"ct state invalid counter name {counter_name(INVALID_RULE)} {_log(INVALID_RULE)} drop "
            f'comment "{INVALID_RULE}"'
        )
        number = {rule_id: mark for mark, rule_id in marks(policy).items()}
        for rule in policy.rules:
            lines += _rule_lines(rule, addresses, number.get(rule.id))
        lines.append(
            f"meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn counter name {counter_name(STRAY_RULE)} "
            f'{_log(STRAY_RULE)} drop comment "{STRAY_RULE}"'
        )
        return lines + _default_lines(policy.default)


def counter_name(rule_id: str) -> str:
    """The named counter of a rule."""
    return COUNTER_PREFIX + re.sub(r"[^A-Za-z0-9]", "_", rule_id)


def counters(policy: Policy, overlays: Sequence[Overlay] = ()) -> dict[str, str]:
    """{counter name: rule id} of everything that is counted, in order: rules, overlays, then the built-in rules."""
    table: dict[str, str] = {}
    for rule_id in (*(r.id for r in policy.rules), *(o.id for o in overlays), *_BUILT_IN):
        name = counter_name(rule_id)
        if name in table:
            raise RenderFailed(f"{rule_id!r} and {table[name]!r} would share the counter {name}: rename one")
        table[name] = rule_id
    return table


def _rule_lines(rule: Rule, addresses: Addresses, mark: int | None) -> list[str]:
    ends = _ends(rule.initiators, rule.responders, addresses)
    if ends is None:
        return [f"# {rule.id}: no host here has the roles {_words(rule)}"]
    comment = f"{rule.id}: {rule.comment}" if rule.comment else rule.id
    lines = []
    for protocol in rule.protocol.parts:
        # A refusal matches new connections only: what is no SYN belongs to `stray`, not to this rule's count.
        match = " ".join(filter(None, [*ends, _ports(protocol, "dport", rule.ports), _NEW[protocol]]))
        lines.append(_deciding(match, rule.id, rule.action, mark, comment, protocol))
    return lines


def _overlay_lines(overlay: Overlay, addresses: Addresses) -> list[str]:
    ends = _ends(overlay.initiators, overlay.responders, addresses)
    if ends is None:
        return [f"# {overlay.id}: no host here has the roles {_words(overlay)}"]
    lines = []
    for protocol in overlay.protocol.parts:
        there = " ".join(filter(None, [*ends, _ports(protocol, "dport", overlay.ports)]))
        if overlay.action is Action.ALLOW:
            back = _back(overlay, addresses, protocol)
            # Both directions of what it opened, so that an older block's reply lines do not cut it.
            lines.append(f'{there} {_OPEN_THERE} accept comment "{overlay.id} open"')
            lines.append(f'{back} {_OPEN_BACK} accept comment "{overlay.id} open"')
            match = f"{there} {_NEW[protocol]}"
            lines.append(_deciding(match, overlay.id, overlay.action, overlay_mark(overlay), overlay.id, protocol))
            continue
        match = f"{there} {_NEW[protocol]}"
        lines.append(_deciding(match, overlay.id, overlay.action, None, overlay.id, protocol))
        if overlay.cuts:
            lines += _cut_lines(overlay, addresses, there, protocol)
    return lines


def _cut_lines(overlay: Overlay, addresses: Addresses, there: str, protocol: str) -> list[str]:
    """Ends open connections in both directions; apart from the deciding line, so that this never counts as an attempt.

    `invalid` is what connection tracking calls their packets once it has been made to forget them.
    """
    back = _back(overlay, addresses, protocol)
    matches = [
        f"{there} {_OPEN_THERE}",
        f"{back} {_OPEN_BACK}",
        f"{there} ct state invalid",
        f"{back} ct state invalid",
    ]
    verdict = _verdict(overlay.action, protocol)
    return [f'{match} counter {verdict} comment "{overlay.id} cut"' for match in matches]


def _back(overlay: Overlay, addresses: Addresses, protocol: str) -> str:
    """The match of packets from responder to initiator."""
    ends = _ends(overlay.responders, overlay.initiators, addresses)
    assert ends is not None, "checked for the forward direction"
    return " ".join(filter(None, [*ends, _ports(protocol, "sport", overlay.ports)]))


def _default_lines(action: Action) -> list[str]:
    counter = counter_name(DEFAULT_RULE)
    if action is not Action.RESET:
        return [f'counter name {counter} {_log(DEFAULT_RULE)} {_VERDICT[action]} comment "{DEFAULT_RULE}"']
    return [
        f'meta l4proto tcp counter name {counter} {_log(DEFAULT_RULE)} reject with tcp reset comment "{DEFAULT_RULE}"',
        f'counter name {counter} {_log(DEFAULT_RULE)} {_VERDICT[Action.PROHIBIT]} comment "{DEFAULT_RULE}"',
    ]


def _deciding(match: str, rule_id: str, action: Action, mark: int | None, comment: str, protocol: str) -> str:
    marking = f"ct mark set {mark:#x} " if mark is not None and action is Action.ALLOW else ""
    return (
        f"{match} counter name {counter_name(rule_id)} {marking}{_log(rule_id)} {_verdict(action, protocol)} "
        f'comment "{comment[:120]}"'
    )


def _log(rule_id: str) -> str:
    return f'log group {LOG_GROUP} snaplen {SNAPLEN} queue-threshold 1 prefix "{rule_id}"'


def _verdict(action: Action, protocol: str) -> str:
    if action is Action.RESET:
        # UDP has no reset: a port-unreachable is what a closed port answers.
        return "reject with tcp reset" if protocol == "tcp" else "reject with icmpx type port-unreachable"
    return _VERDICT[action]


def _action_of(verdict: str) -> Action:
    if "tcp reset" in verdict or "port-unreachable" in verdict:
        return Action.RESET
    if "admin-prohibited" in verdict:
        return Action.PROHIBIT
    return Action.ALLOW if "accept" in verdict else Action.DROP


def _ends(initiators: Sequence[str], responders: Sequence[str], addresses: Addresses) -> list[str] | None:
    """Address matches, or None when one end has no host."""
    parts = []
    for keyword, names in (("ip saddr", initiators), ("ip daddr", responders)):
        found = addresses_of(names, addresses)
        if found is None:
            continue
        if not found:
            return None
        parts.append(f"{keyword} {_set(found)}")
    return parts


def _ports(protocol: str, direction: str, ranges: tuple[PortRange, ...]) -> str:
    if ranges == ANY:
        return f"meta l4proto {protocol}"
    return f"{protocol} {direction} {_set([str(r) for r in ranges])}"


def _set(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else "{ " + ", ".join(items) + " }"


def _words(rule: Rule | Overlay) -> str:
    return f"{', '.join(rule.initiators)} to {', '.join(rule.responders)}"
