/* slirpstream SOCKET MTU [HOST_PORT:GUEST_PORT ...]: libslirp behind QEMU's stream framing, on the link of the others.
 *
 * What QEMU's user network does around libslirp and no more: one poll() for the link and libslirp's sockets, its timers
 * from a list. The ports given are forwarded from 127.0.0.1 to the guest, which is 192.168.127.2.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <libslirp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 1 << 18, MAX_FRAME = 1 << 16, MAX_POLLED = 1 << 18 };

struct timer {
    SlirpTimerCb call;
    void *with;
    int64_t at_ms; /* -1: not running */
    struct timer *next;
};

static struct pollfd polled[MAX_POLLED];
static int polled_count, link_fd;
static struct timer *timers;

static int64_t now_ns(void *unused) {
    (void)unused;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static ssize_t send_frame(const void *data, size_t size, void *unused) {
    (void)unused;
    uint32_t length = htonl((uint32_t)size);
    struct iovec pieces[2] = {{&length, sizeof length}, {(void *)data, size}};
    size_t left = sizeof length + size;
    for (;;) {
        ssize_t done = writev(link_fd, pieces, 2);
        if (done < 0) exit(errno != EPIPE);
        if (!(left -= (size_t)done)) return (ssize_t)size;
        for (int i = 0; i < 2; i++) {
            size_t part = (size_t)done < pieces[i].iov_len ? (size_t)done : pieces[i].iov_len;
            pieces[i].iov_base = (char *)pieces[i].iov_base + part;
            pieces[i].iov_len -= part;
            done -= (ssize_t)part;
        }
    }
}

static void guest_error(const char *message, void *unused) {
    (void)unused;
    fprintf(stderr, "%s\n", message);
}

static void *timer_new(SlirpTimerCb call, void *with, void *unused) {
    (void)unused;
    struct timer *timer = calloc(1, sizeof *timer);
    *timer = (struct timer){call, with, -1, timers};
    return timers = timer;
}

static void timer_free(void *timer, void *unused) {
    (void)unused;
    ((struct timer *)timer)->at_ms = -1;
}

static void timer_mod(void *timer, int64_t at_ms, void *unused) {
    (void)unused;
    ((struct timer *)timer)->at_ms = at_ms;
}

static void ignore_fd(int fd, void *unused) {
    (void)fd, (void)unused;
}

static void ignore(void *unused) {
    (void)unused;
}

static const struct {
    int slirp;
    short poll;
} EVENTS[] = {{SLIRP_POLL_IN, POLLIN}, {SLIRP_POLL_OUT, POLLOUT}, {SLIRP_POLL_PRI, POLLPRI}, {SLIRP_POLL_ERR, POLLERR},
              {SLIRP_POLL_HUP, POLLHUP}};
enum { KINDS = sizeof EVENTS / sizeof *EVENTS };

static int add_poll(int fd, int events, void *unused) {
    (void)unused;
    if (polled_count == MAX_POLLED) return -1;
    struct pollfd *added = &polled[polled_count];
    *added = (struct pollfd){fd, 0, 0};
    for (int i = 0; i < KINDS; i++)
        if (events & EVENTS[i].slirp && EVENTS[i].poll & (POLLIN | POLLOUT | POLLPRI)) added->events |= EVENTS[i].poll;
    return polled_count++;
}

static int ready(int index, void *unused) {
    (void)unused;
    int found = 0;
    for (int i = 0; index >= 0 && i < KINDS; i++)
        if (polled[index].revents & EVENTS[i].poll) found |= EVENTS[i].slirp;
    return found;
}

static uint32_t until_next_timer(uint32_t timeout) {
    int64_t now = now_ns(NULL) / 1000000;
    for (struct timer *timer = timers; timer; timer = timer->next)
        if (timer->at_ms >= 0 && timer->at_ms - now < timeout)
            timeout = timer->at_ms > now ? (uint32_t)(timer->at_ms - now) : 0;
    return timeout;
}

static void run_timers(void) {
    int64_t now = now_ns(NULL) / 1000000;
    for (struct timer *timer = timers; timer; timer = timer->next)
        if (timer->at_ms >= 0 && timer->at_ms <= now) timer->at_ms = -1, timer->call(timer->with);
}

static void receive(Slirp *slirp) {
    static uint8_t batch[BATCH + MAX_FRAME];
    static size_t have;
    ssize_t got = recv(link_fd, batch + have, sizeof batch - have, MSG_DONTWAIT);
    if (got == 0) exit(0);
    if (got < 0) return;
    have += (size_t)got;
    size_t at = 0;
    for (uint32_t size; have - at >= sizeof size; at += sizeof size + size) {
        memcpy(&size, batch + at, sizeof size);
        size = ntohl(size);
        if (have - at - sizeof size < size) break;
        slirp_input(slirp, batch + at + sizeof size, (int)size);
    }
    memmove(batch, batch + at, have - at);
    have -= at;
}

static struct in_addr address(const char *text) {
    struct in_addr found;
    inet_aton(text, &found);
    return found;
}

int main(int count, char **arguments) {
    static const SlirpCb callbacks = {
        .send_packet = send_frame, .guest_error = guest_error, .clock_get_ns = now_ns, .timer_new = timer_new,
        .timer_free = timer_free, .timer_mod = timer_mod, .register_poll_fd = ignore_fd,
        .unregister_poll_fd = ignore_fd, .notify = ignore,
    };
    if (count < 3) return fputs("usage: slirpstream SOCKET MTU [HOST_PORT:GUEST_PORT ...]\n", stderr), 2;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strncpy(name.sun_path, arguments[1], sizeof name.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (void *)&name, sizeof name) || listen(listener, 1)) return perror(arguments[1]), 1;
    link_fd = accept(listener, NULL, NULL);
    size_t mtu = (size_t)atoi(arguments[2]);
    SlirpConfig config = {
        .version = 1, .in_enabled = true, .vnetwork = address("192.168.127.0"), .vnetmask = address("255.255.255.0"),
        .vhost = address("192.168.127.1"), .vnameserver = address("192.168.127.3"),
        .vdhcp_start = address("192.168.127.2"), .if_mtu = mtu, .if_mru = mtu,
    };
    Slirp *slirp = slirp_new(&config, &callbacks, NULL);
    for (int i = 3, host_port, guest_port; i < count; i++)
        if (sscanf(arguments[i], "%d:%d", &host_port, &guest_port) != 2 ||
            slirp_add_hostfwd(slirp, 0, address("127.0.0.1"), host_port, config.vdhcp_start, guest_port))
            return perror(arguments[i]), 1;
    for (;;) {
        uint32_t timeout = 1000;
        polled[0] = (struct pollfd){link_fd, POLLIN, 0};
        polled_count = 1;
        slirp_pollfds_fill(slirp, &timeout, add_poll, NULL);
        int found = poll(polled, (nfds_t)polled_count, (int)until_next_timer(timeout));
        slirp_pollfds_poll(slirp, found < 0, ready, NULL);
        run_timers();
        if (polled[0].revents) receive(slirp);
    }
}
