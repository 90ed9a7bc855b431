# SPDX-License-Identifier: MIT
"""The virtual SCSI bus of one VM, seen from inside: disks that vCenter attaches appear as devices, and vanish again.

Nouns, and the module each lives in:

* *device* (`device`): one disk, shown by nbdfuse as a file that is read like a block device, with its stable names;
* *bus* (`bus`): the devices of a VM, and the fabric messages `disk.plug`, `disk.unplug`, `disk.list`;
* *janitor* (`janitor`): a process beside the bus that takes all devices away when the bus dies, however it dies;
* *command* (`command`): the command line.
"""
