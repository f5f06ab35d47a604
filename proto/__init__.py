"""Moorage's messages between processes: the classes, their codec, the channels they travel on."""
