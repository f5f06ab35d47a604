"""``/connect``: the connection becomes a VM's link, as gvforwarder and ``moorage agent`` ask for it.

Nothing is answered; frames follow at once, both ways, each behind a 2-byte little-endian length, or with
``?framing=qemu`` behind a 4-byte big-endian one. ``?network=NAME`` names the network.
"""

from __future__ import annotations

from flask import Blueprint, Response, request

from api.handover import hand_over
from api.mux import ANY_METHOD
from proto.errors import RequestFailed
from proto.messages import CONNECT_FRAMINGS, AttachLink

blueprint = Blueprint("connect", __name__)


@blueprint.route("/connect", methods=ANY_METHOD)
def connect() -> Response:
    """Any method will do, as with gvproxy."""
    asked = request.args.get("framing", "")
    if asked not in CONNECT_FRAMINGS:
        raise RequestFailed.because("bad-request", f"framing: expected qemu or nothing, got {asked!r}")
    return hand_over(AttachLink(CONNECT_FRAMINGS[asked], request.args.get("network", "default")))
