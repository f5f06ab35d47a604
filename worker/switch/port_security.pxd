"""What a VM may send to others: only what it says as itself."""

from libc.stdint cimport uint8_t

from worker.core cimport Core, Identity

cdef enum Speech:
    SPEECH_FINE = 0
    SPEECH_LOCAL = 1  # for the gateway alone: nothing wrong with it
    SPEECH_UNCONFIRMED = 2  # the supervisor has not said yet who this is
    SPEECH_FORGED_MAC = 3
    SPEECH_FORGED_IP = 4
    SPEECH_FORGED_ROUTER = 5


cdef int speech_of(const Core* core, const Identity* who, const uint8_t* frame, size_t length) noexcept nogil
