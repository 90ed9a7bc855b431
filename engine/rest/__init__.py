# SPDX-License-Identifier: MIT
"""The REST service (9419): jobs, sessions, restore points and infrastructure over HTTPS, with tokens. `docs/rest.md`."""
