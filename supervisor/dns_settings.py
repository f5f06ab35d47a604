"""The ``dns`` part of the configuration: zones, search domains, and who is asked about which domain."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from proto.errors import RequestFailed
from proto.messages import Upstream, Zone, ZoneRecord
from supervisor.zones import check_zone

DNS_PORT = 53
MAX_UPSTREAMS = 8
_DOMAIN = re.compile(r"([^.\s]{1,63}\.){1,127}|\.")


def _keyed(name: str) -> str:
    return name.replace("_", "-")


def _domain(name: str) -> str:
    absolute = name if name.endswith(".") else f"{name}."
    if not _DOMAIN.fullmatch(absolute) or len(absolute) > 254:
        raise ValueError(f"expected a domain such as corp.example.; got {name!r}")
    return absolute.lower()


def _upstream(value: object) -> Upstream:
    expected = f"expected a DNS server as ADDRESS or ADDRESS:PORT, an IPv6 one as [ADDRESS]:PORT; got {value!r}"
    text = value if isinstance(value, str) else ""
    bracketed = re.fullmatch(r"\[(.*)\](?::(\d{1,5}))?", text)
    with_port = re.fullmatch(r"([^:]*):(\d{1,5})", text)
    found = bracketed or with_port
    host, port = (found[1], int(found[2] or DNS_PORT)) if found else (text, DNS_PORT)
    try:
        address = ip_address(host)
    except ValueError as error:
        raise ValueError(expected) from error
    if not 0 < port < 1 << 16 or (bracketed and address.version == 4):
        raise ValueError(expected)
    return Upstream(str(address), port)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_keyed)


class RecordSettings(_Model):
    """A name of a zone, or names by a regular expression, and their address."""

    ip: str
    name: str = ""
    regexp: str = ""


class ZoneSettings(_Model):
    """A zone that the gateway answers itself."""

    name: str
    records: tuple[RecordSettings, ...] = ()
    default_ip: str = ""
    authoritative: bool | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        try:
            check_zone(self.zone())
        except RequestFailed as refused:
            raise ValueError(refused.failure.message) from refused
        return self

    def zone(self) -> Zone:
        """As workers know it."""
        records = tuple(ZoneRecord(record.ip, record.name, record.regexp) for record in self.records)
        return Zone(self.name, records, self.default_ip, self.authoritative)


class DnsSettings(_Model):
    """What a network's DNS answers, and who is asked the rest."""

    zones: tuple[ZoneSettings, ...] = ()
    own_zones: bool = True
    """``containers.internal.`` and ``docker.internal.``, each with the names ``gateway`` and ``host``."""
    search_domains: tuple[Annotated[str, AfterValidator(_domain)], ...] | None = None
    """`None`: the host's."""
    upstreams: dict[
        Annotated[str, AfterValidator(_domain)],
        Annotated[
            tuple[Annotated[Upstream, BeforeValidator(_upstream)], ...], Field(min_length=1, max_length=MAX_UPSTREAMS)
        ],
    ] = {}
    """By domain; the host's for all others."""
