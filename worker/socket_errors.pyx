# cython: language_level=3, boundscheck=True, wraparound=False, autotestdict=False
"""What the network said about datagrams of a host socket: Linux's socket error queue (ip(7), IP_RECVERR).

Where there is no such queue, an unconnected socket hears nothing of errors, and the guest neither.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from worker.hostio cimport from_sockaddr, sockaddr_in

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <netinet/in.h>
    #ifdef __linux__
    #include <linux/errqueue.h>
    static void moorage_errors_enable(int fd) {
        int on = 1;
        setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on);
    }
    /* 1: an ICMP error was read; 0: the queue is empty; 2: something else was read */
    static int moorage_errors_next(int fd, struct sockaddr_in *to, struct sockaddr_in *by, uint8_t *kind, uint8_t *code,
                                   uint32_t *info) {
        char control[512], data[64];
        struct iovec piece = {data, sizeof data};
        struct msghdr m;
        memset(&m, 0, sizeof m);
        memset(to, 0, sizeof *to);
        memset(by, 0, sizeof *by);
        m.msg_name = to;
        m.msg_namelen = sizeof *to;
        m.msg_iov = &piece;
        m.msg_iovlen = 1;
        m.msg_control = control;
        m.msg_controllen = sizeof control;
        if (recvmsg(fd, &m, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            return 0;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
            if (c->cmsg_level != IPPROTO_IP || c->cmsg_type != IP_RECVERR ||
                c->cmsg_len < CMSG_LEN(sizeof(struct sock_extended_err)))
                continue;
            struct sock_extended_err e;
            memcpy(&e, CMSG_DATA(c), sizeof e);
            if (e.ee_origin != SO_EE_ORIGIN_ICMP)
                continue;
            *kind = e.ee_type;
            *code = e.ee_code;
            *info = e.ee_info;
            if (c->cmsg_len >= CMSG_LEN(sizeof e + sizeof *by))
                memcpy(by, (char *)CMSG_DATA(c) + sizeof e, sizeof *by);
            return 1;
        }
        return 2;
    }
    #else
    static void moorage_errors_enable(int fd) { (void)fd; }
    static int moorage_errors_next(int fd, struct sockaddr_in *to, struct sockaddr_in *by, uint8_t *kind, uint8_t *code,
                                   uint32_t *info) { return 0; }
    #endif
    """
    void moorage_errors_enable(int fd) nogil
    int moorage_errors_next(
        int fd, sockaddr_in* to, sockaddr_in* by, uint8_t* kind, uint8_t* code, uint32_t* info
    ) nogil


cdef void errors_enable(int fd) noexcept nogil:
    moorage_errors_enable(fd)


cdef bint errors_next(int fd, HostError* out) noexcept nogil:
    """The oldest error that an ICMP message told of; False: no more."""
    cdef sockaddr_in to
    cdef sockaddr_in by
    cdef uint32_t info = 0
    cdef uint16_t port
    cdef int found = 2
    cdef int _
    for _ in range(64):
        found = moorage_errors_next(fd, &to, &by, &out.kind, &out.code, &info)
        if found != 2:
            break
    if found != 1:
        return False
    from_sockaddr(&to, &out.destination, &out.port)
    from_sockaddr(&by, &out.offender, &port)
    out.has_offender = by.sin_addr.s_addr != 0
    out.mtu = info if out.kind == 3 and out.code == 4 else 0
    return True
