"""A request's way to its answer: attempts, the stream, what is sent."""
