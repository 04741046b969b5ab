"""An error in one line that is safe to log and to show."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"//[^/\s@]*@")


def describe_error(error: BaseException) -> str:
    """The error's type and message, without request headers or a URL's user and password.

    Never log the repr of a client's error: it may hold the request's headers, Authorization included.
    """
    message = _USER_INFO.sub("//", str(error))
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
