"""`kodolly merge` and `kodolly unmerge-check`: a base and its adapter become one model directory, streamed."""
