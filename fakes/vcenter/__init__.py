# SPDX-License-Identifier: MIT
"""The fake vCenter: stock vcsim behind a gateway.

`main` is `vadplab fake vcenter`; `gateway.Gateway` is the same thing as an object, for either view: `vcenter`, or `host`
(what an ESXi shows on its own 443). Nouns: *source* where vcsim comes from, *simulator* a running vcsim, *world* one life
of it with our login and references, *keeper* what replaces a dead world, *places* references by name, *sanitiser* what
replies need, *owned task* a task whose state the gateway sets, *lease* what an export or import goes over, *listing* what
lies in a datastore's folders. FIDELITY.md lists what is real and what is not.
"""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """See `cli.main`; loaded late, since pyVmomi takes a while to import."""
    from fakes.vcenter.cli import main as run

    return run(argv)
