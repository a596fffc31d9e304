"""Deliberate slow-downs, to prove that the gate sees them. Nothing in any product knows of one.

A program's dearer twin takes turns with the plain one, under its name and `-slowed`. It is dearer in one of three ways:

CPU           The process gets a seccomp filter that allows everything, after counting to N first. Each of its system
              calls then costs a steady bit more of its own CPU time, as dearer kernel work or a wasteful step of our
              own would.
system calls  Claviger is told by its own setting to drive its sockets by epoll, as it would if it lost io_uring unseen.
memory        So many of the idle connections have asked for an answer that they do not read. Claviger must hold the
              buffers of those, as it would if it forgot to give them back.
"""

import ctypes
from dataclasses import dataclass

# Of one filter, by the kernel (BPF_MAXINSNS), less the first and the last; and of all filters of a process.
INSTRUCTIONS_PER_FILTER_MAX = 4_000
INSTRUCTIONS_MAX = 28_000

_SUFFIX = "-slowed"

_LOAD_WORD, _ADD, _RETURN = 0x20, 0x04, 0x06
_ALLOW = 0x7FFF0000
# Of `struct seccomp_data`: the low half of the first argument. A filter that looks at an argument is run every time;
# the kernel remembers the answer of one that does not.
_FIRST_ARGUMENT = 16
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2


@dataclass(frozen=True)
class Slowdown:
    """What makes a twin dearer; any one of these."""

    instructions: int = 0  # counted through at each of its system calls
    words: tuple = ()  # added to its command line
    unread: int = 0  # of its idle connections, those that do not read an answer


NONE = Slowdown()


def twin(name):
    """What the dearer one of two is called."""
    return name + _SUFFIX


def plain(name):
    """The program's own name."""
    return name.removesuffix(_SUFFIX)


def of(slow, name):
    """The slow-down of what goes by this name, of a run's slow-downs: only twins have one."""
    return slow.get(plain(name), NONE) if plain(name) != name else NONE


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction))]


def program(count):
    """Load, count, allow."""
    words = [(_LOAD_WORD, _FIRST_ARGUMENT), *[(_ADD, 1)] * count, (_RETURN, _ALLOW)]
    return [_Instruction(code, 0, 0, k) for code, k in words]


def parts(instructions):
    """How the instructions are shared out among filters: each system call runs them all."""
    if not 0 < instructions <= INSTRUCTIONS_MAX:
        raise ValueError(f"a slow-down of {instructions} instructions; 1 to {INSTRUCTIONS_MAX} are possible")
    whole, rest = divmod(instructions, INSTRUCTIONS_PER_FILTER_MAX)
    return [INSTRUCTIONS_PER_FILTER_MAX] * whole + ([rest] if rest else [])


def dearer_system_calls(instructions):
    """A function to call in the child, before it becomes the program: each of its system calls costs more."""
    libc = ctypes.CDLL(None, use_errno=True)
    programs = []
    for count in parts(instructions):
        words = program(count)
        programs.append((_Instruction * len(words))(*words))

    def enter():
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
        for words in programs:
            if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Program(len(words), words)), 0, 0):
                raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP): are filters forbidden here?")

    return enter
