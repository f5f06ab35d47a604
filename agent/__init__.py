"""The program inside a VM, or a network namespace, that joins a tap device to a Moorage socket."""
