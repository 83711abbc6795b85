"""The host agent's own calls, for what the public API does not tell: how long a machine stood still."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import uuid4

from tests.running import Platform

LIMIT_S = 600


@dataclass(frozen=True)
class Moment:
    """One build: milliseconds the machine stood still, until its bytes were written, until they were on disk."""

    build_id: str
    size_bytes: int
    stopped_ms: float
    captured_ms: float
    durable_ms: float


def call(wrenn: Platform, method: str, body: dict[str, object]) -> dict[str, object]:
    """One unary call of HostAgentService, in JSON."""
    where = json.loads((wrenn.data_dir / "run" / "agent.json").read_text())["url"]
    token = (wrenn.data_dir / "agent.token").read_text().strip()
    connection = http.client.HTTPConnection(urlsplit(where).netloc, timeout=LIMIT_S)
    headers = {
        "authorization": f"Bearer {token}",
        "content-type": "application/json",
        "connect-protocol-version": "1",
    }
    try:
        connection.request("POST", f"/hostagent.v1.HostAgentService/{method}", json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text
        found: dict[str, object] = json.loads(text)
        return found
    finally:
        connection.close()


def moment(build: object) -> Moment:
    """The build of an answer."""
    assert isinstance(build, dict), build
    names = ("stoppedMs", "capturedMs", "durableMs")
    times = [float(build.get(name, 0)) for name in names]
    return Moment(str(build["buildId"]), int(build.get("sizeBytes", 0)), *times)


def snapshot(wrenn: Platform, sandbox: str) -> tuple[Moment, str]:
    """A moment of a running sandbox, and the template id that holds it."""
    template = str(uuid4())
    body = {"sandboxId": sandbox, "templateId": template, "name": "bench", "buildId": str(uuid4())}
    return moment(call(wrenn, "CreateSnapshot", body)["build"]), template


def forget(wrenn: Platform, template: str) -> None:
    """Let go of a snapshot."""
    call(wrenn, "DeleteSnapshot", {"templateId": template})
