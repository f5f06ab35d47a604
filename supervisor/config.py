"""The service's settings: defaults, the configuration file, the command line; in that order, the later wins.

The file is YAML with the names of the flags as keys::

    listen: ["qemu=unix:///run/vm/qemu.sock,allow-uid=1000", "qemu=tcp://127.0.0.1:9000"]
    api: ["unix:///run/vm/api.sock"]
    subnet: 192.168.127.0/24
    mtu: 1500
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from supervisor.attach.kinds import ListenerSpec, parse_listener
from supervisor.endpoints import StreamEndpoint, parse_endpoint
from supervisor.errors import ConfigError

MIN_MTU = 576
"""RFC 791: what every host must be able to take."""
MAX_MTU = 65535
MAX_PREFIX = 29
"""Room for the gateway, the host alias and at least one VM."""
MIN_PREFIX = 8


def _listener(value: object) -> ListenerSpec:
    return parse_listener(value if isinstance(value, str) else repr(value))


def _endpoint(value: object) -> StreamEndpoint:
    endpoint = parse_endpoint(value if isinstance(value, str) else repr(value))
    assert isinstance(endpoint, StreamEndpoint), endpoint
    return endpoint


def _subnet(value: object) -> IPv4Network:
    try:
        subnet = IPv4Network(value) if isinstance(value, str) else None
    except ValueError:
        subnet = None
    if subnet is None or not MIN_PREFIX <= subnet.prefixlen <= MAX_PREFIX:
        raise ValueError(
            f"expected an IPv4 network such as 192.168.127.0/24, between /{MIN_PREFIX} and /{MAX_PREFIX}; got {value!r}"
        )
    return subnet


class Settings(BaseModel):
    """What the operator may choose. `None`: the default that depends on the user or the runtime directory."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        arbitrary_types_allowed=True,
    )

    listen: tuple[Annotated[ListenerSpec, BeforeValidator(_listener)], ...] | None = None
    api: tuple[Annotated[StreamEndpoint, BeforeValidator(_endpoint)], ...] | None = None
    mtu: Annotated[int, Field(ge=MIN_MTU, le=MAX_MTU)] = 1500
    subnet: Annotated[IPv4Network, BeforeValidator(_subnet)] = IPv4Network("192.168.127.0/24")
    runtime_dir: Path | None = None
    state_dir: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"


def load(flags: Mapping[str, object], file: Path | None) -> Settings:
    """The settings of a command line (flags by name, without dashes in front) and a file.

    Raises ConfigError that names the file, the key or flag, and what was expected.
    """
    from_file = _read(file) if file is not None else {}
    _validate(from_file, f"{file}: ")
    return _validate(from_file | dict(flags), "--")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected keys and values, got {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def _validate(values: Mapping[str, object], source: str) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(name.replace("_", "-") for name in Settings.model_fields)
            raise ConfigError(f"{source}{key}: unknown key; expected one of {known}") from error
        message = first["msg"].removeprefix("Value error, ")
        got = "" if "got" in message else f"; got {first['input']!r}"
        raise ConfigError(f"{source}{key}: {message}{got}") from error
