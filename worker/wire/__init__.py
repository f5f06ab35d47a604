"""Wire formats: parse and emit headers; no state, no I/O."""
