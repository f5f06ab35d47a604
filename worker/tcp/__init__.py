"""TCP (RFC 9293) as a state machine without I/O."""
