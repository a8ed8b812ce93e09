"""Checks Signature Version 4 as a service does: emulators take any signature."""

import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials


def wrong(method: str, path: str, headers: Mapping[str, str], body: bytes, secret: str, *, token: str | None) -> str:
    """What is wrong with the signature of a request as it came; '' if it is right. `path` with its query.

    The query is taken apart and encoded anew, and only the headers that are named as signed count.
    """
    kind, _, rest = headers.get("Authorization", "").partition(" ")
    if kind != "AWS4-HMAC-SHA256":
        return f"no signature: {kind!r}"
    said = dict(part.strip().split("=", 1) for part in rest.split(","))
    key, day, region, service, end = said["Credential"].split("/")
    names = said["SignedHeaders"].split(";")
    missing = {"host", "x-amz-date", *(["x-amz-security-token"] if token else [])} - set(names)
    if missing or end != "aws4_request" or not headers["X-Amz-Date"].startswith(day):
        return f"not signed: {missing}"
    if token is not None and headers.get("X-Amz-Security-Token") != token:
        return "another session token"
    hashed = headers.get("X-Amz-Content-SHA256")
    if hashed not in (None, hashlib.sha256(body).hexdigest()):
        return "the payload has another hash"
    bare, _, query = path.partition("?")
    again = "&".join(sorted(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in parse_qsl(query)))
    lower = {name.lower(): value for name, value in headers.items()}
    request: Any = AWSRequest(
        method=method,
        url=f"https://{headers['Host']}{bare}{'?' if again else ''}{again}",
        headers={name: lower[name] for name in names},
        data=body,
    )
    request.context["timestamp"] = headers["X-Amz-Date"]
    signer = SigV4Auth(Credentials(key, secret, token), service, region)
    expected = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    return "" if expected == said["Signature"] else "the signature is another one"
