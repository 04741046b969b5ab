"""HTTP/1.1 to the engines: kept connections whose bytes go where they are wanted, in one callback."""

from kodolly.http.upstream.connection import Broken, Connection, Sink
from kodolly.http.upstream.pool import NoDescriptor, Pool, Unreachable

__all__ = ["Broken", "Connection", "NoDescriptor", "Pool", "Sink", "Unreachable"]
