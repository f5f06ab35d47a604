/* ceiling SOCKET MTU: the least that one thread can do to carry TCP between QEMU's framing and host sockets.
 *
 * A measuring stick, not a gateway: nothing is sent twice, nothing is checked, writes to the link block, all goes to
 * 127.0.0.1. What is left is what no gateway on this link can leave out: one read of the link for many frames, one
 * sendmsg of a batch's payload straight from where it was read, one acknowledgment for each flow and batch; one read of
 * a host socket, a header and a checksum for each segment, one writev for all of them.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/ethernet.h>
#include <netinet/if_ether.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { BATCH = 1 << 18, MAX_FRAME = 1 << 16, MAX_SEGMENTS = 512, EVENTS = 64, BUCKETS = 1 << 14, OPTIONS = 8 };
/* Windows are bytes, the guest's queue is 1,000 packets: all windows together are no more than it holds. */
enum { WINDOW = 512 << 10, WINDOWS = 1 << 20, LEAST_WINDOW = 4 << 10, SCALE = 7 };

struct flow {
    uint32_t guest, host;
    uint16_t guest_port, host_port;
    uint32_t next_in, next_out, unacknowledged, window, mss;
    int fd, scale, connected, readable, queued, answer, guest_fin, host_fin, dead;
    int pieces;
    struct iovec payload[MAX_SEGMENTS];  /* of this batch, for the host */
    struct flow *in_bucket, *in_queue;
};

struct headers {
    uint32_t length;
    struct ether_header ethernet;
    struct iphdr ip;
    struct tcphdr tcp;
    uint8_t options[OPTIONS];
} __attribute__((packed));

static const uint8_t gateway[6] = {0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd};
static uint8_t guest[6];
static struct flow *buckets[BUCKETS], *queue;
static int link_fd, poller, mtu, open_flows;

/* --- out to the guest --- */

static uint64_t add(const void *data, size_t size, uint64_t sum) {
    const uint8_t *at = data;
    uint64_t even = 0, odd = 0;
    for (; size >= 64; at += 64, size -= 64)
        for (int i = 0; i < 64; i += 8) {
            uint32_t words[2];
            memcpy(words, at + i, sizeof words);
            even += words[0], odd += words[1];
        }
    for (sum += even + odd; size >= 2; at += 2, size -= 2) sum += (uint64_t)(at[0] | at[1] << 8);
    return size ? sum + *at : sum;
}

static uint16_t fold(uint64_t sum) {
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)~sum;
}

static void write_all(int fd, struct iovec *pieces, int count) {
    while (count) {
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)(count < 1024 ? count : 1024)};
        ssize_t done = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done < 0) {
            if (errno != EAGAIN) return;
            poll(&(struct pollfd){fd, POLLOUT, 0}, 1, -1);
            continue;
        }
        for (; count && (size_t)done >= pieces->iov_len; pieces++, count--) done -= (ssize_t)pieces->iov_len;
        if (count) pieces->iov_base = (char *)pieces->iov_base + done, pieces->iov_len -= (size_t)done;
    }
}

static uint32_t window(void) {
    uint32_t share = (uint32_t)(open_flows ? WINDOWS / open_flows : WINDOW);
    return share < LEAST_WINDOW ? LEAST_WINDOW : share > WINDOW ? WINDOW : share;
}

/* Headers of a segment; returns their size, the frame's length included. */
static size_t put_headers(struct headers *out, const struct flow *flow, uint8_t flags, const void *data, size_t size) {
    size_t options = flags & TH_SYN ? OPTIONS : 0, tcp_size = sizeof out->tcp + options;
    *out = (struct headers){
        .length = htonl((uint32_t)(sizeof out->ethernet + sizeof out->ip + tcp_size + size)),
        .ethernet.ether_type = htons(ETHERTYPE_IP),
        .ip = {.ihl = 5, .version = 4, .tot_len = htons((uint16_t)(sizeof out->ip + tcp_size + size)),
               .frag_off = htons(IP_DF), .ttl = 64, .protocol = IPPROTO_TCP, .saddr = flow->host, .daddr = flow->guest},
        .tcp = {.source = flow->host_port, .dest = flow->guest_port, .seq = htonl(flow->next_out),
                .ack_seq = htonl(flow->next_in), .window = htons(flags & TH_SYN ? 65535 : (uint16_t)(window() >> SCALE))},
        .options = {TCPOPT_MAXSEG, 4, (uint8_t)((mtu - 40) >> 8), (uint8_t)(mtu - 40), TCPOPT_NOP, TCPOPT_WINDOW, 3, SCALE},
    };
    memcpy(out->ethernet.ether_dhost, guest, sizeof guest);
    memcpy(out->ethernet.ether_shost, gateway, sizeof gateway);
    out->tcp.doff = (uint8_t)(tcp_size / 4) & 15;
    out->tcp.th_flags = flags;
    out->ip.check = fold(add(&out->ip, sizeof out->ip, 0));
    uint64_t pseudo = add(&out->ip.saddr, 8, htons(IPPROTO_TCP) + (uint64_t)htons((uint16_t)(tcp_size + size)));
    out->tcp.check = fold(add(data, size, add(&out->tcp, tcp_size, pseudo)));
    return offsetof(struct headers, options) + options;
}

static void send_bare(struct flow *flow, uint8_t flags) {
    struct headers headers;
    write_all(link_fd, &(struct iovec){&headers, put_headers(&headers, flow, flags, "", 0)}, 1);
    flow->answer = 0;
}

/* One read of the host socket, as segments; 0: nothing more to do before an event. */
static int pull(struct flow *flow) {
    static char data[BATCH];
    static struct headers headers[MAX_SEGMENTS];
    static struct iovec pieces[2 * MAX_SEGMENTS];
    uint32_t in_flight = flow->next_out - flow->unacknowledged;
    size_t room = flow->window > in_flight ? flow->window - in_flight : 0;
    if (!flow->readable || flow->host_fin || room < flow->mss) return 0;
    if (room > sizeof data) room = sizeof data;
    if (room > flow->mss * MAX_SEGMENTS) room = flow->mss * MAX_SEGMENTS;
    ssize_t got = recv(flow->fd, data, room, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return flow->readable = 0;
    if (got <= 0) {
        send_bare(flow, got ? TH_RST | TH_ACK : TH_FIN | TH_ACK);
        flow->next_out++;
        flow->host_fin = 1;
        flow->dead |= got < 0;
        return 0;
    }
    int count = 0;
    for (size_t at = 0, size; at < (size_t)got; at += size, count++) {
        size = (size_t)got - at < flow->mss ? (size_t)got - at : flow->mss;
        uint8_t flags = at + size == (size_t)got ? TH_PUSH | TH_ACK : TH_ACK;
        pieces[2 * count] = (struct iovec){&headers[count], put_headers(&headers[count], flow, flags, data + at, size)};
        pieces[2 * count + 1] = (struct iovec){data + at, size};
        flow->next_out += (uint32_t)size;
    }
    write_all(link_fd, pieces, 2 * count);
    flow->answer = 0;
    return 1;
}

/* --- in from the guest --- */

static void enqueue(struct flow *flow) {
    if (flow->queued) return;
    flow->queued = 1;
    flow->in_queue = queue;
    queue = flow;
}

static struct flow **find(const struct iphdr *ip, const struct tcphdr *tcp) {
    struct flow **at = &buckets[(tcp->source * 31U ^ tcp->dest * 7U ^ ip->daddr) % BUCKETS];
    while (*at && ((*at)->guest_port != tcp->source || (*at)->host_port != tcp->dest || (*at)->host != ip->daddr))
        at = &(*at)->in_bucket;
    return at;
}

static void open_flow(struct flow **at, const struct iphdr *ip, const struct tcphdr *tcp) {
    struct flow *flow = *at = calloc(1, sizeof *flow);
    open_flows++;
    flow->guest = ip->saddr, flow->host = ip->daddr;
    flow->guest_port = tcp->source, flow->host_port = tcp->dest;
    flow->next_in = ntohl(tcp->seq) + 1;
    flow->mss = (uint32_t)mtu - 40;
    const uint8_t *options = (const void *)(tcp + 1), *end = (const uint8_t *)tcp + tcp->doff * 4;
    for (; options < end && *options != TCPOPT_EOL; options += *options == TCPOPT_NOP ? 1 : options[1] ? options[1] : 40)
        if (*options == TCPOPT_WINDOW) flow->scale = options[2];
    flow->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(flow->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = tcp->dest, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connect(flow->fd, (void *)&to, sizeof to);
    struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLET, {.ptr = flow}};
    epoll_ctl(poller, EPOLL_CTL_ADD, flow->fd, &event);
}

static void push(struct flow *flow) {
    write_all(flow->fd, flow->payload, flow->pieces);
    flow->pieces = 0;
}

static void tcp_from_guest(const struct iphdr *ip, const struct tcphdr *tcp) {
    struct flow **at = find(ip, tcp), *flow = *at;
    if (tcp->syn && !flow) open_flow(at, ip, tcp);
    if (tcp->syn || !flow) return;
    size_t size = (size_t)(ntohs(ip->tot_len) - ip->ihl * 4 - tcp->doff * 4);
    flow->window = (uint32_t)ntohs(tcp->window) << flow->scale;
    flow->unacknowledged = ntohl(tcp->ack_seq);
    flow->dead |= tcp->rst;
    flow->answer |= size || tcp->fin;
    if (size && ntohl(tcp->seq) == flow->next_in) {
        if (flow->pieces == MAX_SEGMENTS) push(flow);
        flow->payload[flow->pieces++] = (struct iovec){(char *)tcp + tcp->doff * 4, size};
        flow->next_in += (uint32_t)size;
    }
    if (tcp->fin && ntohl(tcp->seq) + size == flow->next_in && !flow->guest_fin) {
        flow->guest_fin = 1;
        flow->next_in++;
    }
    enqueue(flow);
}

static void answer_arp(const uint8_t *frame) {
    struct {
        uint32_t length;
        struct ether_header ethernet;
        struct ether_arp arp;
    } __attribute__((packed)) reply;
    memcpy(&reply.ethernet, frame, sizeof reply - sizeof reply.length);
    if (reply.arp.arp_op != htons(ARPOP_REQUEST) || !memcmp(reply.arp.arp_spa, reply.arp.arp_tpa, 4)) return;
    struct ether_arp asked = reply.arp;
    memcpy(guest, asked.arp_sha, sizeof guest);
    reply.length = htonl(sizeof reply - sizeof reply.length);
    memcpy(reply.ethernet.ether_dhost, guest, sizeof guest);
    memcpy(reply.ethernet.ether_shost, gateway, sizeof gateway);
    reply.arp.arp_op = htons(ARPOP_REPLY);
    memcpy(reply.arp.arp_sha, gateway, sizeof gateway);
    memcpy(reply.arp.arp_spa, asked.arp_tpa, 4);
    memcpy(reply.arp.arp_tha, asked.arp_sha, 10);
    write_all(link_fd, &(struct iovec){&reply, sizeof reply}, 1);
}

static void frame_from_guest(const uint8_t *frame, size_t size) {
    const struct ether_header *ethernet = (const void *)frame;
    const struct iphdr *ip = (const void *)(ethernet + 1);
    if (size >= sizeof *ethernet + sizeof(struct ether_arp) && ethernet->ether_type == htons(ETHERTYPE_ARP))
        answer_arp(frame);
    if (size >= sizeof *ethernet + 40 && ethernet->ether_type == htons(ETHERTYPE_IP) && ip->protocol == IPPROTO_TCP)
        tcp_from_guest(ip, (const void *)((const char *)ip + ip->ihl * 4));
}

/* --- the loop --- */

/* What the batch left for a flow: payload to the host, an acknowledgment, a quantum for the guest, its end. */
static void serve(struct flow *flow) {
    if (flow->pieces) push(flow);
    if (flow->guest_fin == 1) shutdown(flow->fd, SHUT_WR), flow->guest_fin = 2;
    if (flow->connected && !flow->dead && pull(flow)) enqueue(flow);
    if (flow->answer) send_bare(flow, TH_ACK);
    if (!flow->dead && !(flow->guest_fin && flow->host_fin && flow->unacknowledged == flow->next_out)) return;
    struct flow **at = &buckets[(flow->guest_port * 31U ^ flow->host_port * 7U ^ flow->host) % BUCKETS];
    while (*at != flow) at = &(*at)->in_bucket;
    *at = flow->in_bucket;
    open_flows--;
    close(flow->fd);
    free(flow);
}

static void serve_all(void) {
    struct flow *flow = queue, *next;
    for (queue = NULL; flow; flow = next) {
        next = flow->in_queue;
        flow->queued = 0;
        serve(flow);
    }
}

static void on_host_event(struct flow *flow, uint32_t events) {
    if (!flow->connected && events & (EPOLLOUT | EPOLLERR)) {
        int refused = (events & EPOLLERR) != 0;
        send_bare(flow, refused ? TH_RST | TH_ACK : TH_SYN | TH_ACK);
        flow->unacknowledged = ++flow->next_out;
        flow->connected = !refused;
        flow->dead = refused;
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)) flow->readable = 1;
    enqueue(flow);
}

static void on_link_event(void) {
    static uint8_t batch[BATCH + MAX_FRAME];
    static size_t have;
    ssize_t got = recv(link_fd, batch + have, sizeof batch - have, 0);
    if (got == 0) exit(0);
    if (got < 0) return;
    have += (size_t)got;
    size_t at = 0;
    for (uint32_t size; have - at >= sizeof size; at += sizeof size + size) {
        memcpy(&size, batch + at, sizeof size);
        size = ntohl(size);
        if (have - at - sizeof size < size) break;
        frame_from_guest(batch + at + sizeof size, size);
    }
    serve_all();  /* the payload lies in the batch */
    memmove(batch, batch + at, have - at);
    have -= at;
}

int main(int count, char **arguments) {
    if (count != 3) return fputs("usage: ceiling SOCKET MTU\n", stderr), 2;
    mtu = atoi(arguments[2]);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strncpy(name.sun_path, arguments[1], sizeof name.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (void *)&name, sizeof name) || listen(listener, 1)) return perror(arguments[1]), 1;
    link_fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    poller = epoll_create1(0);
    struct epoll_event on_link = {EPOLLIN, {.ptr = NULL}}, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, link_fd, &on_link);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, queue ? 0 : -1), link_ready = 0;
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr) on_host_event(events[i].data.ptr, events[i].events);
            else link_ready = 1;
        }
        if (link_ready) on_link_event();
        else serve_all();
    }
}
