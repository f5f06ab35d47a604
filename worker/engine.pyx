# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""The engine's face to Python: the datapath of one VM as an object that is also the readiness of its process.

`run` is what a selector's `select` calls. It waits and carries traffic without the GIL, and comes back when a
descriptor registered by Python is ready, when upcalls wait, or when its time is up.
"""

import os
import resource

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport close as close_fd

from worker.capture cimport capture_add, capture_close_all
from worker.core cimport (
    FD_RESERVE, FLOW_TCP, FLOW_UDP, LINK_MESSAGES, LINK_STREAM, LINK_TAP, MAX_FRAME, MAX_LISTENERS,
    MAX_NAT, MAX_PEERS, MAX_SLICES, MAX_UDP_FLOWS, RX_READ, RX_SIZE, SCRATCH_SIZE, TAG_LINK, TAG_LISTENER, TAG_PYTHON,
    CaptureBuffer, Core, FlowHead, Identity, Listener, Peer, Slice, TcpFlow, UpcallEntry, Verdict, token_of,
)
from worker.datagrams cimport datagrams_close, datagrams_init
from worker.flow_table cimport table_close, table_init
from worker.hostio cimport SO_KEEPALIVE, SOL_SOCKET, moorage_tell_destinations, set_option
from worker.ip.reassembly cimport reassembly_close
from worker.link.kinds cimport link_close, link_flush, link_init
from worker.link.output cimport out_close, out_frame, out_init
from worker.link.vnet cimport VNET_HEADER_LEN
from worker.lists cimport list_append, list_empty, list_init, list_pop, list_remove, node_init
from worker.loop cimport clock_us, handle_injected, handle_received, run_until
from worker.readiness cimport (
    READY_BATCH, READY_EDGE, READY_ERR, READY_IN, READY_OUT, ReadyEvent, ready_add, ready_close, ready_init,
    ready_modify, ready_remove,
)
from worker.ring cimport RING_MAX, pool_close, pool_init
from worker.switch.peers cimport (
    peer_add, peer_connect, peer_find, peer_identified, peer_remove, switch_close, switch_init, switch_join,
)
from worker.tcp_flows cimport tcp_reset_all
from worker.tcp_opening cimport call_guest, send_first
from worker.timers cimport wheel_init
from worker.udp_flows cimport udp_close_all, udp_forget_clients, udp_to_guest
from worker.upcall_queue cimport UPCALL_STREAM, upcall_pop
from worker.values cimport address, flow_values, set_identity, upcall_values
from worker.verdicts cimport verdict_set, verdicts_clear, verdicts_close, verdicts_init
from worker.wire.addr cimport Addr
from worker.wire.ethernet cimport ETHERNET_HEADER_LEN
from worker.wire.udp cimport UDP_MAX_PAYLOAD

from worker.counters import NAMES
from worker.values import STATES

cdef enum:
    POOL_LIMIT = 268435456  # bytes of all rings of one worker
    MAX_TCP_FLOWS = 131072
    MIN_MTU = 576
    MAX_MTU = 65535
    MAX_SHORT_FRAME = 65535  # on a link whose lengths have two bytes
    EVENT_READ = 1  # selectors.EVENT_READ
    EVENT_WRITE = 2

__all__ = ["STATES", "Engine"]

FRAMINGS = {
    "stream32": (LINK_STREAM, 4),
    "stream16": (LINK_STREAM, 2),
    "messages": (LINK_MESSAGES, 0),
    "tap": (LINK_TAP, 0),
    "tap-vnet": (LINK_TAP, VNET_HEADER_LEN),
}
"""The kind of link, and the length of what lies before each frame."""


@cython.final
cdef class Engine:
    """The datapath of one VM; `engine.pyi` documents every method."""

    cdef Core* core
    cdef readonly int upcall_fd
    cdef dict listeners
    cdef set python_fds

    def __cinit__(
        self, int link_fd, str framing, int mtu, bytes gateway_mac, bytes gateway_ip, bytes subnet, int prefix_len, *,
        int link_out_fd=-1, bint resync=False, bytes guest_mac=b"", str readiness="auto", double udp_idle=180.0
    ):
        self.upcall_fd = -1
        self.listeners = {}
        self.python_fds = set()
        if framing not in FRAMINGS:
            raise ValueError(f"framing {framing!r}: expected {', '.join(FRAMINGS)}")
        if readiness not in ("auto", "epoll", "poll"):
            raise ValueError(f"readiness {readiness!r}: expected auto, epoll or poll")
        max_mtu = MAX_SHORT_FRAME - ETHERNET_HEADER_LEN if framing == "stream16" else MAX_MTU
        if not MIN_MTU <= mtu <= max_mtu:
            raise ValueError(f"mtu {mtu}: expected {MIN_MTU} to {max_mtu} on a {framing} link")
        if len(gateway_mac) != 6 or len(guest_mac) not in (0, 6) or not 96 <= prefix_len <= 128:
            raise ValueError("a MAC has 6 bytes, an IPv4 prefix 96 to 128 bits")
        self.core = <Core*>calloc(1, sizeof(Core))
        if self.core == NULL:
            raise MemoryError
        self.core.link_fd = -1
        self.core.link_out_fd = -1
        self.core.ready.epoll_fd = -1
        self._init_lists()
        self._init_memory(readiness != "poll")
        core = self.core
        core.link_kind, core.prefix_len = FRAMINGS[framing]
        core.offloads = framing == "tap-vnet"
        core.mtu = mtu
        core.udp_idle = <int64_t>(udp_idle * 1e6)
        core.gateway_ip = address(gateway_ip)
        core.subnet = address(subnet)
        core.prefix_bits = prefix_len
        memcpy(core.gateway_mac, <const char*>gateway_mac, 6)
        if guest_mac:
            memcpy(core.guest_mac, <const char*>guest_mac, 6)
            core.guest_mac_known = True
        core.resync = resync and core.link_kind == LINK_STREAM
        self._init_link(link_fd, link_fd if link_out_fd < 0 else link_out_fd)

    cdef void _init_lists(self):
        cdef Core* core = self.core
        list_init(&core.dirty)
        list_init(&core.host_queue)
        list_init(&core.udp_queue)
        list_init(&core.listener_queue)
        list_init(&core.out_queue)
        list_init(&core.ack_queue)
        list_init(&core.patient_queue)
        list_init(&core.udp_lru)
        list_init(&core.tcp_grave)
        list_init(&core.udp_grave)
        list_init(&core.listener_grave)
        list_init(&core.listeners)
        switch_init(core)

    cdef int _init_memory(self, bint use_epoll) except -1:
        cdef Core* core = self.core
        cdef bytes entropy = os.urandom(32)
        cdef int error = ready_init(&core.ready, use_epoll)
        if error:
            raise OSError(error, os.strerror(error))
        core.now = clock_us()
        wheel_init(&core.wheel, core.now)
        pool_init(&core.pool, POOL_LIMIT)
        memcpy(core.isn_seed, <const char*>entropy, 16)
        memcpy(&core.ts_offset, <const char*>entropy + 16, 4)
        core.rx = <uint8_t*>malloc(RX_SIZE)
        core.scratch = <uint8_t*>malloc(SCRATCH_SIZE)
        core.slices = <Slice*>malloc(MAX_SLICES * sizeof(Slice))
        if core.rx == NULL or core.scratch == NULL or core.slices == NULL:
            raise MemoryError
        if datagrams_init(&core.received) or out_init(core) or verdicts_init(core):
            raise MemoryError
        if table_init(&core.flows, int.from_bytes(entropy[20:28], "little")):
            raise MemoryError
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        spare = max(32, (MAX_TCP_FLOWS * 2 if limit < 0 else limit) - FD_RESERVE)
        core.max_udp_flows = min(spare // 2, MAX_UDP_FLOWS)
        core.max_tcp_flows = min(spare - core.max_udp_flows, MAX_TCP_FLOWS)

    cdef int _init_link(self, int link_fd, int link_out_fd) except -1:
        cdef int error
        if link_init(self.core):
            raise MemoryError
        self.upcall_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.set_blocking(link_fd, False)
        os.set_blocking(link_out_fd, False)
        error = ready_add(
            &self.core.ready, link_fd, token_of(TAG_LINK, NULL), READY_IN | READY_EDGE
        )
        if error:
            raise OSError(error, f"link: {os.strerror(error)}")
        self.core.link_fd = link_fd
        self.core.link_out_fd = link_out_fd

    def __dealloc__(self):
        self._free()

    cdef void _free(self):
        cdef Core* core = self.core
        cdef UpcallEntry* entry
        if core == NULL:
            return
        self.core = NULL
        if self.upcall_fd >= 0:
            close_fd(self.upcall_fd)
            self.upcall_fd = -1
        if core.flows.buckets != NULL:
            tcp_reset_all(core)
            udp_close_all(core)
            table_close(&core.flows)
        while not list_empty(&core.listeners):
            bury_listener(core, <Listener*>core.listeners.next.owner)
        while not list_empty(&core.listener_grave):
            free(list_pop(&core.listener_grave))
        entry = upcall_pop(core)
        while entry != NULL:
            if entry.kind == UPCALL_STREAM:
                close_fd(entry.number)
            free(entry)
            entry = upcall_pop(core)
        reassembly_close(core)
        if core.link_fd >= 0:
            link_flush(core)
            capture_close_all(core)
            close_fd(core.link_fd)
            if core.link_out_fd != core.link_fd:
                close_fd(core.link_out_fd)
        switch_close(core)  # what the link had yet to take lay there
        link_close(core)
        out_close(core)
        verdicts_close(core)
        ready_close(&core.ready)
        pool_close(&core.pool)
        free(core.rx)
        free(core.scratch)
        datagrams_close(&core.received)
        free(core.slices)
        free(core)

    def close(self):
        self._free()

    cdef Core* _open(self) except NULL:
        if self.core == NULL:
            raise ValueError("the engine is closed")
        return self.core

    # --- the selector's side

    def register(self, int fd, int events):
        cdef int error
        if fd != self.upcall_fd:
            error = ready_add(&self._open().ready, fd, token_of(TAG_PYTHON, <void*><uint64_t>fd), _mask(events))
            if error:
                raise OSError(error, f"descriptor {fd}: {os.strerror(error)}")
        self.python_fds.add(fd)

    def modify(self, int fd, int events):
        cdef int error
        if fd not in self.python_fds:
            raise KeyError(fd)
        if fd != self.upcall_fd:
            error = ready_modify(&self._open().ready, fd, token_of(TAG_PYTHON, <void*><uint64_t>fd), _mask(events))
            if error:
                raise OSError(error, f"descriptor {fd}: {os.strerror(error)}")

    def unregister(self, int fd):
        self.python_fds.remove(fd)
        if fd != self.upcall_fd:
            ready_remove(&self._open().ready, fd)

    def run(self, double timeout):
        cdef Core* core = self._open()
        cdef ReadyEvent events[READY_BATCH]
        cdef int64_t deadline = -1
        cdef int found
        cdef int i
        with nogil:
            if timeout >= 0:
                deadline = clock_us() + <int64_t>(timeout * 1e6)
            found = run_until(core, deadline, events)
        result = []
        for i in range(found):
            result.append((
                <int>(events[i].token & <uint64_t>0xFFFFFFFF),
                (EVENT_READ if events[i].events & (READY_IN | READY_ERR) else 0)
                | (EVENT_WRITE if events[i].events & (READY_OUT | READY_ERR) else 0),
            ))
        if core.upcalls.count and self.upcall_fd in self.python_fds:
            result.append((self.upcall_fd, EVENT_READ))
        return result

    # --- the control side

    def take_upcalls(self):
        cdef Core* core = self._open()
        cdef UpcallEntry* entry = upcall_pop(core)
        result = []
        while entry != NULL:
            try:
                result.append(upcall_values(entry))
            finally:
                free(entry)
            entry = upcall_pop(core)
        return result

    def set_verdict(
        self, int proto, bytes dst, int dport, int action, bytes host_addr=b"", int host_port=0
    ):
        cdef Verdict verdict
        memset(&verdict, 0, sizeof(verdict))
        verdict.proto = <uint8_t>proto
        verdict.dst = address(dst)
        verdict.dport = <uint16_t>dport
        verdict.action = <uint8_t>action
        if host_addr:
            verdict.host = address(host_addr)
        verdict.host_port = <uint16_t>host_port
        verdict_set(self._open(), &verdict)

    def clear_verdicts(self):
        verdicts_clear(self._open())

    def map_address(self, bytes guest_side, bytes host_side):
        cdef Core* core = self._open()
        cdef Addr guest = address(guest_side)
        cdef Addr host = address(host_side)
        if core.nat_count == MAX_NAT:
            raise ValueError(f"more than {MAX_NAT} address mappings")
        core.nat[core.nat_count].guest_side = guest
        core.nat[core.nat_count].host_side = host
        core.nat_count += 1

    def inject(self, bytes frame):
        cdef Core* core = self._open()
        cdef const uint8_t* data = <const uint8_t*><const char*>frame
        cdef size_t length = len(frame)
        with nogil:
            core.now = clock_us()
            handle_injected(core, data, length)

    def receive(self, bytes data):
        cdef Core* core = self._open()
        cdef const uint8_t* start = <const uint8_t*><const char*>data
        cdef size_t length = len(data)
        if length > RX_READ or core.rx_have or core.link_kind != LINK_STREAM:
            raise ValueError(f"{length} bytes: expected at most {RX_READ} of a stream, once, before any other")
        with nogil:
            core.now = clock_us()
            handle_received(core, start, length)

    def send_frame(self, bytes frame):
        cdef Core* core = self._open()
        if not ETHERNET_HEADER_LEN <= len(frame) <= (MAX_SHORT_FRAME if core.prefix_len == 2 else MAX_FRAME):
            raise ValueError(f"frame of {len(frame)} bytes")
        return bool(out_frame(core, <const uint8_t*><const char*>frame, len(frame)))

    def send_udp(self, bytes src, int sport, bytes dst, int dport, bytes payload, bytes dst_mac=b""):
        cdef Core* core = self._open()
        cdef Addr source = address(src)
        cdef Addr destination = address(dst)
        cdef const uint8_t* mac = core.guest_mac
        if len(payload) > UDP_MAX_PAYLOAD:
            raise ValueError(f"datagram of {len(payload)} bytes, at most {UDP_MAX_PAYLOAD} fit")
        if dst_mac:
            if len(dst_mac) != 6:
                raise ValueError("a MAC has 6 bytes")
            mac = <const uint8_t*><const char*>dst_mac
        return bool(udp_to_guest(
            core, &source, <uint16_t>sport, &destination, <uint16_t>dport, mac, <const uint8_t*><const char*>payload,
            len(payload),
        ))

    def add_listener(
        self, int forward_id, int fd, int proto, bytes guest_ip, int guest_port, *, bint keep_source=True
    ):
        cdef Core* core = self._open()
        cdef Addr guest = address(guest_ip)
        cdef Listener* listener
        cdef int error
        if forward_id in self.listeners or len(self.listeners) >= MAX_LISTENERS:
            raise ValueError(f"forward {forward_id} exists already, or there are {MAX_LISTENERS}")
        os.set_blocking(fd, False)
        listener = <Listener*>calloc(1, sizeof(Listener))
        if listener == NULL:
            raise MemoryError
        node_init(&listener.node, listener)
        node_init(&listener.host_queue, listener)
        node_init(&listener.grave, listener)
        listener.fd = fd
        listener.id = forward_id
        listener.proto = FLOW_TCP if proto == FLOW_TCP else FLOW_UDP
        listener.guest = guest
        listener.guest_port = <uint16_t>guest_port
        listener.keep_source = keep_source
        if proto == FLOW_UDP:
            moorage_tell_destinations(fd)
        error = ready_add(&core.ready, fd, token_of(TAG_LISTENER, listener), READY_IN | READY_EDGE)
        if error:
            free(listener)
            raise OSError(error, f"forward {forward_id}: {os.strerror(error)}")
        list_append(&core.listeners, &listener.node)
        self.listeners[forward_id] = <uint64_t>listener

    def remove_listener(self, int forward_id):
        cdef Core* core = self._open()
        cdef Listener* listener = <Listener*><uint64_t>self.listeners.pop(forward_id)
        udp_forget_clients(core, listener)
        bury_listener(core, listener)

    def call_guest(self, int fd, bytes guest_ip, int guest_port, bytes first_bytes=b""):
        cdef Core* core = self._open()
        cdef Addr guest = address(guest_ip)
        cdef TcpFlow* flow
        if len(first_bytes) > RING_MAX:
            raise ValueError(f"{len(first_bytes)} first bytes, at most {RING_MAX} fit")
        os.set_blocking(fd, False)
        set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1)
        flow = call_guest(core, fd, &guest, <uint16_t>guest_port, &core.gateway_ip, 0)
        if flow != NULL and first_bytes:
            send_first(core, flow, <const uint8_t*><const char*>first_bytes, <uint32_t>len(first_bytes))

    def join_switch(self, bint port_security):
        cdef Core* core = self._open()
        if core.switch.joined:
            raise ValueError("the guest is on its network already")
        if switch_join(core, port_security, int.from_bytes(os.urandom(8), "little")):
            raise MemoryError

    def set_guest(self, bytes mac, addresses):
        set_identity(&self._open().switch.guest, mac, addresses)

    def add_peer(self, unsigned int number, int fd, bytes mac, addresses):
        cdef Core* core = self._open()
        cdef Peer* peer = peer_find(core, number)
        cdef Identity identity
        cdef int error
        set_identity(&identity, mac, addresses)
        if not core.switch.joined or (peer == NULL and (fd < 0 or core.switch.peer_count >= MAX_PEERS)):
            raise ValueError(f"peer {number} has no socket, or there are {core.switch.peer_count}")
        if peer == NULL:
            peer = peer_add(core, number)
            if peer == NULL:
                raise MemoryError
        if fd >= 0:
            error = peer_connect(core, peer, fd)
            if error:
                raise OSError(error, f"peer {number}: {os.strerror(error)}")
        peer.identity = identity
        peer_identified(core, peer)

    def remove_peer(self, unsigned int number):
        cdef Core* core = self._open()
        cdef Peer* peer = peer_find(core, number)
        if peer == NULL:
            raise KeyError(number)
        peer_remove(core, peer)

    def add_capture(self, int fd, int interface, int snaplen=0, int buffer_fd=-1):
        if buffer_fd >= 0 and os.fstat(buffer_fd).st_size != sizeof(CaptureBuffer):
            raise ValueError(f"a capture's buffer has {sizeof(CaptureBuffer)} bytes")
        os.set_blocking(fd, False)
        cdef int error = capture_add(self._open(), fd, interface, snaplen, buffer_fd)
        if error:
            raise OSError(error, f"capture: {os.strerror(error)}")

    def counters(self):
        cdef Core* core = self._open()
        cdef int i
        result = {name: core.counters[i] for i, name in enumerate(NAMES)}
        result["tcp.flows"] = core.tcp_count
        result["udp.flows"] = core.udp_count
        result["tcp.time_wait"] = core.time_wait_count
        result["memory.rings"] = core.pool.in_use
        result["verdicts.known"] = core.verdict_count
        result["ipv4.reassembling"] = core.datagram_count
        return result

    def flows(self, int limit=1000):
        cdef Core* core = self._open()
        cdef FlowHead* head
        cdef uint32_t i
        result = []
        for i in range(core.flows.mask + 1):
            head = core.flows.buckets[i]
            while head != NULL:
                if len(result) >= limit:
                    return result
                result.append(flow_values(head))
                head = head.next_in_bucket
        return result

    @property
    def guest_mac(self):
        cdef Core* core = self._open()
        return PyBytes_FromStringAndSize(<const char*>core.guest_mac, 6) if core.guest_mac_known else b""


cdef void bury_listener(Core* core, Listener* listener) noexcept nogil:
    """Close a listener; its memory stays until the end of the turn, for events that still name it."""
    listener.dead = True
    list_remove(&listener.node)
    list_remove(&listener.host_queue)
    list_append(&core.listener_grave, &listener.grave)
    ready_remove(&core.ready, listener.fd)
    close_fd(listener.fd)


cdef uint32_t _mask(int events):
    return (READY_IN if events & EVENT_READ else 0) | (READY_OUT if events & EVENT_WRITE else 0)
