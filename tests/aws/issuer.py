"""Where credentials come from in tests, each way that a machine has: all give the key `Issuer.key`, or, of None, fail.

process      a profile with credential_process; its credentials last for hours
lasting      the same, but for ever, as far as they say
file         keys in the shared credentials file
container    an endpoint, as containers have it
web          a token in a file, for which STS gives credentials of a role
role         a profile that assumes a role, by keys of another profile
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

from aiohttp import web

from tests.aws.serving import serving

Way = Literal["process", "lasting", "file", "container", "web", "role"]
ROLE = "arn:aws:iam::000000000000:role/worker"


class Issuer:
    """Gives credentials. `asked` counts by way how often; `hours` is how long they last, by their own word."""

    def __init__(self, place: Path) -> None:
        self.place, self.url = place, ""
        self.key: str | None = None
        self.hours = 6.0
        self.asked: dict[str, int] = {}

    def give(self, key: str | None) -> None:
        """Give this one from now on."""
        self.key = key
        held = {} if key is None else {"Version": 1, **self._credentials("SessionToken")}
        for name in ("held", "lasting"):
            (self.place / f"{name}.json").write_text(json.dumps(held))
            held.pop("Expiration", None)
        lines = [f"aws_access_key_id = {key}", "aws_secret_access_key = s", "aws_session_token = t"] if key else []
        (self.place / "credentials").write_text("\n".join(["[default]", *lines, ""]))
        (self.place / "token").write_text(f"token-for-{key}")

    def _credentials(self, token: str) -> dict[str, Any]:
        until = (datetime.now(UTC) + timedelta(hours=self.hours)).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {"AccessKeyId": self.key, "SecretAccessKey": "secret", token: f"session-{self.key}", "Expiration": until}

    def environ(self, way: Way) -> dict[str, str]:
        """What makes clients take credentials this way. An empty variable is none."""
        config = self.place / f"config-{way}"
        unset = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        found = {**dict.fromkeys(unset, ""), "AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
        lines = ["[default]", "region = us-east-1"]
        match way:
            case "process" | "lasting":
                lines.append(f"credential_process = cat {self.place / ('held' if way == 'process' else way)}.json")
            case "file":
                found["AWS_SHARED_CREDENTIALS_FILE"] = str(self.place / "credentials")
            case "container":
                found["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{self.url}/container"
            case "web":
                found |= {"AWS_WEB_IDENTITY_TOKEN_FILE": str(self.place / "token"), "AWS_ROLE_ARN": ROLE}
            case "role":
                lines += [f"role_arn = {ROLE}", "source_profile = base", "[profile base]"]
                lines += ["aws_access_key_id = BASE", "aws_secret_access_key = s"]
        config.write_text("\n".join([*lines, ""]))
        return {**found, "AWS_ENDPOINT_URL_STS": f"{self.url}/sts"}

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """The container's endpoint, and STS."""
        form = parse_qs((await request.read()).decode())
        what = form["Action"][0] if request.path.startswith("/sts") else "container"
        self.asked[what] = self.asked.get(what, 0) + 1
        if self.key is None:
            return web.Response(status=500, text="none now")
        if what == "container":
            return web.json_response({**self._credentials("Token"), "RoleArn": ROLE})
        if what == "AssumeRoleWithWebIdentity":
            assert form["WebIdentityToken"] == [f"token-for-{self.key}"]
        held = "".join(f"<{k}>{v}</{k}>" for k, v in self._credentials("SessionToken").items())
        user = f"<AssumedRoleUser><Arn>{ROLE}</Arn><AssumedRoleId>A:w</AssumedRoleId></AssumedRoleUser>"
        told = f"<{what}Result><Credentials>{held}</Credentials>{user}</{what}Result>"
        text = f"<{what}Response xmlns='https://sts.amazonaws.com/doc/2011-06-15/'>{told}</{what}Response>"
        return web.Response(text=text, content_type="text/xml")


@asynccontextmanager
async def issuer(place: Path) -> AsyncIterator[Issuer]:
    """One, with its endpoints on a free loopback port."""
    ours = Issuer(place)
    async with serving(ours.handle) as ours.url:
        ours.give(None)
        yield ours
