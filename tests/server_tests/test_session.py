"""The session resource, authorization, and what goes wrong with both."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.server import Account, Status

from .speaking import BLOB, CORE, MAIL, speaking

ACCOUNT = ("accounts", "Aprimary")


async def test_well_known_redirects_to_the_session() -> None:
    async with speaking() as s:
        first = await s.http.get("/.well-known/jmap")
        assert (first.status_code, first.headers["location"]) == (307, "/session")
        session = (await s.http.get("/.well-known/jmap", follow_redirects=True)).json()
        assert set(session["capabilities"]) == {CORE, MAIL, BLOB}
        assert session["primaryAccounts"][MAIL] == s.account.id
        assert session["apiUrl"] == f"{s.http.base_url}/jmap/api".replace("//jmap", "/jmap")
        assert "{blobId}" in session["downloadUrl"]
        s.quirks.redirect_well_known = False
        assert (await s.http.get("/.well-known/jmap")).json() == session


async def test_authorization() -> None:
    async with speaking() as s:
        for auth, status in (
            (None, 401),
            (("alice@example.org", "wrong"), 401),
            (("alice@example.org", "secret"), 200),
        ):
            async with httpx.AsyncClient(base_url=s.http.base_url, auth=auth) as http:
                response = await http.get("/session")
                assert response.status_code == status
        assert s.server.counts.authorized_hosts.total() == 2
        async with httpx.AsyncClient(base_url=s.http.base_url) as http:
            refused = await http.get("/session", headers={"authorization": "Basic !"})
            assert refused.headers["content-type"] == "application/problem+json"
            assert refused.headers["www-authenticate"].startswith("Basic ")
            bearer = {"authorization": "Bearer token-of-alice"}
            assert (await http.get("/session", headers=bearer)).status_code == 200
            s.server.credentials.token = None
            assert (await http.get("/session", headers=bearer)).status_code == 401


async def test_shared_account_and_state() -> None:
    async with speaking() as s:
        before = (await s.http.get("/session")).json()
        s.server.add_account(Account("Ateam", "team", is_personal=False))
        after = (await s.http.get("/session")).json()
        assert after["accounts"]["Ateam"]["isPersonal"] is False
        assert after["primaryAccounts"] == before["primaryAccounts"]
        assert after["state"] != before["state"]
        assert (await s.post(["Core/echo", {}, "c"])).json()["sessionState"] == after["state"]


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
    async with speaking(**quirks) as s:
        found = (await s.http.get("/session")).json()
        for name in path:
            found = found[name]
        assert found == value


async def test_capabilities_that_are_missing() -> None:
    async with speaking(mail_capability=False, blob_get=False) as s:
        session = (await s.http.get("/session")).json()
        assert set(session["capabilities"]) == set(session["primaryAccounts"]) == {CORE}
        refused = await s.post(["Core/echo", {}, "c"])
        assert refused.json()["type"].endswith(":unknownCapability")


@pytest.mark.parametrize("body", ["not-json", "truncated", "html"])
async def test_session_that_is_not_json(body: Any) -> None:
    async with speaking(session_body=body) as s:
        response = await s.http.get("/session")
        assert response.status_code == 200
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            response.json()
        assert ("html" in response.headers["content-type"]) == (body == "html")


async def test_statuses_for_the_next_requests() -> None:
    async with speaking() as s:
        s.quirks.statuses = [
            Status("session", 503, count=2, skip=1, retry_after="3"),
            Status("api", 302, location="https://elsewhere.example/"),
            Status("download", 500, count=-1, detail="Out of paper"),
        ]
        answers = [await s.http.get("/session") for _ in range(4)]
        assert [each.status_code for each in answers] == [200, 503, 503, 200]
        assert answers[1].headers["retry-after"] == "3"
        moved = await s.post()
        assert (moved.status_code, moved.headers["location"]) == (302, "https://elsewhere.example/")
        assert (await s.post()).status_code == 200
        for _ in range(3):
            assert (await s.download("B1")).json()["detail"] == "Out of paper"
        assert s.server.counts.statuses["500"] == 3
