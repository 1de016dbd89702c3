"""Memory that stays with the process."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep() -> None:
    """Asks the allocator to give nothing back to the system until the process ends, where it is glibc's.

    A step of training or of an attack frees and takes the same large tensors again; each time the system would have to
    clear their pages.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
