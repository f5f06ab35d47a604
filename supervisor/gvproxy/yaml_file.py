"""gvproxy's configuration file. Keys that it does not know it skips, and so is it here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from supervisor.errors import ConfigError

NULLS = ("", "~", "null", "Null", "NULL")


class _TextLoader(yaml.SafeLoader):
    """Text stays text, merge keys (``<<``) merge. YAML 1.1, which PyYAML reads otherwise, takes 52:54:00:12:34:56 for a
    number."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<$"))]}  # noqa: RUF012  # as PyYAML has it


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item not in NULLS}
        return {} if value in NULLS else value


class RecordEntry(_Model):
    """A record of ``stack.dns``."""

    name: str = ""
    ip: str = ""
    regexp: str = ""


class ZoneEntry(_Model):
    """A zone of ``stack.dns``."""

    name: str = ""
    records: tuple[RecordEntry, ...] = ()
    default_ip: str = Field(default="", alias="defaultIP")


class Stack(_Model):
    """The network."""

    debug: bool = False
    capture_file: str = Field(default="", alias="capture-file")
    mtu: int = 0
    subnet: str = ""
    gateway_ip: str = Field(default="", alias="gatewayIP")
    device_ip: str = Field(default="", alias="deviceIP")
    host_ip: str = Field(default="", alias="hostIP")
    gateway_mac: str = Field(default="", alias="gatewayMacAddress")
    dns: tuple[ZoneEntry, ...] = ()
    search_domains: tuple[str, ...] = Field(default=(), alias="dnsSearchDomains")
    forwards: dict[str, str] = {}
    nat: dict[str, str] = {}
    virtual_ips: tuple[str, ...] = Field(default=(), alias="gatewayVirtualIPs")
    static_leases: dict[str, str] = Field(default={}, alias="dhcpStaticLeases")
    uuid_macs: dict[str, str] = Field(default={}, alias="vpnKitUUIDMacAddresses")
    ec2_metadata_access: bool = Field(default=False, alias="ec2MetadataAccess")


class Interfaces(_Model):
    """Where VMs attach."""

    vpnkit: str = ""
    qemu: str = ""
    bess: str = ""
    stdio: str = ""
    vfkit: str = ""


class SshForward(_Model):
    """A unix socket that is carried over SSH."""

    socket: str = ""
    dest: str = ""
    user: str = ""
    identity: str = ""


class ConfigFile(_Model):
    """The whole file."""

    listen: tuple[str, ...] = ()
    log_level: str = Field(default="info", alias="log-level")
    stack: Stack = Stack()
    interfaces: Interfaces = Interfaces()
    forwards: tuple[SshForward, ...] = ()
    pid_file: str = Field(default="", alias="pid-file")
    log_file: str = Field(default="", alias="log-file")
    services: str = ""
    ec2_metadata_access: bool = Field(default=False, alias="ec2-metadata-access")
    notification: str = ""


def read(file: Path) -> ConfigFile:
    """What a file says. Raises ConfigError."""
    try:
        return ConfigFile.model_validate(yaml.load(file.read_text(encoding="utf-8"), _TextLoader) or {})
    except OSError as error:
        reason = f"open {file}: {(error.strerror or str(error)).lower()}"
        raise ConfigError(f"failed to read config file: {reason}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"failed to read config file: {file}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{key or file}: {first['msg']}; got {first['input']!r}"
        raise ConfigError(f"failed to read config file: {reason}") from error
