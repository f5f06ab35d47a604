"""How VMs attach: the listeners, and what each kind of VM says before its first frame."""
