"""The one process that owns what outlives a worker: listeners, VM sockets, forwarded ports, leases and state."""
