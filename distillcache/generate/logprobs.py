"""What a server said of each token of a text: how it names the token, its log-probability, and the likeliest
others.

Kept in the server's own words, so that a paid answer can be read again, by another tokenizer too.
Knows nothing of tokenizers or of the network.
"""

import json
import math
import zlib
from dataclasses import dataclass

__all__ = ["Entry", "Position", "Said"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One token as a server names it: any of its id, its text, its bytes.

    `text` may hold U+FFFD where a token is no whole character.
    """

    logprob: float  # natural log
    id: int | None
    text: str | None
    spelled: bytes | None


@dataclass(frozen=True, slots=True)
class Position:
    """What stands at one place of a text, and what might have; `own` is None where nothing was said."""

    own: Entry | None
    top: tuple[Entry, ...]  # in no order


@dataclass(frozen=True)
class Said:
    """A text, one position a token; `finish` is `stop`, `length`, `refusal` or `other`."""

    text: str
    finish: str
    positions: tuple[Position, ...]

    def pack(self) -> bytes:
        """As compressed JSON."""
        positions = [
            [None if each.own is None else _plain(each.own), [_plain(entry) for entry in each.top]]
            for each in self.positions
        ]
        text = json.dumps([self.text, self.finish, positions], separators=(",", ":"))
        return zlib.compress(text.encode("ascii"), 6)

    @classmethod
    def unpack(cls, data: bytes) -> "Said":
        """`pack` undone. Raises ValueError."""
        try:
            text, finish, positions = json.loads(zlib.decompress(data))
        except zlib.error as error:
            raise ValueError(str(error)) from None
        return cls(
            text,
            finish,
            tuple(
                Position(None if own is None else _entry(own), tuple(_entry(each) for each in top))
                for own, top in positions
            ),
        )


def _plain(entry: Entry) -> list[object]:
    # JSON has no word for minus infinity.
    logprob = entry.logprob if math.isfinite(entry.logprob) else None
    return [logprob, entry.id, entry.text, None if entry.spelled is None else entry.spelled.hex()]


def _entry(plain: list[object]) -> Entry:
    logprob, number, text, spelled = plain
    return Entry(
        logprob if isinstance(logprob, float | int) else -math.inf,
        number if isinstance(number, int) else None,
        text if isinstance(text, str) else None,
        bytes.fromhex(spelled) if isinstance(spelled, str) else None,
    )
