"""Link framings: how Ethernet frames lie on a VM's socket."""
