"""/v1/files and /v1/batches."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import StreamingResponse

from kodolly.api import document
from kodolly.api.auth import KeyRing
from kodolly.api.batches.runner import BatchRunner
from kodolly.api.batches.upload import read_upload
from kodolly.errors import BadRequest, NotFound
from kodolly.http import bodies
from kodolly.store.batches import BatchRecord
from kodolly.store.files import FileRecord
from kodolly.store.records import owner_of

WINDOWS = {"24h": 86_400.0}  # seconds
MAX_PAGE = 10_000
MAX_METADATA = 16
UPLOADS_AT_ONCE = 2


class Files:
    """The files of a batch."""

    def __init__(self, keys: KeyRing, runner: BatchRunner, max_file: int) -> None:
        """`max_file`: bytes."""
        self._keys = keys
        self._files = runner.store.files
        self._max_file = max_file
        self._turns = asyncio.Semaphore(UPLOADS_AT_ONCE)

    async def create_file(self, request: Request) -> dict[str, Any]:
        """Upload a file of requests: a form with the fields `file` and `purpose` (batch)."""
        owner = _owner(self._keys, request)
        upload = await read_upload(request, self._max_file, self._turns)
        record = FileRecord(
            f"file-{uuid.uuid4().hex}", owner, upload.filename, upload.purpose, time.time()
        )
        await self._files.create(record, upload.data)
        return _file(record)

    async def list_files(
        self,
        request: Request,
        after: str | None = None,
        limit: int = MAX_PAGE,
        purpose: str | None = None,
    ) -> dict[str, Any]:
        """The files, newest first."""
        owner = _owner(self._keys, request)
        size = _page_size(limit)
        found, has_more = await self._files.list_files(
            owner, after=after, limit=size, purpose=purpose
        )
        return _list([_file(each) for each in found], has_more)

    async def retrieve_file(self, request: Request, file_id: str) -> dict[str, Any]:
        """One file, without its bytes."""
        return _file(await self._get(request, file_id))

    async def retrieve_content(self, request: Request, file_id: str) -> Response:
        """The bytes of a file."""
        record = await self._get(request, file_id)
        headers = {"Content-Length": str(record.bytes), "X-Content-Type-Options": "nosniff"}
        return StreamingResponse(
            self._files.parts(record.id), media_type="application/octet-stream", headers=headers
        )

    async def delete_file(self, request: Request, file_id: str) -> dict[str, Any]:
        """Delete a file. A batch that has read it goes on."""
        owner = _owner(self._keys, request)
        if not await self._files.delete(file_id, owner):
            raise NotFound(f"No file {file_id!r}.")
        return {"id": file_id, "object": "file", "deleted": True}

    async def _get(self, request: Request, file_id: str) -> FileRecord:
        record = await self._files.get(file_id, _owner(self._keys, request))
        if record is None:
            raise NotFound(f"No file {file_id!r}.")
        return record


class Batches:
    """Batches of one client key."""

    def __init__(self, keys: KeyRing, runner: BatchRunner, max_body: int) -> None:
        """`max_body`: bytes."""
        self._keys = keys
        self._runner = runner
        self._store = runner.store
        self._max_body = max_body

    async def create_batch(self, request: Request) -> dict[str, Any]:
        """Answer the requests of an uploaded file, when there is time."""
        owner = _owner(self._keys, request)
        body = await bodies.read_object(request, self._max_body)
        endpoint, window = body.get("endpoint"), body.get("completion_window")
        if endpoint not in self._runner.targets:
            served = ", ".join(self._runner.targets)
            raise BadRequest(f"endpoint must be one of {served}", param="endpoint")
        if window not in WINDOWS:
            raise BadRequest("completion_window must be 24h", param="completion_window")
        file_id = body.get("input_file_id")
        file = await self._store.files.get(file_id, owner) if isinstance(file_id, str) else None
        if file is None:
            raise BadRequest(f"No file {file_id!r}.", param="input_file_id")
        now = time.time()
        record = BatchRecord(
            id=f"batch_{uuid.uuid4().hex}",
            owner=owner,
            endpoint=str(endpoint),
            input_file_id=file.id,
            created_at=now,
            deadline=now + WINDOWS[window],
            metadata=_metadata(body.get("metadata")),
        )
        await self._store.batches.create(record)
        self._runner.start([record.id])
        return _batch(record)

    async def list_batches(
        self, request: Request, after: str | None = None, limit: int = 20
    ) -> dict[str, Any]:
        """The batches, newest first."""
        owner = _owner(self._keys, request)
        size = min(100, _page_size(limit))
        found, has_more = await self._store.batches.list_batches(owner, after=after, limit=size)
        return _list([_batch(each) for each in found], has_more)

    async def retrieve_batch(self, request: Request, batch_id: str) -> dict[str, Any]:
        """One batch, and how far it is."""
        return _batch(await self._get(request, batch_id))

    async def cancel_batch(self, request: Request, batch_id: str) -> dict[str, Any]:
        """Send no more of its requests. Those that are answered are in its output."""
        record = await self._get(request, batch_id)
        await self._store.batches.request_cancel(record.id, record.owner)
        return _batch(await self._get(request, batch_id))

    async def _get(self, request: Request, batch_id: str) -> BatchRecord:
        record = await self._store.batches.get(batch_id, _owner(self._keys, request))
        if record is None:
            raise NotFound(f"No batch {batch_id!r}.")
        return record


def add_batches(
    app: FastAPI, keys: KeyRing, runner: BatchRunner, *, max_body: int, max_file: int
) -> None:
    """Serves both. `max_body`, `max_file`: bytes."""
    files, batches = Files(keys, runner, max_file), Batches(keys, runner, max_body)
    for method, path, endpoint in (
        ("POST", "/v1/files", files.create_file),
        ("GET", "/v1/files", files.list_files),
        ("GET", "/v1/files/{file_id}", files.retrieve_file),
        ("GET", "/v1/files/{file_id}/content", files.retrieve_content),
        ("DELETE", "/v1/files/{file_id}", files.delete_file),
        ("POST", "/v1/batches", batches.create_batch),
        ("GET", "/v1/batches", batches.list_batches),
        ("GET", "/v1/batches/{batch_id}", batches.retrieve_batch),
        ("POST", "/v1/batches/{batch_id}/cancel", batches.cancel_batch),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=None,
            dependencies=[Security(document.bearer)],
            responses=document.ERRORS,
        )


def _owner(keys: KeyRing, request: Request) -> str:
    return owner_of(keys.admit(request.headers.get("authorization", "")))


def _page_size(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise BadRequest(f"limit must be from 1 to {MAX_PAGE}", param="limit")
    return limit


def _metadata(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if (
        not isinstance(value, dict)
        or len(value) > MAX_METADATA
        or not all(isinstance(each, str) and len(each) <= 512 for each in value.values())
        or not all(len(name) <= 64 for name in value)
    ):
        raise BadRequest(
            f"metadata must have at most {MAX_METADATA} names (64 characters) of texts (512)",
            param="metadata",
        )
    return value


def _list(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {
        "object": "list",
        "data": data,
        "first_id": first,
        "last_id": last,
        "has_more": has_more,
    }


def _file(record: FileRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "file",
        "bytes": record.bytes,
        "created_at": int(record.created_at),
        "expires_at": int(record.expires_at),
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
    }


def _batch(record: BatchRecord) -> dict[str, Any]:
    names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling")
    times = {
        f"{name}_at": int(at) if (at := record.times.get(f"{name}_at")) else None
        for name in (*names, "cancelled")
    }
    errors = None if record.errors is None else {"object": "list", "data": record.errors}
    return {
        "id": record.id,
        "object": "batch",
        "endpoint": record.endpoint,
        "errors": errors,
        "input_file_id": record.input_file_id,
        "completion_window": "24h",
        "status": record.status,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": int(record.created_at),
        "expires_at": int(record.deadline),
        **times,
        "request_counts": record.counts or {"total": 0, "completed": 0, "failed": 0},
        "metadata": record.metadata or None,
    }
