# SPDX-License-Identifier: MIT
"""A storage array that serves the LUNs of datastores over iSCSI (port 3260): stock tgtd, set up and watched by us.

Nouns: *target*, what an initiator logs in to, one per array; *LUN*, one datastore's storage, a number within the
target, known by its NAA identifier; *portal*, the address served; *ACL*, the initiators that may log in; *CHAP*, the
secret that they prove.
"""
