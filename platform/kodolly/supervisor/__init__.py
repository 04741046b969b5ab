"""One command that runs everything on this machine and keeps it running."""
