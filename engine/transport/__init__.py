# SPDX-License-Identifier: MIT
"""Transport Service (6162): on proxies it starts, watches and reaps Data Movers; on repositories it also keeps restore points."""
