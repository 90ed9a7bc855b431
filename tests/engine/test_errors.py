# SPDX-License-Identifier: MIT
"""The catalogue of errors: every class of the engine has a code of its own, a meaning, advice, and a known exit code."""

from __future__ import annotations

import errno
import importlib
import pkgutil
import socket
import ssl
from collections import Counter

import pytest

import engine
from engine import errors


def everything() -> list[type[errors.VadplabError]]:
    for module in pkgutil.walk_packages(engine.__path__, "engine."):
        if not module.name.endswith(
            ("__main__", "engine.recovery.plugin")
        ):  # the plugin is imported inside nbdkit only
            importlib.import_module(module.name)
    return [c for c in errors.catalogue() if c.__module__.startswith("engine.")]


def test_codes_are_unique_and_documented() -> None:
    classes = everything()
    codes = Counter(c.__dict__.get("code") for c in classes)
    assert [code for code, count in codes.items() if count > 1] == [], (
        "two classes share a code, or one has none of its own"
    )
    for kind in classes:
        assert kind.__doc__ and kind.advice and kind.symptom and kind.exit_code in (1, 2, 3), kind


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (TimeoutError(), "connect.timed-out"),
        (OSError(errno.ETIMEDOUT, "x"), "connect.timed-out"),
        (ConnectionRefusedError(), "connect.refused"),
        (OSError(errno.EHOSTUNREACH, "x"), "connect.prohibited"),
        (OSError(errno.ENETUNREACH, "x"), "connect.unreachable"),
        (ConnectionResetError(), "connect.cut"),
        (EOFError(), "connect.cut"),
        (socket.gaierror(), "connect.name"),
        (ssl.SSLError(), "tls.failed"),
        (OSError(errno.EIO, "x"), "connect.failed"),
    ],
)
def test_symptoms_of_a_failed_connect(exc: BaseException, code: str) -> None:
    found = errors.from_oserror(exc, step="19", host="proxy-1", target="esxi-1", port=902)
    assert found.code == code and found.message.startswith(f"proxy-1 to esxi-1:902: {found.symptom}")
    assert found.to_dict()["step"] == "19" and str(found).startswith("step 19: ")


def test_remote_errors_keep_what_they_say() -> None:
    found = errors.RemoteError({"code": "store.full", "message": "m", "symptom": "s", "exit_code": 2, "step": "21"})
    assert (found.to_dict()["code"], found.to_dict()["symptom"], found.exit_code) == ("store.full", "s", 2)
    assert str(found) == "step 21: m [store.full]"
    assert errors.RemoteError({}).exit_code == 1
