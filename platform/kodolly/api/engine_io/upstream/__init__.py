"""HTTP/1.1 to the engines: kept connections whose bytes go where they are wanted, in one callback."""

from kodolly.api.engine_io.upstream.connection import Broken, Connection, Sink
from kodolly.api.engine_io.upstream.pool import NoDescriptor, Pool, Unreachable

__all__ = ["Broken", "Connection", "NoDescriptor", "Pool", "Sink", "Unreachable"]
