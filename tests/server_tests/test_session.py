"""The session resource, authorization, and their faults."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server import Account, Status

from .jmap_client import BLOB, CORE, MAIL, connected

ACCOUNT = ("accounts", "Aprimary")


async def test_well_known_redirects_to_the_session() -> None:
    async with connected() as client:
        first = await client.http.get("/.well-known/jmap")
        assert (first.status_code, first.headers["location"]) == (307, "/session")
        session = (await client.http.get("/.well-known/jmap", follow_redirects=True)).json()
        assert set(session["capabilities"]) == {CORE, MAIL, BLOB}
        assert session["primaryAccounts"][MAIL] == client.account.id
        assert session["apiUrl"] == f"{client.http.base_url}/jmap/api".replace("//jmap", "/jmap")
        assert "{blobId}" in session["downloadUrl"]
        client.quirks.redirect_well_known = False
        assert (await client.http.get("/.well-known/jmap")).json() == session


async def test_basic_and_bearer_authorization() -> None:
    async with connected() as client:
        for auth, status in (
            (None, 401),
            (("alice@example.org", "wrong"), 401),
            (("alice@example.org", "secret"), 200),
        ):
            async with httpx.AsyncClient(base_url=client.http.base_url, auth=auth) as http:
                response = await http.get("/session")
                assert response.status_code == status
        assert client.server.counts.authorized_hosts.total() == 2
        async with httpx.AsyncClient(base_url=client.http.base_url) as http:
            refused = await http.get("/session", headers={"authorization": "Basic !"})
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.headers["www-authenticate"].startswith("Basic ")
            bearer = {"authorization": "Bearer token-of-alice"}
            assert (await http.get("/session", headers=bearer)).status_code == 200
            client.server.credentials.token = None
            assert (await http.get("/session", headers=bearer)).status_code == 401


async def test_a_shared_account_changes_the_session_state() -> None:
    async with connected() as client:
        before = (await client.http.get("/session")).json()
        client.server.add_account(Account("Ateam", "team", is_personal=False))
        after = (await client.http.get("/session")).json()
        assert after["accounts"]["Ateam"]["isPersonal"] is False
        assert after["primaryAccounts"] == before["primaryAccounts"]
        assert after["state"] != before["state"]
        assert (await client.post(["Core/echo", {}, "c"])).json()["sessionState"] == after["state"]


@pytest.mark.parametrize(
    ("quirks", "path", "value"),
    [
        ({"absolute_urls": False}, ["apiUrl"], "/jmap/api"),
        (
            {"account_capabilities_null": True},
            ["accounts", "Aprimary", "accountCapabilities"],
            None,
        ),
        ({"max_objects_in_get": 7}, ["capabilities", CORE, "maxObjectsInGet"], 7),
        ({"session_body": "wrong-types"}, ["accounts"], "none"),
        ({"session_overrides": {"apiUrl": "https://x.example/"}}, ["apiUrl"], "https://x.example/"),
    ],
)
async def test_quirks_of_the_session(quirks: Any, path: list[str], value: Any) -> None:
    async with connected(**quirks) as client:
        found = (await client.http.get("/session")).json()
        for name in path:
            found = found[name]
        assert found == value


async def test_capabilities_can_be_missing() -> None:
    async with connected(mail_capability=False, blob_get=False) as client:
        session = (await client.http.get("/session")).json()
        assert set(session["capabilities"]) == set(session["primaryAccounts"]) == {CORE}
        refused = await client.post(["Core/echo", {}, "c"])
        assert refused.json()["type"].endswith(":unknownCapability")


@pytest.mark.parametrize("body", ["not-json", "truncated", "html"])
async def test_the_session_can_be_something_else_than_json(body: Any) -> None:
    async with connected(session_body=body) as client:
        response = await client.http.get("/session")
        assert response.status_code == 200
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            response.json()
        assert ("html" in response.headers["content-type"]) == (body == "html")


async def test_statuses_of_the_next_requests() -> None:
    async with connected() as client:
        client.quirks.statuses = [
            Status("session", 503, count=2, skip=1, retry_after="3"),
            Status("api", 302, location="https://elsewhere.example/"),
            Status("download", 500, count=-1, detail="Out of paper"),
        ]
        answers = [await client.http.get("/session") for _ in range(4)]
        assert [each.status_code for each in answers] == [200, 503, 503, 200]
        assert answers[1].headers["retry-after"] == "3"
        moved = await client.post()
        assert (moved.status_code, moved.headers["location"]) == (302, "https://elsewhere.example/")
        assert (await client.post()).status_code == 200
        for _ in range(3):
            assert (await client.download("B1")).json()["detail"] == "Out of paper"
        assert client.server.counts.statuses["500"] == 3
