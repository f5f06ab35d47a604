"""The engine's state as one struct, and the structs it is made of. The modules that work on it, lowest first:

`capture` (copies of frames), `link.output` (what goes to the guest), `upcall_queue` (what goes to Python), `verdicts`
(what is known of destinations), `icmp_errors`, `flow_table`, `segments`, `tcp_flows`, `tcp_opening`, `tcp_from_guest`,
`tcp_to_guest` and `udp_flows` (flows and their host sockets), `switch` (frames to and from the other VMs of the
network), `ip.reassembly`, `dispatch` (frames from the guest), `link.stream`, `link.messages` and `link.tap` (the kinds
of link, both ways), `link.kinds` (which of them it is), `loop` (one turn), `engine` (the face to Python).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from worker.counters cimport COUNTERS
from worker.datagrams cimport DATAGRAM_BATCH, Ancillary, DatagramBatch
from worker.hostio cimport SocketName, mmsghdr
from worker.lists cimport Node
from worker.readiness cimport Readiness
from worker.ring cimport RingPool
from worker.tcp.tcb cimport Tcb
from worker.timers cimport Timer, Wheel
from worker.wire.addr cimport Addr

cdef enum:
    MAX_FRAME = 131072  # a longer length on a stream link means that it is garbled
    RX_READ = 262144  # bytes asked of one recv on the link
    RX_SIZE = 393220  # RX_READ, and all but the end of the longest frame with its length
    OUT_SLOTS = 512  # segments in one batch to the link
    OUT_SLOT_LEN = 128
    OUT_BATCH_BYTES = 1048576
    OUT_FIFO_SIZE = 1310720  # a batch of datagrams of the largest size, fragmented
    LINK_PREFIX_MAX = 10
    FIFO_MARK_LEN = 4  # before a frame in the fifo of a link that needs to know where each begins
    MAX_SLICES = 4096
    MAX_LISTENERS = 4096
    MAX_NAT = 64
    VERDICT_SLOTS = 2048
    MAX_UPCALLS = 1024
    MAX_UPCALL_BYTES = 4194304
    MAX_DATAGRAMS = 32  # being reassembled
    MAX_UDP_FLOWS = 4096
    MAX_TIME_WAIT = 1024
    FD_RESERVE = 64  # descriptors kept for control and DNS
    SCRATCH_SIZE = 65536
    MAX_PEERS = 1024
    MAX_MACS = 2048  # of all peers; the table has twice the slots
    MAX_GUEST_IPS = 16  # that one VM may speak from to others
    MAX_NOTES = 512  # pieces of a batch for peers, two iovecs each: all that one sendmsg takes
    SWITCH_BATCH = 131072  # bytes of a datagram from worker to worker
    SWITCH_PREFIX_LEN = 4  # before each frame in it: its length, big-endian
    SWITCH_OFFLOADED = 0x01000000  # in that length: a virtio_net_hdr lies between it and the frame, and is part of it
    SWITCH_IN_LANE = 0x02000000  # in the inbox, never in a datagram: only the head of the frame lies there
    INBOX_SIZE = 524288
    CAPTURE_ROOM = 1048544  # with its header 1 MiB

cdef enum LinkKind:
    LINK_STREAM = 0  # each frame behind its length
    LINK_MESSAGES = 1  # each frame a message of a SEQPACKET or datagram socket
    LINK_TAP = 2  # each read and write of a tap device is a frame

cdef enum LinkResult:
    # What became of one read of the link.
    LINK_DRAINED = 0
    LINK_MORE = 1
    LINK_EOF = 2
    LINK_BROKEN = 3
    LINK_GARBLED = 4

cdef enum Tag:
    # The top byte of a readiness token; the rest is a descriptor or a pointer.
    TAG_PYTHON = 0
    TAG_LINK = 1
    TAG_TCP = 2
    TAG_UDP = 3
    TAG_LISTENER = 4
    TAG_LINK_OUT = 5
    TAG_PEER = 6
    TAG_CAPTURE = 7

cdef enum FlowKind:
    FLOW_TCP = 6
    FLOW_UDP = 17


cdef struct FlowKey:
    Addr guest
    Addr peer  # as the guest sees it
    uint16_t guest_port
    uint16_t peer_port
    uint32_t proto


cdef struct FlowHead:
    # What the flow table knows of any flow; first member of each.
    FlowKey key
    uint32_t hash
    FlowHead* next_in_bucket


cdef struct FlowTable:
    FlowHead** buckets
    uint32_t mask
    uint32_t count
    uint64_t seed


cdef struct Slice:
    const uint8_t* data
    uint32_t length
    Slice* next


cdef struct TcpFlow:
    FlowHead head
    Tcb tcb
    Timer timer
    int fd  # of the host connection; -1: closed
    bint connecting
    bint host_readable
    bint host_writable
    bint watches_out  # registered to be told when the socket takes more; most never need it
    bint host_rdhup
    bint host_eof
    bint host_shut  # our side is shut down: the guest's FIN was passed on
    bint from_host  # a forwarded port: the host opened it
    bint dead
    uint32_t epoch
    uint32_t read_hint
    uint32_t sliced
    Slice* first_slice
    Slice* last_slice
    Node dirty
    Node host_queue
    Node out_queue
    Node ack_queue
    Node grave
    uint64_t from_guest
    uint64_t to_guest
    uint8_t quote[28]  # IP header and 8 bytes of the SYN, for an ICMP error


cdef struct HostQueue:
    # What is known of a UDP socket's receive queue.
    uint32_t largest  # bytes of the largest datagram received
    bint widened


cdef struct UdpFlow:
    FlowHead head
    Timer timer
    Node lru
    Node host_queue
    Node grave
    int fd  # a mapping's own socket; of a forward's client: the listener's
    Listener* listener  # the forward this client came by; NULL: a mapping of the guest's
    SocketName client
    Ancillary asked_at  # the host's address that the client knows
    bint host_readable
    bint dead
    bint one_shot
    int64_t last_used
    uint32_t sent
    uint32_t received
    HostQueue queue
    uint64_t from_guest
    uint64_t to_guest


cdef struct Listener:
    int fd
    uint32_t id
    uint32_t proto
    Addr guest
    uint16_t guest_port
    bint keep_source  # the guest sees the clients' own addresses
    bint readable
    bint dead
    HostQueue queue
    Node node
    Node host_queue
    Node grave
    uint32_t clients


cdef struct Verdict:
    uint8_t used
    uint8_t proto
    uint8_t action
    uint16_t dport
    uint16_t host_port
    Addr dst
    Addr host


cdef struct UpcallEntry:
    UpcallEntry* next
    int kind
    int number  # protocol, or descriptor
    Addr src
    Addr dst
    uint16_t sport
    uint16_t dport
    uint32_t length
    uint8_t data[1]


cdef struct UpcallQueue:
    UpcallEntry* first
    UpcallEntry* last
    uint32_t count
    size_t bytes


cdef struct LinkOut:
    iovec* iov
    int count
    int sent  # pieces of a stream, whole frames of other links
    size_t bytes
    uint8_t* slots
    int frame_count
    int* first_piece  # of each frame
    uint8_t* fifo
    size_t fifo_taken
    size_t fifo_end
    bint blocked
    int64_t blocked_at
    bint watched  # readiness is asked to tell of room


cdef struct MessageBatch:
    # What recvmmsg and sendmmsg take; most of it stays from call to call.
    mmsghdr* received
    iovec* places  # of the messages received, in the link's receive buffer
    size_t stride  # from place to place
    unsigned int capacity
    mmsghdr* sending


cdef struct Datagram:
    # An IPv4 datagram in pieces.
    bint used
    Addr src
    Addr dst
    uint16_t ident
    uint8_t proto
    int64_t deadline
    uint32_t length  # of the payload; 0: the last fragment is not here yet
    uint32_t have
    uint32_t end  # of the last byte that is here
    uint8_t* data  # room for an Ethernet and an IPv4 header, then the payload
    uint64_t blocks[128]  # one bit for each 8 bytes that are here


cdef struct Identity:
    # What a VM may call itself to others; decided by the supervisor.
    bint known
    uint8_t mac[6]
    int ip_count
    Addr ips[MAX_GUEST_IPS]


cdef struct Note:
    # A piece of a batch for peers: whole frames.
    Peer* peer  # NULL: for all
    const uint8_t* data
    size_t length
    uint32_t frames
    bint has_prefixes  # a 4-byte length lies before each frame, in `data`
    uint8_t prefix[4]  # otherwise that of the one frame
    Note* next


cdef struct NoteChain:
    Note* first
    Note* last


cdef struct Held:
    # A datagram that waits for room in a peer's socket; its bytes follow.
    Held* next
    size_t size


cdef struct Backlog:
    Held* first
    Held* last
    size_t size  # bytes


cdef struct LaneOut:
    # Memory that we share with a peer and write (worker.switch.lane); positions count bytes.
    uint8_t* memory  # NULL: there is none
    uint32_t head  # where the next batch begins
    uint32_t origin  # what lies at the beginning of the ring
    bint refused  # it cannot be had


cdef struct LaneIn:
    # Memory that a peer shares with us.
    uint8_t* memory
    uint32_t done  # the position up to which nothing is needed any more, once the link has taken it
    bint closed
    Node releasing


cdef struct Peer:
    # Another VM of the network, by the socket that leads to its worker.
    int fd
    uint32_t number
    Identity identity
    bint dead
    NoteChain notes
    Backlog backlog
    LaneOut lane_out
    LaneIn* lane_in
    Node node
    Node pending  # has notes
    Node readable
    Node grave
    uint8_t last_mac[6]  # it was seen to use, at `last_seen`
    int64_t last_seen


cdef struct MacEntry:
    Peer* peer  # NULL: an empty slot
    uint8_t mac[6]
    bint learned  # by its frames; not: told by the supervisor
    int64_t seen


cdef struct MacTable:
    MacEntry* entries
    uint32_t count
    uint64_t seed
    int64_t full_until  # then it may be looked through again


cdef struct Switch:
    bint joined
    bint port_security
    Identity guest
    Node peers
    Node pending
    Node readable
    Node grave
    uint32_t peer_count
    MacTable macs
    uint8_t last_dst[6]  # what was looked up last, and found
    Peer* last_peer  # NULL: nothing
    Note* notes
    int note_count
    size_t noted  # bytes
    size_t held  # bytes in all backlogs
    uint32_t lanes  # that we made
    Node releasing  # lanes of peers with something on its way to the link
    NoteChain flood
    int64_t storm_credit  # us
    int64_t storm_at
    int64_t next_question  # when the supervisor may be told again of what the guest calls itself
    uint8_t* inbox  # batches of peers on their way to the link
    size_t inbox_at
    size_t inbox_end
    uint32_t inbox_frames  # of the datagram at `inbox_at`
    bint inbox_offloaded  # some of them


cdef struct CaptureBuffer:
    # Blocks on their way to a reader, behind a copy of what this worker knows of them, for the next: `proto.captures`.
    uint64_t start
    uint64_t end
    uint64_t dropped
    uint64_t writing  # a write is under way: how much of it went out is not known yet
    uint8_t data[CAPTURE_ROOM]


cdef struct Capture:
    # Somebody who gets a copy of every frame.
    Capture* next
    int fd
    bint is_watched  # readiness tells of room; a file has always room
    bint blocked
    bint hung_up
    uint32_t interface  # its number in the section
    uint32_t snaplen
    uint64_t dropped  # since the last block
    size_t start  # of what waits in the buffer
    size_t end
    CaptureBuffer* buffer
    bint is_shared  # a mapping, which the next worker goes on with; not: allocated


cdef struct NatPair:
    Addr guest_side
    Addr host_side


cdef struct Core:
    int64_t now
    Readiness ready
    uint64_t counters[COUNTERS]
    RingPool pool
    Wheel wheel
    # the link
    int link_fd
    int link_out_fd  # where frames to the guest go: link_fd, or the other one of a pair of pipes
    LinkKind link_kind
    MessageBatch* messages  # of a link of messages
    int prefix_len
    bint offloads  # a virtio_net_hdr before each frame: checksums and segmentation are left to the other side
    bint checksum_is_known  # the transport's checksum of the frame at hand needs no look
    bint link_readable
    bint link_ended  # its end or an error was told: read until recv says so
    bint link_closed
    bint resync
    uint32_t resync_skipped
    uint8_t* rx
    size_t rx_have
    LinkOut out
    Capture* captures  # NULL: nobody captures
    # who is who
    uint8_t gateway_mac[6]
    uint8_t guest_mac[6]
    bint guest_mac_known
    Addr guest_ip
    Addr gateway_ip
    Addr subnet
    int prefix_bits
    uint32_t mtu
    uint16_t next_ident
    uint32_t isn_seed[4]
    uint32_t ts_offset
    Switch switch
    # flows
    FlowTable flows
    uint32_t tcp_count
    uint32_t udp_count
    uint32_t time_wait_count
    uint32_t max_tcp_flows
    uint32_t max_udp_flows
    int64_t udp_idle  # us
    uint16_t next_port
    Node dirty
    Node host_queue  # TCP flows whose host socket may have something for us, or room
    Node udp_queue
    Node listener_queue
    Node out_queue
    Node ack_queue  # TCP flows with a delayed acknowledgment, the oldest first
    Node patient_queue  # the same, of those that have more time
    Node udp_lru
    Node tcp_grave
    Node udp_grave
    Node listener_grave
    Node listeners
    Slice* slices
    int slice_count
    uint32_t epoch
    int64_t epoch_end
    uint32_t active_now
    uint32_t active_before
    # verdicts, upcalls, fragments
    Verdict* verdicts
    uint32_t verdict_count
    UpcallQueue upcalls
    Datagram datagrams[MAX_DATAGRAMS]
    uint32_t datagram_count
    NatPair nat[MAX_NAT]
    int nat_count
    int64_t icmp_window
    uint32_t icmp_sent
    uint8_t* scratch  # one datagram of the largest size, with its UDP header
    DatagramBatch received
    DatagramBatch sending  # the guest's, all of one flow
    UdpFlow* sender
    const uint8_t* sending_headers[DATAGRAM_BATCH]  # the guest's IP headers, for ICMP errors
    uint8_t sending_header_lens[DATAGRAM_BATCH]


cdef inline void count(Core* core, int which) noexcept nogil:
    core.counters[which] += 1


cdef inline void count_by(Core* core, int which, uint64_t n) noexcept nogil:
    core.counters[which] += n


cdef inline uint64_t token_of(Tag tag, void* pointer) noexcept nogil:
    return (<uint64_t>tag << 56) | <uint64_t>pointer
