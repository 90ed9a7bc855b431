# SPDX-License-Identifier: MIT
"""Guest processing: what happens inside a VM's guest around the snapshot (steps 9-14 and 16).

`channel` is the interface, `ssh` the way into Linux guests. There is no failover from SSH to guest operations (flow reference,
step 13): when the path is closed, the scripts did not run, and the run says so.
"""
