"""Forwards: ports and unix sockets of the host that lead into a VM."""
