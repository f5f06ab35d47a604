"""Moorage's HTTP API: gvproxy's routes, ``/v1`` and ``/metrics``, answered by asking the supervisor."""

from api.app import create_app

__all__ = ["create_app"]
