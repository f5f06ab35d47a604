"""Moorage as gvproxy: its command line, its configuration file and its manners, in front of the same service."""
