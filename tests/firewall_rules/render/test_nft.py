# SPDX-License-Identifier: MIT
"""nftables text: golden files, nft's own check, names, and the kernel against the oracle."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from firewall_rules.errors import RenderFailed
from firewall_rules.load import load_matrix, load_policy
from firewall_rules.model import Action, Policy
from firewall_rules.overlay import Overlay, of_row
from firewall_rules.render.nft import Nft, counter_name, counters
from lab.realise.firewall import Firewall
from lab.realise.nft_library import NftLibrary
from tests.firewall_rules.worlds import WORLD, overlay, policy, rule
from tests.lab.realise.routed import WORLD as ROUTED_WORLD
from tests.lab.realise.routed import routed

GOLDEN = Path(__file__).parent / "golden"
BLOCKS = [
    of_row("block-1", load_matrix().row("H5"), Action.RESET),
    overlay("allow-2", "allow", "proxy-1", "esxi-1", 902),
    overlay("block-3", "drop", "backup_server", "proxy-1", "any"),
    overlay("block-4", "prohibit", "proxy", "repository", "53", protocol="udp"),
    of_row("block-5", load_matrix().row("M4"), Action.DROP, new_only=True),
]
VARIANTS = policy(
    rule("A", "proxy", "esxi", [902, "1000-2000"]),
    rule("B", "proxy", "nfs_filer", 2049),
    rule("C", "any", "vcenter", 443, "reset", comment="refuse"),
    rule("D", "console", "any", "any", "prohibit", protocol="tcp+udp"),
    default="reset",
)
CASES: dict[str, tuple[Policy, list[Overlay]]] = {
    "default-12.3": (load_policy("default-12.3"), []),
    "reverse-data": (load_policy("reverse-data"), []),
    "blocked": (load_policy("default-12.3"), BLOCKS),
    "variants": (VARIANTS, []),
}


@pytest.mark.parametrize("name", CASES)
def test_the_text_is_the_golden_one(name: str) -> None:
    text = Nft().render(CASES[name][0], WORLD, CASES[name][1])
    path = GOLDEN / f"{name}.nft"
    if not path.exists():
        path.with_suffix(".actual").write_text(text)
        pytest.fail(f"no golden file: review {path.with_suffix('.actual')} and rename it to .nft")
    assert text == path.read_text()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("nft") is None, reason="needs root and nft")
@pytest.mark.parametrize("name", CASES)
def test_nft_accepts_it_once_and_again(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.nft"
    path.write_text(Nft().render(CASES[name][0], WORLD, CASES[name][1]))
    script = f"nft -c -f {path} && nft -f {path} && nft -f {path} && nft list chain inet vadplab vp_forward"
    done = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r'comment "([^"]+)"', done.stdout)
    assert listed == re.findall(r'comment "([^"]+)"', path.read_text())
    assert "policy drop" in done.stdout


def test_counter_names_collide_loudly() -> None:
    with pytest.raises(RenderFailed, match=r"block-1.*block\.1"):
        counters(policy(rule("block.1", "proxy", "esxi", 1)), [overlay("block-1", "drop", "proxy", "esxi", 1)])
    assert counter_name("H5") == "vp_H5"


def test_retired_counters_go_unless_they_are_in_use() -> None:
    text = Nft().render(load_policy("default-12.3"), WORLD, retired=["vp_old", "vp_H5"])
    assert "delete counter inet vadplab vp_old" in text
    assert "delete counter inet vadplab vp_H5" not in text


def test_no_two_braces_on_a_line_and_no_unprefixed_name() -> None:
    for candidate, overlays in CASES.values():
        text = Nft().render(candidate, WORLD, overlays)
        assert not re.search(r"\}\s*\}", text.replace("\n", "\\"))
        assert all(name.startswith("vp_") for name in re.findall(r"^\t(?:counter|chain) (\S+)", text, re.MULTILINE))


ACTIONS = ["allow", "drop", "reset", "prohibit"]
NAMES = ["proxy", "esxi", "repository", "any"]
PORTS = range(900, 905)


def random_rules(seed: int) -> tuple[Policy, list[Overlay]]:
    dice = random.Random(seed)

    def ends() -> tuple[str, str, str]:
        low = dice.choice(PORTS)
        return dice.choice(NAMES), dice.choice(NAMES), f"{low}-{dice.randint(low, PORTS[-1])}"

    rules = [rule(f"R{n}", *ends(), dice.choice(ACTIONS)) for n in range(5)]
    overlays = [
        overlay(f"block-{n}", dice.choice(ACTIONS), *ends(), new_only=dice.random() < 0.3)
        for n in range(dice.randint(0, 3))
    ]
    return policy(*rules, default=dice.choice(ACTIONS[1:])), overlays


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_the_kernel_does_what_the_oracle_says() -> None:
    async def scenario() -> int:
        probes = 0
        with routed() as world:
            hosts = [host for members in ROUTED_WORLD.values() for host in members]
            for host, port in itertools.product(hosts, PORTS):
                world.answer(host, port)
            loader, firewall = NftLibrary(world.router), Firewall(world.router)
            for seed in range(6):
                candidate, overlays = random_rules(seed)
                await firewall.apply(candidate, ROUTED_WORLD)
                await loader.run(Nft().render(candidate, ROUTED_WORLD, overlays))
                firewall._overlays = tuple(overlays)
                flows = [(a, b, p) for a, b in itertools.permutations(hosts, 2) for p in PORTS]
                seen = await asyncio.gather(*(world.connect(a, b, p, deadline=0.4) for a, b, p in flows))
                for (a, b, port), symptom in zip(flows, seen, strict=True):
                    decision = firewall.evaluate(a, b, "tcp", port)
                    expected = "open" if decision.action is Action.ALLOW else decision.verdict
                    assert symptom == expected, f"seed {seed}: {decision.explanation}, seen {symptom}"
                    probes += 1
                await loader.run("flush chain inet vadplab vp_forward")
            await loader.close()
            await firewall.close()
        return probes

    assert asyncio.run(scenario()) == 6 * 6 * len(PORTS)
