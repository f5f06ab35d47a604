"""One VM's network: everything that looks at a guest's bytes."""
