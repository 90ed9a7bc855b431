# SPDX-License-Identifier: MIT
"""Tokens of the REST service. A token is 256 random bits; the database keeps its SHA-256 only, so it is shown once.

(Slow password hashes protect guessable secrets; nothing of 256 random bits can be guessed.)
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from typing import Any

from sqlalchemy import select

from engine.errors import InputError
from engine.model.connect import Sessions
from engine.model.tables import TokenRow

PREFIX = "vadplab_"
MAX_HOURS = 24 * 366
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")


class TokenUnknown(InputError):
    """There is no token of that name."""

    code = "token.unknown"
    advice = "List the tokens with `rest token list`."


class Tokens:
    """The tokens of the configuration database."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def issue(self, name: str, hours: float, *, now: int | None = None) -> dict[str, Any]:
        """A new token `{name, token, created, expires}`; times are UTC nanoseconds. Raises InputError."""
        if not _NAME.fullmatch(name):
            raise InputError("the token's name: letters, digits and . _ @ - (63 at most)")
        if not 0 < hours <= MAX_HOURS:
            raise InputError(f"the token's life: more than 0 and at most {MAX_HOURS} hours")
        token, created = PREFIX + secrets.token_urlsafe(32), now if now is not None else time.time_ns()
        expires = created + int(hours * 3600e9)
        with self._sessions.begin() as session:
            if session.scalars(select(TokenRow).where(TokenRow.name == name)).first() is not None:
                raise InputError(f"a token with the name {name} exists", next="Revoke it first, or take another name.")
            session.add(TokenRow(digest=_digest(token), name=name, created=created, expires=expires))
        return {"name": name, "token": token, "created": created, "expires": expires}

    def check(self, token: str, *, now: int | None = None) -> dict[str, Any] | None:
        """`{name, created, expires}` of a token that is valid now; None for any other text."""
        with self._sessions.read() as session:
            row = session.get(TokenRow, _digest(token))
            if row is None or row.expires <= (now if now is not None else time.time_ns()):
                return None
            return {"name": row.name, "created": row.created, "expires": row.expires}

    def entries(self) -> list[dict[str, Any]]:
        """Every token without its secret, by name; expired ones too."""
        with self._sessions.read() as session:
            rows = session.scalars(select(TokenRow).order_by(TokenRow.name))
            return [{"name": r.name, "created": r.created, "expires": r.expires} for r in rows]

    def revoke(self, name: str) -> None:
        """Ends a token. Raises TokenUnknown."""
        with self._sessions.begin() as session:
            row = session.scalars(select(TokenRow).where(TokenRow.name == name)).first()
            if row is None:
                raise TokenUnknown(f"no token with the name {name}")
            session.delete(row)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
