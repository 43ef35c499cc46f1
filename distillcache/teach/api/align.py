"""What a server said of a text, as tokens of the cache's tokenizer and rows; exact, or not at all.

A row keeps the ids that can be named, most likely first, with the log-probabilities that the server gave.
`tail_mass` is 1 minus their sum, floored at 0: it holds all that the server did not name, and alternatives
that cannot be named exactly.
`entropy` is that of the kept ids and of the tail as if it were one id: a lower bound of the
teacher's, which is at most `tail_mass` times ln V above it.
Rows are ragged: fewer ids are kept where fewer are known, none where nothing is.
Knows nothing of requests or folders.

L tokens, N rows.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distillcache.corpus.encoder import Encoder
from distillcache.generate.logprobs import Entry, Position, Said
from distillcache.teach.api.names import TokenNames
from distillcache_shards.rows import TOPK, Rows

__all__ = ["OF_TOKENIZERS", "Aligned", "Misaligned", "align_answer", "align_ids", "align_text"]

UNKNOWN_TOKEN, OTHER_TOKENS = "a token that the tokenizer does not have", "other tokens than the tokenizer's"
OF_TOKENIZERS = (UNKNOWN_TOKEN, OTHER_TOKENS)
NO_LOGPROBS = "numbers that are no log-probabilities"
# Servers round, and sum in half precision; a probability, or one beside another, is far above.
MOST_LOGPROB, MOST_MASS = 1e-3, 1.02
# Tokens in which the last word of an answer that was cut off may be cut otherwise than a whole one.
LOOSE_END = 8


@dataclass(frozen=True, eq=False)
class Aligned:
    """A sequence and its rows, and what is odd about them."""

    tokens: NDArray[np.uint32]  # [L]
    supervised: NDArray[np.bool_]  # [L], N of them True
    rows: Rows
    unnamed: int  # alternatives that were put in the tail, since they cannot be named
    others: int  # alternatives in all
    most: int  # alternatives of the position that has most
    ended: bool  # an answer's end of turn has a row


class Misaligned(Exception):
    """A text whose tokens cannot be told exactly; `reason` is one of few, `detail` is its own."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def align_answer(
    said: Said, prompt_ids: NDArray[np.uint32], names: TokenNames, encoder: Encoder, k: int, max_length: int
) -> Aligned:
    """A prompt and the answer to it, whose tokens are all supervised.

    Exact means: every token of the answer is named, by its id or by bytes that one token alone has, and
    together they spell the answer.
    Where a name is bytes and no id, the tokenizer must also cut the answer as the server did, since another
    tokenizer may have the same pieces by chance.
    An entry for the end of the turn that has no name is left out.
    Raises Misaligned.
    """
    positions = list(said.positions)
    if positions and said.finish == "stop" and _is_nameless(positions[-1].own):
        positions.pop()
    if not positions:
        raise Misaligned("an empty answer", f"it ended by `{said.finish}`")
    ids: list[int] = []
    by_bytes = False
    for place, each in enumerate(positions):
        number = None if each.own is None else names.id_of(each.own)
        if number is None:
            raise Misaligned(UNKNOWN_TOKEN, f"{_shown(each.own)} at token {place} of the answer")
        by_bytes |= each.own is not None and each.own.id is None
        ids.append(number)
    _require_spelling(ids, said.text, names)
    if by_bytes:
        _require_same_cut(ids, prompt_ids, names, encoder, said.finish == "length")
    tokens = np.concatenate([prompt_ids, np.array(ids, np.uint32)])[:max_length]
    supervised = np.zeros(len(tokens), np.bool_)
    supervised[len(prompt_ids) :] = True
    ended = said.finish != "stop" or ids[-1] in names.special
    return _aligned(tokens, supervised, positions[: len(tokens) - len(prompt_ids)], names, k, ended)


def align_ids(
    said: Said, tokens: NDArray[np.uint32], supervised: NDArray[np.bool_], names: TokenNames, k: int
) -> Aligned:
    """A text that was sent as token ids: the server must speak of as many, and contradict none of them.

    Raises Misaligned.
    """
    positions = said.positions[: len(tokens)]
    if len(positions) < len(tokens):
        raise Misaligned(OTHER_TOKENS, f"{len(positions)} scored of {len(tokens)} sent")
    for place in range(1, len(tokens)):
        number, each = int(tokens[place]), positions[place]
        own = each.own or next((entry for entry in each.top if entry.id == number), None)
        if own is None or not names.agrees(own, number):
            theirs = _shown(own) if own is not None else "others"
            raise Misaligned(OTHER_TOKENS, f"{theirs} for {names.names.get(number)!r}, token {place}")
    _require_echo(tokens.tolist(), said.text, names)
    return _aligned(tokens, supervised, _targets(positions, supervised), names, k, True)


def align_text(
    said: Said, tokens: NDArray[np.uint32], supervised: NDArray[np.bool_], names: TokenNames, k: int
) -> Aligned:
    """A text that was sent as text: the server's tokens must be these, each named by its bytes.

    Raises Misaligned.
    """
    if len(said.positions) < len(tokens):
        raise Misaligned(OTHER_TOKENS, f"{len(said.positions)} tokens where the tokenizer has {len(tokens)}")
    for place in range(len(tokens)):
        own, number = said.positions[place].own, int(tokens[place])
        if own is None or names.id_of(own) != number:
            raise Misaligned(OTHER_TOKENS, f"{_shown(own)} for {names.names.get(number)!r}, token {place}")
    return _aligned(tokens, supervised, _targets(said.positions, supervised), names, k, True)


def _targets(positions: Sequence[Position], supervised: NDArray[np.bool_]) -> list[Position]:
    return [positions[place] for place in np.flatnonzero(supervised).tolist()]


def _aligned(
    tokens: NDArray[np.uint32],
    supervised: NDArray[np.bool_],
    targets: Sequence[Position],
    names: TokenNames,
    k: int,
    ended: bool,
) -> Aligned:
    counts, tails, entropies = [0], [], []
    ids: list[int] = []
    logprobs: list[float] = []
    unnamed = others = 0
    for row, each in enumerate(targets):
        kept = _kept(each.top, names)
        known = sum(math.isfinite(entry.logprob) for entry in each.top)
        others += known
        unnamed += known - len(kept)
        kept = kept[:k]
        masses = [math.exp(logprob) for logprob, _ in kept]
        if any(logprob > MOST_LOGPROB for logprob, _ in kept) or sum(masses) > MOST_MASS:
            raise Misaligned(NO_LOGPROBS, f"those of row {row} sum to {sum(masses):.3g}")
        tail = max(0.0, 1.0 - math.fsum(masses))
        ids += [number for _, number in kept]
        logprobs += [min(0.0, logprob) for logprob, _ in kept]
        counts.append(len(ids))
        tails.append(tail)
        nats = -sum(mass * logprob for mass, (logprob, _) in zip(masses, kept, strict=True))
        entropies.append(max(0.0, nats - (tail * math.log(tail) if tail > 0 else 0.0)))
    num_rows = len(targets)
    rows = Rows(
        TOPK,
        np.array(counts, np.int64),
        np.array(ids, np.int32),
        np.array(logprobs, np.float32),
        np.array(tails, np.float32),
        np.zeros(num_rows + 1, np.int64),
        np.zeros(0, np.int32),
        np.array(entropies, np.float32),
    )
    most = max((len(each.top) for each in targets), default=0)
    return Aligned(tokens, supervised, rows, unnamed, others, most, ended)


def _kept(top: Sequence[Entry], names: TokenNames) -> list[tuple[float, int]]:
    """Log-probability and id of each alternative that can be named, most likely first, ties by rising id."""
    found: dict[int, float] = {}
    twice: set[int] = set()
    for each in top:
        number = names.id_of(each)
        if number is None or not math.isfinite(each.logprob):
            continue
        if number in found:
            # Two tokens of the server's under one name: which is which cannot be told.
            twice.add(number)
        found[number] = each.logprob
    kept = [(logprob, number) for number, logprob in found.items() if number not in twice]
    return sorted(kept, key=lambda each: (-each[0], each[1]))


def _require_spelling(ids: Sequence[int], text: str, names: TokenNames) -> None:
    """Raises Misaligned unless the tokens spell the text; special ones are not in it."""
    spelled = [names.bytes_of.get(number) for number in ids if number not in names.special]
    if any(each is None for each in spelled):
        return  # a tokenizer whose spelling is not known; its ids were named
    ours = b"".join(each or b"" for each in spelled).decode("utf-8", "replace")
    # A cut answer may end in half a character, which servers hold back; SentencePiece drops a first blank.
    ours, theirs = ours.rstrip("\ufffd"), text.rstrip("\ufffd")
    if theirs not in (ours, ours.removeprefix(" ")):
        place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
        part = slice(place, place + 12)
        raise Misaligned(OTHER_TOKENS, f"{ours[part]!r} for {theirs[part]!r}, character {place}")


def _require_echo(ids: Sequence[int], echoed: str, names: TokenNames) -> None:
    """Raises Misaligned if a server that sends the text back has read others out of the ids than these."""
    spelled = [names.bytes_of.get(number) for number in ids if number not in names.special]
    if not echoed or any(each is None for each in spelled):
        return
    # Some servers send the names of special tokens back, and some do not.
    special = re.compile("|".join(re.escape(names.names[number]) for number in names.special) or "(?!)")
    ours = special.sub("", b"".join(each or b"" for each in spelled).decode("utf-8", "replace"))
    theirs = special.sub("", echoed)
    ours = ours.rstrip("\ufffd")
    if not theirs.startswith((ours, ours.removeprefix(" "))):
        place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
        part = slice(place, place + 12)
        raise Misaligned(OTHER_TOKENS, f"{theirs[part]!r} for {ours[part]!r}, character {place}")


def _require_same_cut(
    ids: Sequence[int], prompt_ids: NDArray[np.uint32], names: TokenNames, encoder: Encoder, is_cut: bool
) -> None:
    """Raises Misaligned unless the tokenizer cuts the answer into these tokens, alone or after its prompt."""
    answer = [number for number in ids if number not in names.special]
    before = _text(prompt_ids.tolist(), names) or ""
    text = _text(answer, names)
    while text is None and is_cut and len(answer) > max(0, len(ids) - LOOSE_END):
        answer.pop()
        text = _text(answer, names)
    if text is None:
        raise Misaligned(OTHER_TOKENS, "bytes that are no text")
    alone, after = (each.ids.tolist() for each in encoder.encode([text, before + text]))
    prompt = prompt_ids.tolist()
    cuts = [alone, after[len(prompt) :]] if after[: len(prompt)] == prompt else [alone]
    # Of an answer that was cut off, the last word is cut as what it would have become.
    firm = max(0, len(answer) - LOOSE_END) if is_cut else len(answer)
    if any(cut[:firm] == answer[:firm] and (is_cut or len(cut) == firm) for cut in cuts):
        return
    place = next((n for n, (a, b) in enumerate(zip(alone, answer, strict=False)) if a != b), len(alone))
    shown = repr(names.names[answer[place]]) if place < len(answer) else "an end"
    raise Misaligned(OTHER_TOKENS, f"{shown} at token {place} of the answer, which it cuts otherwise")


def _text(ids: Sequence[int], names: TokenNames) -> str | None:
    try:
        return b"".join(names.bytes_of.get(number, b"") for number in ids).decode()
    except UnicodeDecodeError:
        return None


def _is_nameless(own: Entry | None) -> bool:
    return own is None or (own.id is None and not own.spelled and not own.text)


def _shown(own: Entry | None) -> str:
    if own is None:
        return "nothing"
    if own.text is None and own.id is not None:
        return f"token_id:{own.id}"
    return repr(own.text if own.text is not None else own.spelled)[:40]
