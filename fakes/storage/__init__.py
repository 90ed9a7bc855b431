# SPDX-License-Identifier: MIT
"""The storage behind one datastore: LUN, allocator, chains of layers, snapshots, write log, truth records.

Nouns, and the module each lives in:

* *grain* (`grains`): 64 KiB, the unit of allocation, of the write log and of truth records;
* *LUN* (`lun`): one sparse file, its allocator and its pins;
* *layer* (`layer`): one file of a chain (`<vm>.vmdk`, `<vm>-000001.vmdk`): a map from disk grain to LUN grain;
* *write log* (`writelog`): per disk grain, the sequence number of its last write;
* *gate* (`gate`): lets I/O of a VM pass, or stops it for the instant of a snapshot;
* *disk* (`disk`): a chain of layers with a write log: read, write, trim, zero, extents;
* *structure* (`structure`): VMs, chains and snapshots as records in one JSON file, replaced atomically;
* *datastore* (`datastore`, `vm`, `machines`, `snapshots`, `reverting`, `merging`): all of the above, and the operations on VMs,
  disks and snapshots;
* *truth record* (`truth`): per snapshot a SHA-256 per 64 KiB block of the frozen chain, taken in the background;
* *files* (`files`, `vmx`, `descriptor`): text files, and the text views of disk files;
* *contents* (`contents`): what a new disk holds;
* *attachments* (`attachments`): disk files that another VM has open, which is HotAdd;
* *changes* (`changes`, `tracking`): changed areas, epochs and change IDs; *map* (`sanmap`): where a disk lies on the LUN;
* *exports* (`exports`, `handles`), *service* (`service`), *plugin* (`plugin`): NBD names, fabric messages, nbdkit's callbacks.

Everything that runs inside nbdkit uses the standard library and `fakes.core.fabric` only.
"""
