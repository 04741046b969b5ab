"""Who is alive, who is next: FastChat's controller protocol, served without blocking."""
