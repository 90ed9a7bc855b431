# SPDX-License-Identifier: MIT
"""Errors of the REST service, and the HTTP status of every error of the catalogue."""

from __future__ import annotations

from http import HTTPStatus

from engine.errors import ConnectError, InputError, MissingError, VadplabError


class TokenRefused(VadplabError):
    """The request carries no token, or one that is not valid (any more)."""

    code = "rest.token"
    symptom = "token refused"
    advice = "Send `Authorization: Bearer TOKEN`; get a token in a console with `rest token create NAME`."


class SessionUnknown(InputError):
    """There is no session of that id."""

    code = "session.unknown"
    advice = "List them with GET /api/v1/sessions."


class RestFailed(VadplabError):
    """The REST service answered with something that is not its own, or with a failure without a code."""

    code = "rest.failed"
    symptom = "bad answer"
    advice = "Check that nothing answers in the place of the REST service, and see the backup server's log."


_BY_CODE = {
    TokenRefused.code: HTTPStatus.UNAUTHORIZED,
    SessionUnknown.code: HTTPStatus.NOT_FOUND,
    "job.unknown": HTTPStatus.NOT_FOUND,
    "job.not-running": HTTPStatus.CONFLICT,
    "job.disabled": HTTPStatus.CONFLICT,
    "rest.too-large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}


def status_of(error: VadplabError) -> int:
    """The HTTP status that says the same as the error."""
    code = error.to_dict()["code"]
    if code in _BY_CODE:
        return int(_BY_CODE[code])
    if isinstance(error, InputError):
        return int(HTTPStatus.BAD_REQUEST)
    if isinstance(error, MissingError):
        return int(HTTPStatus.SERVICE_UNAVAILABLE)
    return int(HTTPStatus.BAD_GATEWAY if isinstance(error, ConnectError) else HTTPStatus.INTERNAL_SERVER_ERROR)
