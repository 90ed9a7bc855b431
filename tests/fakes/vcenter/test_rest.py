# SPDX-License-Identifier: MIT
"""The REST API, by both of its prefixes."""

from __future__ import annotations

import base64
import http.client
import json
from typing import Any

import pytest

from tests.fakes.vcenter.conftest import PASSWORD, USER, Site


class Client:
    """A client that keeps its session's token."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.headers: dict[str, str] = {}

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPSConnection("127.0.0.1", self._site.port, context=self._site.trust, timeout=30)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {**self.headers, **headers})
            answer = connection.getresponse()
            read = answer.read()
            plain = (answer.getheader("Content-Type") or "").startswith("text/")
            return answer.status, read.decode() if plain else json.loads(read) if read else None
        finally:
            connection.close()

    def login(self, password: str = PASSWORD) -> tuple[int, Any]:
        """A session of `/api`."""
        basic = base64.b64encode(f"{USER}:{password}".encode()).decode()
        return self("POST", "/api/session", Authorization=f"Basic {basic}")


@pytest.fixture
def client(site: Site) -> Client:
    """Logged in."""
    made = Client(site)
    status, token = made.login()
    assert status == 201
    made.headers = {"vmware-api-session-id": token}
    return made


def test_a_session_begins_and_ends(site: Site, client: Client) -> None:
    assert Client(site).login("wrong")[0] == 401
    status, told = client("GET", "/api/session")
    assert (status, told["user"]) == (200, USER)
    assert client("DELETE", "/api/session") == (204, None)
    status, error = client("GET", "/api/vcenter/vm")
    assert (status, error["error_type"]) == (401, "UNAUTHENTICATED")


def test_the_inventory_is_listed(client: Client) -> None:
    status, vms = client("GET", "/api/vcenter/vm")
    assert status == 200
    assert {(each["name"], each["power_state"]) for each in vms} == {
        ("linux-vm", "POWERED_ON"),
        ("files-vm", "POWERED_OFF"),
    }
    moid = next(each["vm"] for each in vms if each["name"] == "files-vm")
    for path in ("/api/vcenter/vm?names=files-vm", f"/api/vcenter/vm?vms={moid}&vms=x"):
        assert [each["vm"] for each in client("GET", path)[1]] == [moid]
    assert client("GET", "/rest/vcenter/vm?filter.names.1=none") == (200, {"value": []})
    assert client("GET", f"/api/vcenter/vm/{moid}")[1]["name"] == "files-vm"
    assert client("GET", f"/api/vcenter/vm/{moid}/power") == (200, {"state": "POWERED_OFF"})
    status, error = client("GET", "/api/vcenter/vm/vm-999")
    assert (status, error["error_type"]) == (404, "NOT_FOUND")
    for kind, count in (("host", 2), ("datastore", 1), ("cluster", 1), ("datacenter", 1), ("network", 1)):
        modern, older = client("GET", f"/api/vcenter/{kind}")[1], client("GET", f"/rest/vcenter/{kind}")[1]["value"]
        assert modern == older and len(modern) == count
    assert client("GET", "/api/vcenter/datastore")[1][0]["capacity"] == 2 << 30
    assert {each["type"] for each in client("GET", "/api/vcenter/folder")[1]} == {
        "VIRTUAL_MACHINE",
        "HOST",
        "DATASTORE",
        "NETWORK",
    }
    assert len(client("GET", "/api/vcenter/resource-pool")[1]) == 1


def test_no_name_in_a_content_library_leads_out_of_it(client: Client) -> None:
    store = client("GET", "/rest/vcenter/datastore")[1]["value"][0]["datastore"]
    backing = {"datastore_id": store, "type": "DATASTORE"}
    wanted = {"create_spec": {"name": "one", "type": "LOCAL", "storage_backings": [backing]}}
    assert client("POST", "/rest/com/vmware/content/local-library", wanted)[0] == 200
    add = "/rest/com/vmware/content/library/item/updatesession/file/id:x?~action=add"
    refused = (400, "not the name of a file\n")
    for name in ("../../tmp/x", "a/..", "..\\x"):
        assert client("POST", add, {"file_spec": {"name": name, "source_type": "PUSH", "size": 4}}) == refused
    assert client("PUT", "/rest/com/vmware/cis/data/x/..%2f..%2fx", {}) == refused


def test_objects_are_tagged(client: Client) -> None:
    assert client("GET", "/rest/com/vmware/cis/tagging/tag") == (200, {"value": []})
    wanted = {"name": "backup", "description": "", "cardinality": "SINGLE", "associable_types": []}
    status, category = client("POST", "/api/cis/tagging/category", wanted)
    assert status == 201
    assert client("GET", f"/api/cis/tagging/category/{category}")[1]["name"] == "backup"
    status, tag = client("POST", "/api/cis/tagging/tag", {"name": "daily", "description": "", "category_id": category})
    assert (status, client("GET", "/api/cis/tagging/tag")) == (201, (200, [tag]))
    vm = {"id": client("GET", "/api/vcenter/vm?names=files-vm")[1][0]["vm"], "type": "VirtualMachine"}
    link = f"/api/cis/tagging/tag-association/{tag}"
    assert client("POST", f"{link}?action=attach", {"object_id": vm})[0] == 204
    assert client("POST", f"{link}?action=list-attached-objects", {}) == (200, [vm])
    assert client("POST", f"{link}?action=detach", {"object_id": vm})[0] == 204
    assert client("DELETE", f"/api/cis/tagging/tag/{tag}")[0] == 204
    assert client("DELETE", f"/api/cis/tagging/category/{category}")[0] == 204
    assert client("GET", f"/api/cis/tagging/tag/{tag}")[0] == 404
