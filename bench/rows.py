"""What is measured: the rows of the table, and how each is taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bench import idle_vms
from bench.bed import Bed, Observation, make_bed
from bench.client import Unmeasurable
from bench.figures import Sample, jain
from bench.gateways import Gateway, Link, Moorage
from bench.hold_flows import allow_open_files

MTUS = (1500, 4000, 65520)
DIRECTIONS = {"up": "guest to host", "down": "host to guest"}
SMALL_MTU = 1500
"""Of the rows that do not name one."""
LONG_QUEUE = 20_000
"""Packets: so many that no window a gateway offers overflows it."""
AT_ONCE = 8
"""Connections being made at a time."""
MAX_ERRORS = 0.01
"""Of all transactions; with more of them the figure is of something else."""
IDLE_SECONDS = 2.0

Measure = Callable[[type[Gateway], Link, float], Sample]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    key: str
    """What it is called on the command line; ``/`` sets off what it varies in: ``up/1500/8``."""
    title: str
    unit: str
    measure: Measure
    cost_unit: str = ""
    mtu: int = SMALL_MTU
    needs: str = "tcp"
    """What a gateway must carry for it; ``moorage``: measured for no other."""
    lower_is_better: bool = False
    queue: int = 0
    """Packets the guest's device holds, where the row is about that."""

    def is_for(self, kind: type[Gateway]) -> bool:
        """Whether a gateway can have this row at all."""
        return self.needs in kind.carries or (self.needs == "moorage" and kind is Moorage)

    def is_named(self, names: Sequence[str]) -> bool:
        """Whether one of `names` is the row's, or that of a group it belongs to."""
        return any(self.key == name or self.key.startswith(f"{name}/") for name in names)


def rows() -> list[Row]:
    """All there are, in the table's order."""
    return [*_throughput(), *_transactions(), *_datagrams(), *_forwards(), *_taps(), *_neighbours(), *_growth()]


def _in_bed(take: Callable[[Bed, float], Sample], forwards: bool = False, neighbour: bool = False) -> Measure:
    def measure(kind: type[Gateway], link: Link, seconds: float) -> Sample:
        with make_bed(kind, replace(link, forwards=forwards, neighbour=neighbour)) as bed:
            return take(bed, seconds)

    return measure


# --- bulk TCP ---------------------------------------------------------------------------------------------------------


def _throughput() -> Iterator[Row]:
    for mtu in MTUS:
        for direction in DIRECTIONS:
            for flows in (1, 8, 64, 512) if mtu == SMALL_MTU else (1, 8):
                yield _bulk_row(f"{direction}/{mtu}/{flows}", mtu, direction, flows)
    # A tap device drops what its queue does not hold, where a VM's virtio ring would make the guest wait.
    for flows in (1, 8):
        yield _bulk_row(f"lossless/{flows}", SMALL_MTU, "up", flows, LONG_QUEUE)
    for mtu in (MTUS[0], MTUS[-1]):
        for direction in DIRECTIONS:
            yield _iperf_row(mtu, direction)


def _iperf_row(mtu: int, direction: str) -> Row:
    def take(bed: Bed, seconds: float) -> Sample:
        return iperf(bed.iperf(seconds, *(["-R"] if direction == "down" else [])))

    title = f"iperf3, MTU {mtu}, {DIRECTIONS[direction]}"
    return Row(f"iperf3/{mtu}/{direction}", title, "Gbit/s", _in_bed(take), "CPU s/GB", mtu)


def _bulk_row(key: str, mtu: int, direction: str, flows: int, queue: int = 0, needs: str = "tcp") -> Row:
    def take(bed: Bed, seconds: float) -> Sample:
        return bulk(bed.from_guest("stream", f"{seconds:g}", flows, direction))

    title = f"MTU {mtu}, {DIRECTIONS[direction]}, {flows} flow{'s'[: flows > 1]}"
    title += f", guest's queue of {queue:,} packets" if queue else ""
    title = f"tap device, {title}" if needs == "tap" else title
    return Row(key, title, "Gbit/s", _in_bed(take), "CPU s/GB", mtu, needs, queue=queue)


def bulk(seen: Observation) -> Sample:
    """Of a report of ``load stream``."""
    shares = seen.report["bytes"]
    if not sum(shares):
        raise Unmeasurable("nothing arrived")
    details = {"Jain": jain(shares)} if len(shares) > 1 else {}
    return _per(seen, sum(shares) * 8 / seen.report["seconds"] / 1e9, sum(shares) / 1e9, {**details, **seen.busy})


def iperf(seen: Observation) -> Sample:
    """Of a report of iperf3: what its receiving end counted."""
    received = seen.report["end"]["sum_received"]
    if not received["bytes"]:
        raise Unmeasurable("nothing arrived")
    return _per(seen, received["bits_per_second"] / 1e9, received["bytes"] / 1e9, {})


def _per(seen: Observation, value: float, amount: float, details: dict[str, float]) -> Sample:
    """With CPU time for each of `amount`."""
    worker = seen.worker_cpu / amount if seen.worker_cpu is not None else None
    return Sample(value, seen.cpu / amount, worker, details)


# --- requests and responses -------------------------------------------------------------------------------------------


def _transactions() -> Iterator[Row]:
    for protocol in ("tcp", "udp"):

        def take(bed: Bed, seconds: float, protocol: str = protocol) -> Sample:
            return transactions(bed.from_guest("rr", f"{seconds:g}", protocol))

        title = f"1-byte ping-pong over {protocol.upper()}"
        yield Row(f"rr/{protocol}", title, "per s", _in_bed(take), "CPU us each", needs=protocol)
    title = f"connect, 1 byte each way, close; {AT_ONCE} at a time"
    yield Row("crr", title, "per s", _in_bed(_connect), "CPU us each")


def _connect(bed: Bed, seconds: float) -> Sample:
    return transactions(bed.from_guest("crr", f"{seconds:g}", AT_ONCE))


def transactions(seen: Observation) -> Sample:
    """Of a report of ``load rr`` or ``load crr``. Raises Unmeasurable where too many failed."""
    count, errors = seen.report["count"], seen.report["errors"]
    if errors > MAX_ERRORS * count:
        raise Unmeasurable(f"{errors} failed, {count} did not")
    details = {"p50 us": seen.report["p50_us"], "p99 us": seen.report["p99_us"]}
    return _per(seen, count / seen.report["seconds"], count / 1e6, {**details, **seen.busy})


# --- datagrams --------------------------------------------------------------------------------------------------------


def _datagrams() -> Iterator[Row]:
    for size in (64, 1400):
        for direction, words in DIRECTIONS.items():

            def take(bed: Bed, seconds: float, size: int = size, direction: str = direction) -> Sample:
                return datagrams(bed.from_guest("udp", f"{seconds:g}", size, direction))

            title = f"UDP datagrams of {size} bytes, {words}"
            yield Row(f"udp/{direction}/{size}", title, "per s", _in_bed(take), "CPU us each", needs="udp")


def datagrams(seen: Observation) -> Sample:
    """Of a report of ``load udp``."""
    delivered, sent = seen.report["delivered"], seen.report["sent"]
    if delivered < 2:
        raise Unmeasurable(f"{delivered} datagrams arrived")
    return _per(seen, delivered / seen.report["seconds"], delivered / 1e6, {"lost %": 100 * (1 - delivered / sent)})


# --- forwarded ports --------------------------------------------------------------------------------------------------


def _forwards() -> Iterator[Row]:
    def connect(bed: Bed, seconds: float) -> Sample:
        return transactions(bed.into_guest("crr", f"{seconds:g}", AT_ONCE))

    title = f"forwarded port: connections, {AT_ONCE} at a time"
    yield Row("forward/crr", title, "per s", _in_bed(connect, True), "CPU us each", needs="forward")
    # Seen from the client, which is the host: what goes up from there comes down to the guest.
    for direction, from_host in {"up": "down", "down": "up"}.items():

        def take(bed: Bed, seconds: float, from_host: str = from_host) -> Sample:
            return bulk(bed.into_guest("stream", f"{seconds:g}", 1, from_host))

        title = f"forwarded port: {DIRECTIONS[direction]}, 1 flow"
        yield Row(f"forward/{direction}", title, "Gbit/s", _in_bed(take, True), "CPU s/GB", needs="forward")


# --- gateways that open the guest's tap device themselves -------------------------------------------------------------


def _taps() -> Iterator[Row]:
    for mtu in (MTUS[0], MTUS[-1]):
        for direction in DIRECTIONS:
            for flows in (1, 8, 64):
                yield _bulk_row(f"tap/{mtu}/{direction}/{flows}", mtu, direction, flows, needs="tap")

    def ping_pong(bed: Bed, seconds: float) -> Sample:
        return transactions(bed.from_guest("rr", f"{seconds:g}", "tcp"))

    yield Row(
        "tap/rr", "tap device, 1-byte ping-pong over TCP", "per s", _in_bed(ping_pong), "CPU us each", needs="tap"
    )
    title = f"tap device, connect, 1 byte each way, close; {AT_ONCE} at a time"
    yield Row("tap/crr", title, "per s", _in_bed(_connect), "CPU us each", needs="tap")


# --- VM to VM ---------------------------------------------------------------------------------------------------------


CONGESTION_CONTROLS = ("cubic", "bbr")
"""Of the guests' TCP: Linux's default, and one that paces. Between VMs nothing but the guests' own TCP decides."""


def _neighbours() -> Iterator[Row]:
    for mtu, control, to in itertools.product((MTUS[0], MTUS[-1]), CONGESTION_CONTROLS, ("vm", "host")):
        title = f"two VMs, iperf3 with {control}, MTU {mtu}, from one to the {'other' if to == 'vm' else to}"
        measure = _in_bed(partial(_to_neighbour if to == "vm" else _to_host, control), neighbour=True)
        yield Row(f"neighbour/{mtu}/{control}/{to}", title, "Gbit/s", measure, "CPU s/GB", mtu, needs="neighbour")


def _to_neighbour(control: str, bed: Bed, seconds: float) -> Sample:
    return iperf(bed.iperf_to_neighbour(seconds, "-C", control))


def _to_host(control: str, bed: Bed, seconds: float) -> Sample:
    return iperf(bed.iperf(seconds, "-C", control))


# --- memory, and how cost grows ---------------------------------------------------------------------------------------


def _growth() -> Iterator[Row]:
    def busy(bed: Bed, seconds: float) -> Sample:
        return memory(bed.from_guest("stream", f"{seconds:g}", AT_ONCE, "up", half_way=seconds / 2))

    title = f"memory while busy (PSS): {AT_ONCE} flows, guest to host"
    yield Row("memory", title, "MB", _in_bed(busy), lower_is_better=True)
    for flows in (10, 1_000, 10_000, 50_000):

        def beside(kind: type[Gateway], link: Link, seconds: float, flows: int = flows) -> Sample:
            if flows >= (allowed := allow_open_files()):
                raise Unmeasurable(f"this system allows a process {allowed:,} descriptors")
            with make_bed(kind, link) as bed:
                return beside_idle_flows(bed, seconds, flows)

        title = f"1-byte ping-pong over TCP beside {flows:,} idle flows"
        yield Row(f"flows/{flows}", title, "per s", beside, "CPU us each")
    for vms in (1, 10, 100):

        def idle(kind: type[Gateway], link: Link, seconds: float, vms: int = vms) -> Sample:
            return of_idle_vms(vms)

        title = f"{vms} idle VM{'s'[: vms > 1]}: memory of a worker (PSS)"
        yield Row(f"vms/{vms}", title, "MB", idle, "CPU ms/s each", needs="moorage", lower_is_better=True)


def memory(seen: Observation) -> Sample:
    """What the gateway holds while it carries traffic."""
    if not sum(seen.report["bytes"]):
        raise Unmeasurable("nothing arrived")
    details = {"worker MB": seen.worker_memory / 1e6} if seen.worker_cpu is not None else {}
    return Sample(seen.memory / 1e6, details=details)


def beside_idle_flows(bed: Bed, seconds: float, flows: int) -> Sample:
    """A busy flow and `flows` idle ones."""
    before = bed.memory()[1]
    bed.hold(flows)
    sample = transactions(bed.from_guest("rr", f"{seconds:g}", "tcp"))
    grown = (bed.memory()[1] - before) / 1e6
    return replace(sample, details={**sample.details, "grown MB": grown})


def of_idle_vms(count: int) -> Sample:
    """What VMs that do nothing cost, and how fast the next is served."""
    found = idle_vms.measure(count, IDLE_SECONDS)
    each = found.idle_cpu * 1e3 / count
    details = {"DHCP ms": found.latency_median * 1e3, "others MB": found.others_pss / 1e6}
    return Sample(found.pss_mean / 1e6, each, details=details)
