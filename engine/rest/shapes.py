# SPDX-License-Identifier: MIT
"""Bodies of the REST service, for its OpenAPI document. Times are UTC nanoseconds; documents are those of the console."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Start(BaseModel):
    """What may differ in one run of a job."""

    model_config = ConfigDict(extra="forbid")

    mode: str | None = Field(default=None, description="transport mode in place of the job's")
    direction: str | None = Field(default=None, description="proxy-to-repository or repository-to-proxy")
    failover: bool | None = Field(default=None, description="whether another transport mode may take over")
    full: bool | None = Field(default=None, description="a new full restore point")
    session: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$", description="id of the new session")


class Started(BaseModel):
    """A run that has been put into its job's queue."""

    session: str
    job: str
    location: str = Field(description="path of the session")


class Stopped(BaseModel):
    """Runs that have ended by this request: guests thawed, snapshots committed."""

    job: str
    stopped: list[str]


class Jobs(BaseModel):
    """Every job: settings, origin, enabled, schedule, next_runs."""

    jobs: list[dict[str, Any]]


class JobDetails(BaseModel):
    """One job, its VMs as last seen, its last runs."""

    job: dict[str, Any]
    vms: list[dict[str, Any]]
    last_runs: list[dict[str, Any]]


class Session(BaseModel):
    """A run of a job, a rescan or a restore. `document`: its result, once it has ended."""

    id: str
    kind: str
    subject: str
    state: str = Field(description="queued, running or ended")
    result: str | None
    created: int
    ended: int | None
    document: dict[str, Any]


class Sessions(BaseModel):
    """Sessions, newest first, without their documents."""

    sessions: list[dict[str, Any]]


class Points(BaseModel):
    """The restore points of every repository, oldest first."""

    points: list[dict[str, Any]]


class Infrastructure(BaseModel):
    """vCenters, servers with state and load, VMs and guests; never a secret."""

    vcenters: list[dict[str, Any]]
    servers: list[dict[str, Any]]
    vms: list[dict[str, Any]]
    guests: list[dict[str, Any]]


class Token(BaseModel):
    """The token of this request."""

    name: str
    created: int
    expires: int


class Failure(BaseModel):
    """An error of the catalogue."""

    error: dict[str, Any]
