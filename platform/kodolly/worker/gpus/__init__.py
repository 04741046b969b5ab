"""GPUs for engines: which there are, and leases so that no two engines use the same one."""
