"""A file in a form (multipart/form-data), read up to a bound."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from kodolly.errors import BadRequest, NotJson, TooLarge

MAX_FORM = 64 * 1024  # bytes of the form beside the file
MAX_FILENAME = 255


@dataclass
class Upload:
    """What was sent."""

    filename: str
    purpose: str
    data: bytes


async def read_upload(request: Request, max_bytes: int, turns: asyncio.Semaphore) -> Upload:
    """The file and its purpose. Raises BadRequest, TooLarge, NotJson for another kind of body.

    `turns`: how many files are read at a time.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise NotJson("send the file as multipart/form-data, with the fields file and purpose")
    too_large = TooLarge(f"the file has more than {max_bytes} bytes")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes + MAX_FORM:
        raise too_large
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > max_bytes + MAX_FORM:
            raise too_large
        return message

    async with turns:
        bounded = Request(request.scope, receive)
        try:
            async with bounded.form(max_files=1, max_fields=8, max_part_size=MAX_FORM) as form:
                file, purpose = form.get("file"), form.get("purpose")
                if not isinstance(file, UploadFile):
                    raise BadRequest("the form has no file", param="file")
                if purpose != "batch":
                    raise BadRequest("purpose must be batch", param="purpose")
                data = await file.read()
                if len(data) > max_bytes:
                    raise too_large
                name = (file.filename or "file")[-MAX_FILENAME:]
                return Upload(name, purpose, data)
        except HTTPException as error:  # what the parser says of a broken form
            raise BadRequest(f"the form cannot be read: {error.detail}") from error
