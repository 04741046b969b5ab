"""GET /docs: the OpenAPI document as a page, by a viewer that is part of KoDolly (see rapidoc/SOURCE.md).

Nothing is loaded from another host: the page's policy forbids it.
"""

from __future__ import annotations

import gzip
from importlib.resources import files

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, Response

from kodolly.api.auth import KeyRing, authorization_of
from kodolly.errors import Unauthorized

SCRIPT = "rapidoc/rapidoc-min.js.gz"
# The viewer writes styles into its elements.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self';"
    " img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>KoDolly API</title>
<link rel="icon" href="data:,">
<script type="module" src="docs/rapidoc.js"></script>
</head>
<body>
<rapi-doc spec-url="openapi.json" load-fonts="false" render-style="read" show-header="false"
 allow-spec-url-load="false" allow-spec-file-load="false" regular-font="sans-serif"
 mono-font="monospace" schema-description-expanded="true"></rapi-doc>
</body>
</html>
"""


class DocumentPage:
    """The page, for those with a client key, and its script, for everyone."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def page(self, request: Request) -> Response:
        """The page. A browser asks for the key as the password of any name."""
        try:
            self._keys.admit(authorization_of(request.headers))
        except Unauthorized as error:
            error.headers["WWW-Authenticate"] = (
                'Basic realm="KoDolly: the password is a client key"'
            )
            raise
        return HTMLResponse(PAGE, headers=HEADERS)

    async def script(self, request: Request) -> Response:
        """The viewer, compressed as it is kept, unless a client takes no gzip."""
        content = files(__package__).joinpath(SCRIPT).read_bytes()
        headers = {"Vary": "Accept-Encoding", "Cache-Control": "max-age=86400", **HEADERS}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
        else:
            content = gzip.decompress(content)
        return Response(content, media_type="text/javascript", headers=headers)


def add_page(app: FastAPI, keys: KeyRing) -> None:
    """Serves the page, which the document does not list."""
    page = DocumentPage(keys)
    app.add_route("/docs", page.page, include_in_schema=False)
    app.add_route("/docs/rapidoc.js", page.script, include_in_schema=False)
