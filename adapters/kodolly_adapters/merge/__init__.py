"""`kodolly merge`: a base and its adapter become one model directory, streamed."""
