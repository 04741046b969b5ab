"""What operators see of a running process: metrics, and a log line for each request."""
