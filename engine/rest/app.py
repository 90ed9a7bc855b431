# SPDX-License-Identifier: MIT
"""The routes of the REST service. They call what consoles call: a job started here is the same run.

GET    /api/v1/token                     the token of the request: name, expiry      DELETE  ends it
GET    /api/v1/jobs                      GET /api/v1/jobs/{name}
POST   /api/v1/jobs/{name}/start         202 with the session          POST /api/v1/jobs/{name}/stop
GET    /api/v1/sessions?job=&limit=      GET /api/v1/sessions/{id}?wait=SECONDS
GET    /api/v1/points?job=&vm=           GET /api/v1/infrastructure
GET    /api/v1/openapi.json              without a token
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from engine.errors import InputError, VadplabError
from engine.events import new_id
from engine.model.database import Database
from engine.rest import shapes
from engine.rest.errors import SessionUnknown, TokenRefused, status_of

PREFIX = "/api/v1"
MAX_BODY = 64 * 1024
MAX_WAIT = 60.0
_SHOWN = ("id", "kind", "subject", "state", "result", "created", "ended")


class BodyTooLarge(InputError):
    """The request's body is larger than any body that the REST service reads."""

    code = "rest.too-large"
    advice = f"Send at most {MAX_BODY} bytes, with a Content-Length."


class Operations(Protocol):
    """What the routes call: the Backup Service."""

    async def database_call(self, work: Callable[[Database], Any]) -> Any:
        """Runs work on the configuration database."""

    async def start_job(self, name: str, session: str, options: dict[str, Any]) -> None:
        """Step 1: begins a run; `options`: mode, direction, failover, full, null where the job's own apply."""

    async def stop_job(self, name: str) -> list[str]:
        """Stops every run of a job; gives the sessions."""

    async def session_ended(self, session: str, seconds: float) -> None:
        """Returns when that run has ended, at once when it is not known, after that many seconds anyway."""

    async def show_job(self, name: str) -> dict[str, Any]:
        """As `job.show`."""

    async def show_infrastructure(self) -> dict[str, Any]:
        """As `infra.show`."""

    async def points(self) -> list[dict[str, Any]]:
        """As `points.list`."""


def create_app(service: Operations) -> FastAPI:
    """The application; it has no state of its own."""
    bearer = HTTPBearer(auto_error=False, description="A token made in a console: `rest token create NAME`")

    credentials = Depends(bearer)

    async def token(given: HTTPAuthorizationCredentials | None = credentials) -> dict[str, Any]:
        found: dict[str, Any] | None = None
        if given is not None and given.scheme.lower() == "bearer":
            text = given.credentials
            found = await service.database_call(lambda db: db.tokens.check(text))
        if found is None:
            raise TokenRefused("no valid token")
        return found

    app = FastAPI(
        title="Backup service",
        version="1",
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        responses={code: {"model": shapes.Failure} for code in (400, 401, 404, 409, 502, 503)},
    )
    _handle_errors(app)
    authorised = Depends(token)

    @app.get(f"{PREFIX}/token", response_model=shapes.Token, tags=["token"])
    async def show_token(found: dict[str, Any] = authorised) -> Any:
        return found

    @app.delete(f"{PREFIX}/token", status_code=204, tags=["token"])
    async def end_token(found: dict[str, Any] = authorised) -> Response:
        await service.database_call(lambda db: db.tokens.revoke(found["name"]))
        return Response(status_code=204)

    @app.get(f"{PREFIX}/jobs", response_model=shapes.Jobs, dependencies=[authorised], tags=["jobs"])
    async def jobs() -> Any:
        return {"jobs": await service.database_call(lambda db: db.jobs())}

    @app.get(f"{PREFIX}/jobs/{{name}}", response_model=shapes.JobDetails, dependencies=[authorised], tags=["jobs"])
    async def job(name: str) -> Any:
        return await service.show_job(name)

    @app.post(
        f"{PREFIX}/jobs/{{name}}/start",
        response_model=shapes.Started,
        status_code=202,
        dependencies=[authorised],
        tags=["jobs"],
    )
    async def start(name: str, body: shapes.Start | None = None) -> Any:
        wanted = body or shapes.Start()
        session = wanted.session or new_id()
        await service.start_job(name, session, wanted.model_dump(exclude={"session"}))
        return {"session": session, "job": name, "location": f"{PREFIX}/sessions/{session}"}

    @app.post(f"{PREFIX}/jobs/{{name}}/stop", response_model=shapes.Stopped, dependencies=[authorised], tags=["jobs"])
    async def stop(name: str) -> Any:
        return {"job": name, "stopped": await service.stop_job(name)}

    @app.get(f"{PREFIX}/sessions", response_model=shapes.Sessions, dependencies=[authorised], tags=["sessions"])
    async def sessions(job: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Any:
        found = await service.database_call(lambda db: db.sessions(subject=job))
        return {"sessions": [{k: s[k] for k in _SHOWN} for s in found[:limit]]}

    @app.get(
        f"{PREFIX}/sessions/{{session}}", response_model=shapes.Session, dependencies=[authorised], tags=["sessions"]
    )
    async def one_session(session: str, wait: Annotated[float, Query(ge=0, le=MAX_WAIT)] = 0) -> Any:
        if wait:
            await service.session_ended(session, wait)
        found = await service.database_call(lambda db: db.session(session))
        if found is None:
            raise SessionUnknown(f"no session with the id {session}")
        return {k: found[k] for k in (*_SHOWN, "document")}

    @app.get(f"{PREFIX}/points", response_model=shapes.Points, dependencies=[authorised], tags=["points"])
    async def points(job: str | None = None, vm: str | None = None) -> Any:
        found = await service.points()
        return {"points": [p for p in found if (job in (None, p.get("job"))) and (vm in (None, p.get("vm")))]}

    @app.get(
        f"{PREFIX}/infrastructure",
        response_model=shapes.Infrastructure,
        dependencies=[authorised],
        tags=["infrastructure"],
    )
    async def infrastructure() -> Any:
        return await service.show_infrastructure()

    return app


def _handle_errors(app: FastAPI) -> None:
    @app.middleware("http")
    async def small_bodies(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        chunked = "transfer-encoding" in request.headers
        if chunked or not length.isdigit() or int(length) > MAX_BODY:
            return _answer(BodyTooLarge("the body is too large or has no length"))
        return await call_next(request)

    @app.exception_handler(VadplabError)
    async def ours(_request: Request, exc: VadplabError) -> Response:
        return _answer(exc)

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, exc: RequestValidationError) -> Response:
        text = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
        return _answer(InputError(text))

    @app.exception_handler(HTTPException)
    async def plain(_request: Request, exc: HTTPException) -> Response:
        error = InputError(str(exc.detail), next=f"See {PREFIX}/openapi.json for every path and method.")
        return JSONResponse({"error": error.to_dict()}, exc.status_code, headers=exc.headers)

    @app.exception_handler(TimeoutError)
    async def late(_request: Request, _exc: TimeoutError) -> Response:
        return _answer(VadplabError("the service did not answer in time"))


def _answer(error: VadplabError) -> Response:
    status = status_of(error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse({"error": error.to_dict()}, status, headers=headers)
