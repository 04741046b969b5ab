"""What every HTTP face of ours shares: the server, its protocol and bounds, and connections to engines."""
