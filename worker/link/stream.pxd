"""Frames from a stream link, each behind its length."""

from worker.core cimport Core

cdef enum LinkResult:
    LINK_DRAINED = 0
    LINK_MORE = 1
    LINK_EOF = 2
    LINK_BROKEN = 3
    LINK_GARBLED = 4


cdef int link_receive(Core* core, unsigned int* detail) noexcept nogil
