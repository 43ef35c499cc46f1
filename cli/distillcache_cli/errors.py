"""Whatever stops a command, as one line on stderr and an exit code.

0 is success, 1 an error that the user can mend, 2 a command line that cannot be read, 130 Ctrl-C.
Anything else is a mistake of ours, and keeps its traceback.
Knows nothing of any one command.
"""

import errno
import sys
from collections.abc import Callable, Iterator

from typer.exceptions import TyperException

from distillcache.errors import DistillcacheError

__all__ = ["INTERRUPTED", "exit_code"]

INTERRUPTED = 130
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a user can mend about a file; the rest, such as EBADF, would be a mistake of ours.
MENDABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG)

# The top-level module that is not there, and the extra that brings it.
EXTRAS = {
    "datasets": "datasets",
    "datasketch": "generate",
    "gguf": "demo",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "tree_sitter": "generate",
    "wandb": "wandb",
}


def exit_code(command: Callable[[], object]) -> int:
    """Run `command`; say on stderr in one line what stopped it, if something did.

    A command that returns a whole number gives the exit code.
    Raises what is not the user's to mend.
    """
    try:
        result = command()
    except KeyboardInterrupt:
        result = INTERRUPTED
    except TyperException as error:
        context = getattr(error, "ctx", None)
        name = context.command_path if context is not None else "distillcache"
        _say(f"{name}: {_line(error.format_message()).rstrip('.')}; see `{name} --help`")
        return error.exit_code
    except DistillcacheError as error:
        _say(_line(str(error)))
        return 1
    except Exception as error:
        line = _of_the_disk(error) or _of_an_extra(error)
        if line is None:
            raise
        _say(line)
        return 1
    if result == INTERRUPTED:
        _say("stopped by Ctrl-C; the same command goes on where it stopped")
    return result if isinstance(result, int) else 0


def _of_the_disk(error: BaseException) -> str | None:
    """The line for a disk that is full or refuses us, or None if it is something else."""
    for each in _chain(error):
        # Writers in Rust and C++ (safetensors, torch) pass on the system's words without its error number.
        full = isinstance(each, OSError) and each.errno in DISK_FULL
        if full or "No space left on device" in str(each):
            where = getattr(each, "filename", None)
            return f"{where or 'disk'}: no space left on the disk; free some, then run the same command again"
        if isinstance(each, OSError) and each.errno in MENDABLE and each.filename is not None:
            return f"{each.filename}: {each.strerror}"
    return None


def _of_an_extra(error: Exception) -> str | None:
    """The line for a package that an extra of ours would have brought, or None if it is something else."""
    if not isinstance(error, ModuleNotFoundError) or error.name not in EXTRAS:
        return None
    extra = EXTRAS[error.name]
    return f"{error.name}: this package is not installed; run `pip install 'distillcache[{extra}]'`"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(text: str) -> str:
    """`text` on one line."""
    return " ".join(text.split())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
