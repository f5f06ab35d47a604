/* load: makes traffic and counts it, the same for every gateway.
 *
 *   load serve ADDRESS PORT                          the other end of all that follows: TCP on PORTS ports, UDP on one
 *   load stream HOST PORT SECONDS FLOWS up|down      bulk data from (up) or to (down) the client
 *   load rr HOST PORT SECONDS tcp|udp                one byte there and back, one at a time
 *   load crr HOST PORT SECONDS THREADS               connect, one byte each way, close
 *   load udp HOST PORT SECONDS BYTES up|down         datagrams as fast as they are taken
 *   load hold HOST PORT FLOWS                        opens connections, each used once, and keeps them
 *
 * A client prints "begin" when what it measures begins, and one line of JSON when it is over, so that whoever reads
 * the lines can take the gateway's CPU time at both. The first byte of a connection says what the server does with it;
 * how much arrived is what the receiving end counted, between two looks at one clock: nothing in a buffer counts.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORTS = 4, BACKLOG = 4096, BLOCK = 128 << 10, EVENTS = 256, MAX_FD = 1 << 18, MAX_FLOWS = 1024 };
enum { OPENING = 250, MAX_SAMPLES = 1 << 21, MAX_THREADS = 64, MAX_DATAGRAM = 65507, WARM_UP_ROUNDS = 100 };
enum { ECHO = 'e', SINK = 'u', SOURCE = 'd', REPORT = 'r' };        /* first byte of a connection */
enum { COUNT = 'C', ASK = 'A', FLOOD = 'F' };                       /* first byte of a long datagram; short: echo */
static const double WARM_UP = 0.5, PATIENCE = 15, SILENCE = 0.5;    /* s */

struct datagram {
    uint8_t op;
    uint32_t size;    /* FLOOD: bytes of each */
    uint64_t number;  /* COUNT: from 0; FLOOD: milliseconds; ASK, answered: 1 + the highest number seen */
    uint64_t counted; /* ASK, answered */
    double seconds;   /* ASK, answered: from the first to the last */
};

struct tally {
    uint64_t counted, end; /* datagrams; 1 + the highest number */
    double first, last;
};

struct report {
    double now;
    uint64_t bytes[MAX_FLOWS];
};

static char block[BLOCK];

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, errno == EAGAIN ? "no answer in time" : errno ? strerror(errno) : "failed");
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void begin(void) {
    puts("begin");
    fflush(stdout);
}

static struct sockaddr_in address(const char *host, int port) {
    struct sockaddr_in found = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (!inet_aton(host, &found.sin_addr)) fail(host);
    return found;
}

static void allow_descriptors(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) fail("descriptors");
    limit.rlim_cur = limit.rlim_max < MAX_FD ? limit.rlim_max : MAX_FD;
    if (setrlimit(RLIMIT_NOFILE, &limit)) fail("descriptors");
}

static void watch(int poller, int fd, uint32_t events, uint64_t tag) {
    struct epoll_event event = {.events = events, .data.u64 = tag};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) && epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event)) fail("epoll");
}

static void note(struct tally *tally, uint64_t number) {
    tally->last = now();
    if (!tally->counted++) tally->first = tally->last;
    if (number >= tally->end) tally->end = number + 1;
}

/* --- the server --- */

static struct {
    uint8_t mode;
    uint32_t flow;
} connections[MAX_FD];
static struct report arrived;
static uint32_t sinks;

static void flood(int fd, const struct sockaddr_in *to, uint32_t size, double seconds) {
    static char payload[MAX_DATAGRAM];
    struct datagram *head = (void *)payload;
    *head = (struct datagram){.op = COUNT};
    for (double end = now() + seconds; now() < end;)
        for (int i = 0; i < 32; i++, head->number++) sendto(fd, payload, size, 0, (const void *)to, sizeof *to);
}

static void serve_datagram(int fd) {
    static struct tally tally;
    struct sockaddr_in from;
    for (int i = 0; i < EVENTS; i++) {
        socklen_t length = sizeof from;
        ssize_t n = recvfrom(fd, block, sizeof block, MSG_DONTWAIT, (void *)&from, &length);
        if (n < 0) return;
        struct datagram *head = (void *)block;
        if (n < (ssize_t)sizeof *head) {
            sendto(fd, block, (size_t)n, 0, (void *)&from, length);
        } else if (head->op == COUNT) {
            note(&tally, head->number);
        } else if (head->op == FLOOD) {
            flood(fd, &from, head->size, (double)head->number / 1e3);
        } else if (head->op == ASK) {
            *head = (struct datagram){ASK, 0, tally.end, tally.counted, tally.last - tally.first};
            sendto(fd, head, sizeof *head, 0, (void *)&from, length);
        }
    }
}

static void accept_all(int poller, int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        connections[fd].mode = 0;
        watch(poller, fd, EPOLLIN, (uint64_t)fd);
    }
}

static void serve_connection(int poller, int fd, uint32_t events) {
    if (connections[fd].mode == SOURCE && events == EPOLLOUT) {
        if (send(fd, block, sizeof block, MSG_NOSIGNAL) < 0 && errno != EAGAIN) close(fd);
        return;
    }
    ssize_t n = recv(fd, block, sizeof block, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        close(fd);
        return;
    }
    if (!connections[fd].mode) {
        connections[fd].mode = (uint8_t)block[0];
        if (block[0] == SINK) connections[fd].flow = sinks++ % MAX_FLOWS;
        if (block[0] == SOURCE) watch(poller, fd, EPOLLIN | EPOLLOUT, (uint64_t)fd);
    }
    if (connections[fd].mode == SINK) {
        arrived.bytes[connections[fd].flow] += (uint64_t)n;
    } else if (connections[fd].mode == REPORT) {
        arrived.now = now();
        if (send(fd, &arrived, sizeof arrived, MSG_NOSIGNAL) != sizeof arrived) close(fd);
    } else if (connections[fd].mode == ECHO && send(fd, block, (size_t)n, MSG_NOSIGNAL) != n) {
        close(fd);
    }
}

static void serve(const char *host, int port) {
    int poller = epoll_create1(0), listeners[PORTS], datagrams = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = address(host, port);
    if (bind(datagrams, (void *)&to, sizeof to)) fail("UDP port");
    setsockopt(datagrams, SOL_SOCKET, SO_RCVBUFFORCE, &(int){8 << 20}, sizeof(int));
    watch(poller, datagrams, EPOLLIN, (uint64_t)datagrams);
    for (int i = 0; i < PORTS; i++) {
        to.sin_port = htons((uint16_t)(port + i));
        listeners[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        setsockopt(listeners[i], SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
        if (bind(listeners[i], (void *)&to, sizeof to) || listen(listeners[i], BACKLOG)) fail("TCP port");
        watch(poller, listeners[i], EPOLLIN, (uint64_t)listeners[i]);
    }
    begin();
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = (int)events[i].data.u64;
            if (fd == datagrams) serve_datagram(fd);
            else if (fd >= listeners[0] && fd <= listeners[PORTS - 1]) accept_all(poller, fd);
            else serve_connection(poller, fd, events[i].events);
        }
    }
}

/* --- the clients --- */

static int dial(const struct sockaddr_in *to, int type, int flags) {
    int fd = socket(AF_INET, type | flags, 0);
    if (fd < 0) fail("socket");
    if (type == SOCK_STREAM) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct timeval patience = {type == SOCK_STREAM ? 5 : 1, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (const void *)to, sizeof *to) && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Opens `count` connections, OPENING at a time, spread over the server's ports, and says on each what it is for. */
static void open_flows(const char *host, int port, int count, char mode, int *flows) {
    double deadline = now() + PATIENCE + count / 1000.0;
    int poller = epoll_create1(0);
    for (int done = 0; done < count;) {
        int batch = count - done < OPENING ? count - done : OPENING;
        for (int i = done; i < done + batch; i++) {
            struct sockaddr_in to = address(host, port + i % PORTS);
            if ((flows[i] = dial(&to, SOCK_STREAM, SOCK_NONBLOCK)) < 0) fail("connect");
            watch(poller, flows[i], EPOLLOUT, (uint64_t)i);
        }
        for (int left = batch; left;) {
            struct epoll_event events[EVENTS];
            int n = epoll_wait(poller, events, EVENTS, 100);
            for (int i = 0; i < n; i++) {
                int error = 0, fd = flows[events[i].data.u64];
                getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
                if (error || send(fd, &mode, 1, MSG_NOSIGNAL) != 1) errno = error, fail("connect");
                epoll_ctl(poller, EPOLL_CTL_DEL, fd, NULL);
                left--;
            }
            if (now() > deadline) {
                fprintf(stderr, "%d of %d connections were open after %.0f s\n", done + batch - left, count,
                        PATIENCE + count / 1000.0);
                exit(1);
            }
        }
        done += batch;
    }
    close(poller);
}

/* Moves data on every flow until `end`; asks for a report at `from` and at `end`. Returns the second one. */
static void run_stream(int poller, const int *flows, int count, int control, double from, double end, int up) {
    struct report local = {0}, remote, start = {0};
    size_t have = 0;
    int asked = 0, reports = 0;
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(poller, events, EVENTS, 20), complete = 0;
        for (int i = 0; i < n; i++) {
            uint64_t flow = events[i].data.u64;
            if (flow == MAX_FLOWS) {
                ssize_t k = recv(control, (char *)&remote + have, sizeof remote - have, 0);
                if (k <= 0) fail("the server's report");
                have += (size_t)k;
                complete = have == sizeof remote;
            } else {
                ssize_t k = up ? send(flows[flow], block, sizeof block, MSG_NOSIGNAL)
                               : recv(flows[flow], block, sizeof block, 0);
                if (k == 0 || (k < 0 && errno != EAGAIN)) fail("a flow ended");
                if (k > 0) local.bytes[flow] += (uint64_t)k;
            }
        }
        local.now = now();
        if (local.now > end + PATIENCE) errno = ETIMEDOUT, fail("the server's report");
        if (asked < 2 && local.now >= (asked ? end : from)) {
            asked++;
            if (!up) remote = local, complete = 1;
            else if (send(control, &(char){REPORT}, 1, MSG_NOSIGNAL) != 1) fail("asking for a report");
        }
        if (!complete) continue;
        have = 0;
        if (!reports++) {
            start = remote;
            begin();
            continue;
        }
        printf("{\"seconds\": %.6f, \"bytes\": [", remote.now - start.now);
        for (int i = 0; i < count; i++)
            printf("%s%llu", i ? ", " : "", (unsigned long long)(remote.bytes[i] - start.bytes[i]));
        puts("]}");
        return;
    }
}

static void stream(const char *host, int port, double seconds, int count, int up) {
    static int flows[MAX_FLOWS];
    int poller = epoll_create1(0), control = -1;
    if (count > MAX_FLOWS) fail("flows");
    if (up) {
        struct sockaddr_in to = address(host, port);
        if ((control = dial(&to, SOCK_STREAM, 0)) < 0) fail("connect");
        watch(poller, control, EPOLLIN, MAX_FLOWS);
    }
    open_flows(host, port, count, up ? SINK : SOURCE, flows);
    for (int i = 0; i < count; i++) watch(poller, flows[i], up ? EPOLLOUT : EPOLLIN, (uint64_t)i);
    double from = now() + WARM_UP;
    run_stream(poller, flows, count, control, from, from + seconds, up);
}

static int by_size(const void *a, const void *b) {
    double difference = *(const double *)a - *(const double *)b;
    return difference < 0 ? -1 : difference > 0;
}

static void print_samples(double *samples, long count, long errors, double seconds) {
    qsort(samples, (size_t)count, sizeof *samples, by_size);
    printf("{\"count\": %ld, \"errors\": %ld, \"seconds\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", count, errors,
           seconds, count ? samples[count / 2] * 1e6 : 0.0, count ? samples[count * 99 / 100] * 1e6 : 0.0);
}

static void ping_pong(const char *host, int port, double seconds, int type) {
    double *samples = calloc(MAX_SAMPLES, sizeof *samples), start = 0;
    struct sockaddr_in to = address(host, port);
    int fd = dial(&to, type, 0);
    if (fd < 0) fail("connect");
    long count = -WARM_UP_ROUNDS, errors = 0;
    for (double before; (before = now()) < start + seconds || count < 0;) {
        char byte = ECHO;
        if (send(fd, &byte, 1, MSG_NOSIGNAL) != 1 || recv(fd, &byte, 1, 0) != 1) {
            if (type == SOCK_STREAM || ++errors > 10) fail("ping-pong");
            continue;
        }
        if (count >= 0 && count < MAX_SAMPLES) samples[count] = now() - before;
        if (++count == 0) begin(), start = now();
    }
    print_samples(samples, count, errors, now() - start);
}

struct thread {
    pthread_t id;
    struct sockaddr_in to;
    double end, *samples;
    long count, errors;
};

static void *connect_again(void *argument) {
    struct thread *thread = argument;
    struct sockaddr_in to = thread->to;
    for (int port = 0; now() < thread->end && thread->count < MAX_SAMPLES / MAX_THREADS; port++) {
        char byte = ECHO;
        double before = now();
        to.sin_port = htons((uint16_t)(ntohs(thread->to.sin_port) + port % PORTS));
        int fd = dial(&to, SOCK_STREAM, 0);
        int done = fd >= 0 && send(fd, &byte, 1, MSG_NOSIGNAL) == 1 && recv(fd, &byte, 1, 0) == 1;
        if (fd >= 0) close(fd);
        if (done) thread->samples[thread->count++] = now() - before;
        else thread->errors++;
    }
    return NULL;
}

static void connections_per_second(const char *host, int port, double seconds, int count) {
    static struct thread threads[MAX_THREADS];
    double *samples = calloc(MAX_SAMPLES, sizeof *samples);
    long total = 0, errors = 0;
    if (count > MAX_THREADS) fail("threads");
    begin();
    double start = now();
    for (int i = 0; i < count; i++) {
        threads[i].to = address(host, port);
        threads[i].end = start + seconds;
        threads[i].samples = calloc(MAX_SAMPLES / MAX_THREADS, sizeof *samples);
        pthread_create(&threads[i].id, NULL, connect_again, &threads[i]);
    }
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i].id, NULL);
        memcpy(samples + total, threads[i].samples, (size_t)threads[i].count * sizeof *samples);
        total += threads[i].count;
        errors += threads[i].errors;
    }
    print_samples(samples, total, errors, now() - start);
}

/* Waits for an answer to `request`, which is sent again while there is none. */
static void ask(int fd, const void *request, size_t size, void *answer, size_t answer_size) {
    for (int i = 0; i < 5; i++) {
        send(fd, request, size, 0);
        if (recv(fd, answer, answer_size, 0) == (ssize_t)answer_size) return;
    }
    fail("no answer to a datagram");
}

static void datagrams(const char *host, int port, double seconds, uint32_t size, int up) {
    struct sockaddr_in to = address(host, port);
    int fd = dial(&to, SOCK_DGRAM, 0);
    struct datagram head = {.op = FLOOD, .size = size, .number = (uint64_t)(seconds * 1e3)};
    if (size < sizeof head || size > MAX_DATAGRAM) fail("size");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &(int){8 << 20}, sizeof(int));
    ask(fd, block, 1, block, 1);
    begin();
    if (up) {
        flood(fd, &to, size, seconds);
        usleep((useconds_t)(SILENCE * 1e6));
        head.op = ASK;
        ask(fd, &head, sizeof head, &head, sizeof head);
    } else {
        struct tally tally = {0};
        send(fd, &head, sizeof head, 0);
        while (recv(fd, block, sizeof block, 0) == (ssize_t)size) {
            if (!tally.counted) {
                struct timeval silence = {0, (suseconds_t)(SILENCE * 1e6)};
                setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof silence);
            }
            note(&tally, ((struct datagram *)block)->number);
        }
        head = (struct datagram){ASK, 0, tally.end, tally.counted, tally.last - tally.first};
    }
    printf("{\"delivered\": %llu, \"sent\": %llu, \"seconds\": %.6f}\n", (unsigned long long)head.counted,
           (unsigned long long)head.number, head.seconds);
}

static void hold(const char *host, int port, int count) {
    int *flows = calloc((size_t)count, sizeof *flows);
    allow_descriptors();
    open_flows(host, port, count, ECHO, flows);
    double deadline = now() + PATIENCE;
    for (int i = 0; i < count; i++) {
        char byte;
        while (recv(flows[i], &byte, 1, 0) != 1) {
            if (now() > deadline) errno = ETIMEDOUT;
            if (errno != EAGAIN) fail("a connection's echo");
            usleep(1000);
        }
    }
    begin();
    pause();
}

int main(int count, char **arguments) {
    static const char usage[] = "usage: load serve|stream|rr|crr|udp|hold HOST PORT ...; see load.c\n";
    signal(SIGPIPE, SIG_IGN);
    memset(block, 'x', sizeof block);
    const char *verb = count > 3 ? arguments[1] : "", *host = arguments[2];
    int port = count > 3 ? atoi(arguments[3]) : 0;
    double seconds = count > 4 ? atof(arguments[4]) : 0;
    int number = count > 5 ? atoi(arguments[5]) : 0;
    const char *last = arguments[count - 1];
    if (!strcmp(verb, "serve")) allow_descriptors(), serve(host, port);
    else if (!strcmp(verb, "stream") && count == 7) stream(host, port, seconds, number, !strcmp(last, "up"));
    else if (!strcmp(verb, "rr") && count == 6)
        ping_pong(host, port, seconds, strcmp(last, "udp") ? SOCK_STREAM : SOCK_DGRAM);
    else if (!strcmp(verb, "crr") && count == 6) connections_per_second(host, port, seconds, number);
    else if (!strcmp(verb, "udp") && count == 7) datagrams(host, port, seconds, (uint32_t)number, !strcmp(last, "up"));
    else if (!strcmp(verb, "hold") && count == 5) hold(host, port, (int)seconds);
    else return fputs(usage, stderr), 2;
    return 0;
}
