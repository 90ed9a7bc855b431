# SPDX-License-Identifier: MIT
"""Secrets in the configuration database: encrypted with a key that lies beside it in a file only its owner can read."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from engine.errors import MissingError


class SecretsUnreadable(MissingError):
    """The secrets of the configuration database cannot be decrypted with the key file."""

    code = "secrets.unreadable"
    advice = "Put the key file back that belongs to this database, or run `infra rescan` with a new one."


class SecretBox:
    """Encrypts and decrypts with the key in `path`; the file is made (mode 0600) when it is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            key = path.read_bytes().strip() if path.exists() else _create(path)
            self._fernet = Fernet(key)
        except (OSError, ValueError) as exc:
            raise SecretsUnreadable(f"key file {path} cannot be used: {type(exc).__name__}") from exc

    def seal(self, secret: str) -> str:
        """The encrypted form, safe to store."""
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        """The secret. Raises SecretsUnreadable when the key is another one or the text was changed."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as exc:
            raise SecretsUnreadable(f"a secret cannot be decrypted with {self._path}") from exc


def _create(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    key = Fernet.generate_key()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(key + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return key
