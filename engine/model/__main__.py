# SPDX-License-Identifier: MIT
"""`python -m engine.model --config FILE upgrade [REVISION] | downgrade REVISION | current | revisions`

Works on the configuration database of the Backup Service's configuration file; the service must not run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from engine import config as configuration
from engine.errors import InputError
from engine.model import migrate
from engine.model.connect import place_of
from engine.processes import reported

SCHEMA = "vadplab.database/1"


def main(argv: list[str]) -> int:
    """Prints one JSON document: the revision."""
    parser = argparse.ArgumentParser(prog="engine.model", description="Migrations of the configuration database")
    parser.add_argument("--config", type=Path, required=True)
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("upgrade", help="to the newest revision, or to the one named")
    up.add_argument("revision", nargs="?", default=migrate.HEAD)
    actions.add_parser("downgrade", help="to an older revision, or `base`").add_argument("revision")
    actions.add_parser("current", help="the revision that the database has")
    actions.add_parser("revisions", help="every revision")
    return reported(lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    document: dict[str, object] = {"schema": SCHEMA}
    if arguments.action == "revisions":
        document["revisions"] = migrate.revisions()
    else:
        config = configuration.load(arguments.config)
        if config.service is None:
            raise InputError(f"configuration {arguments.config}: `service` is missing")
        events = config.event_log("migrate")
        try:
            where, dialer = place_of(config), config.dialer(events)
            match arguments.action:
                case "upgrade":
                    document["revision"] = migrate.upgrade(where, dialer, arguments.revision)
                case "downgrade":
                    document["revision"] = migrate.downgrade(where, arguments.revision, dialer)
                case _:
                    document["revision"] = migrate.current(where, dialer)
        finally:
            events.close()
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
