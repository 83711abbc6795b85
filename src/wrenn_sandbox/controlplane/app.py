"""The web application: the API, and before it the fork between the API's own names and those of sandboxes."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from wrenn_sandbox.controlplane.http import docs, errors, routes
from wrenn_sandbox.controlplane.http.edge import Edge
from wrenn_sandbox.controlplane.platform import Platform
from wrenn_sandbox.controlplane.proxy import Proxy, target_of


def api(platform: Platform | None = None) -> FastAPI:
    """The API; without a platform it can only describe itself."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.platform = platform
    errors.install(app)
    routes.install(app)
    docs.install(app)
    return app


class Front:
    """Decides by the Host header: ``{port}-{sandbox}.domain`` goes to the sandbox, everything else to the API."""

    def __init__(self, platform: Platform, proxy: Proxy) -> None:
        self._domain, self._proxy = platform.domain, proxy
        self._api: ASGIApp = Edge(api(platform))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        target = target_of(_host(scope), self._domain)
        if target is None:
            await self._api(scope, receive, send)
        else:
            await self._proxy.serve(target, scope, receive, send)


def _host(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"host":
            return str(value.decode("latin-1"))
    return ""
