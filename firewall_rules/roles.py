# SPDX-License-Identifier: MIT
"""Roles: what a machine is in a backup infrastructure (flow reference section 1). Topologies and policies spell them so."""

from __future__ import annotations

ROLES: dict[str, str] = {
    "console": "Backup console",
    "em": "Enterprise Manager",
    "rest_client": "Script that uses REST",
    "browser": "Web browser of an administrator",
    "admin_pc": "Administrator's workstation (remote desktop, SSH)",
    "backup_server": "Backup Service and Backup Managers",
    "config_db": "Configuration database on a machine of its own",
    "proxy": "Transport Service and one Data Mover per task",
    "repository": "Transport Service, Data Mover and backup files",
    "gateway": "Data Mover in front of a share or an appliance",
    "gip": "Guest interaction proxy",
    "log_server": "Log shipping server",
    "mount_server": "Mount server, may run vPower NFS",
    "vcenter": "vSphere API, ticket issuer",
    "esxi": "ESXi host: 443 API and guest files, 902 authd and NFC",
    "san": "iSCSI target",
    "nfs_filer": "NFS datastore or repository",
    "smb_share": "SMB share used as a repository",
    "appliance": "Deduplicating appliance or object storage",
    "guest_windows": "Windows VM with VMware Tools",
    "guest_linux": "Linux VM with VMware Tools",
    "guest_isolated": "VM without a network",
    "dns": "Name server",
    "ntp": "Time server",
    "ad": "Domain controller",
    "smtp": "Mail server",
    "syslog": "Log collector",
    "kms": "Key server",
    "internet": "Licence, update and revocation servers",
    "router": "The firewall between all of them",
}

ANY = "any"


def known(role: str) -> bool:
    """True for a role of the list, or `any`."""
    return role == ANY or role in ROLES
