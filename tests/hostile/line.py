"""What an error must be: one line for whoever has to mend the cache."""

import re

__all__ = ["assert_line"]

REMEDY = re.compile(r"; .*\b(run|copy|read it|move it|rename|check|name|delete|free|make|finish|teach)\b")


def assert_line(line: str, where: str, fault: str) -> None:
    """Where, what, and what to do, in one line that can be read."""
    assert line.isprintable(), repr(line)  # no new line, and nothing that a terminal would obey
    assert where in line.split(": ")[0], line
    assert re.search(fault, line), line
    assert REMEDY.search(line), line
    assert len(line) < 600
