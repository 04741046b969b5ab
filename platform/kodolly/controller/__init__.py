"""The controller: which workers are ready, and which one is next. Speaks FastChat's protocol."""
