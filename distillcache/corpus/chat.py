"""A chat as one text, and the parts of it that the assistant said.

The text is the chat template's own rendering of the whole chat.
Where the assistant's turns stand in it is shown by further renderings, never guessed.
A chat in which that cannot be shown is refused.
Knows nothing of tokens but the names of special ones.

A turn is from the end of the generation prompt to the end of its end-of-turn token: what a model has to write
itself when it generates.
A newline after that token is the template's.

1.  The template marks it with `{% generation %}`: what it marks, and the end-of-turn token right after.
2.  Else it starts where the rendering of all earlier messages with a generation prompt ends.
    That rendering must be the beginning of the whole one.
3.  It ends with the rendering of all messages up to its own, if that is a beginning of the whole one.
    Else the message is rendered with a stand-in for its content, which shows what stands before and after.
    What stands between must be the content, or the content without blanks around it.
    (Qwen 3 gives the last turn an empty thinking part that the same turn lacks in a longer chat; Phi 3 puts
    another token after the last turn.)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

from distillcache.corpus.encoder import BREAK, STAND_IN, Encoder, alias, refuse_private
from distillcache.corpus.records import Message
from distillcache.errors import CorpusError

__all__ = ["ChatTemplate", "Rendered"]

# Templates that ask for today would give another corpus tomorrow; Llama 3 falls back on this date.
TODAY = date(2024, 7, 26)
TODAY_CALL = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A chat as text; characters [start, end) of each span are what the assistant said."""

    text: str
    spans: tuple[tuple[int, int], ...]
    aliased: bool  # special tokens stand in `text` under their aliases, and their names are plain text


class ChatTemplate:
    """The chat template of a tokenizer, with the date held still.

    Raises CorpusError if the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, encoder: Encoder, *, special_as_text: bool) -> None:
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise CorpusError(f"chat template: {_first_line(error)}") from None
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.special_as_text = special_as_text
        self.template = TODAY_CALL.sub(lambda call: repr(TODAY.strftime(call[2])), template)
        self.marks_generation = GENERATION.search(template) is not None

    def render(self, messages: Sequence[Message], where: str, *, spans: bool = True) -> Rendered:
        """The text of a chat and its spans, in order; none of them if `spans` is False.

        Raises CorpusError that names `where`.
        """
        aliased = self.special_as_text and any(
            self.encoder.pattern.search(text) for each in messages for text in (each.role, each.content)
        )
        if aliased or not self.marks_generation:
            for each in messages:
                refuse_private(each.role + each.content, where)
        if aliased:
            messages = [
                Message(role=self._break(each.role), content=self._break(each.content)) for each in messages
            ]
        if self.marks_generation and spans:
            text, turns = self._marked(messages, where)
        else:
            text = self._apply(messages, where)
            said = (
                [number for number, each in enumerate(messages) if each.role == "assistant"] if spans else []
            )
            turns = [self._turn(text, messages, number, where) for number in said]
        for (_, end), (start, _) in pairwise(turns):
            if start < end:
                raise CorpusError(
                    f"{where}: two turns of the assistant overlap in the chat template's rendering"
                )
        return self._with_aliases(text, turns) if aliased else Rendered(text, tuple(turns), aliased=False)

    def _turn(self, text: str, messages: Sequence[Message], number: int, where: str) -> tuple[int, int]:
        """Where message `number` stands in the rendering of the whole chat."""
        earlier, through = messages[:number], messages[: number + 1]
        around: tuple[int, int] | None = None
        prompt = self._apply(earlier, where, generation=True) if earlier else ""  # nothing has no rendering
        if not text.startswith(prompt):
            raise self._unsteady(where, number)
        start = len(prompt)
        if not earlier or prompt == self._apply(earlier, where):
            # No generation prompt: a header, if there is one, is the template's too.
            # Blanks are left to the turn, since many tokenizers join them with its first word.
            around = self._content(text, messages, number, where)
            header = text[start : around[0]]
            start = around[0] if header.strip() else start
        upto = text if len(through) == len(messages) else self._apply(through, where)
        if text.startswith(upto):
            said = text[start : len(upto)].rstrip()
            return start, start + len(said)
        around = around or self._content(text, messages, number, where)
        if around[0] < start:
            raise self._unsteady(where, number)
        return start, self._after_end_of_turn(text, around[1])

    def _content(self, text: str, messages: Sequence[Message], number: int, where: str) -> tuple[int, int]:
        """Where the content of a message stands in the rendering of the whole chat."""
        stand_in = [*messages[:number], Message(messages[number].role, STAND_IN), *messages[number + 1 :]]
        before, found, after = self._apply(stand_in, where).partition(STAND_IN)
        content = messages[number].content
        end = len(text) - len(after)
        if (
            not found
            or STAND_IN in after
            or not (text.startswith(before) and text.endswith(after) and len(before) <= end)
            or text[len(before) : end].strip() != content.strip()
        ):
            raise self._unsteady(where, number)
        return len(before), end

    def _after_end_of_turn(self, text: str, end: int) -> int:
        """`end`, or the end of the special token that stands there, blanks before it allowed."""
        blanks = len(text[end:]) - len(text[end:].lstrip())
        token = self.encoder.pattern.match(text, end + blanks)
        return token.end() if token else end

    def _marked(self, messages: Sequence[Message], where: str) -> tuple[str, list[tuple[int, int]]]:
        """The rendering of a template that marks what the assistant says."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            # Annotated as text; it is texts [chats] and spans [chats][turns] of (start, end), in characters.
            rendered: Any = render_jinja_template(
                conversations=[_plain(messages)],
                chat_template=self.template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except Exception as error:
            raise self._refused(where, error) from None
        text = str(rendered[0][0])
        found = []
        for start, end in rendered[1][0]:
            said = text[start:end].rstrip()
            end = start + len(said)
            if not self._ends_with_special(said):
                end = self._after_end_of_turn(text, end)
            found.append((start, end))
        return text, found

    def _ends_with_special(self, said: str) -> bool:
        return any(said.endswith(name) for name in self.encoder.special)

    def _apply(self, messages: Sequence[Message], where: str, *, generation: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                _plain(messages),
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=generation,
            )
        except Exception as error:  # jinja's, the template's own, or of code the template was not written for
            raise self._refused(where, error) from None
        return str(text)

    def _refused(self, where: str, error: Exception) -> CorpusError:
        return CorpusError(f"{where}: the chat template refuses this chat: {_first_line(error)}")

    def _unsteady(self, where: str, number: int) -> CorpusError:
        return CorpusError(
            f"{where}: the chat template changes messages[{number}]: what the assistant said cannot be told; "
            "use a template with {% generation %}, one chat a turn, or --supervise all"
        )

    def _break(self, text: str) -> str:
        """The text with a mark inside the name of each special token."""
        return self.encoder.pattern.sub(lambda name: name[0][0] + BREAK + name[0][1:], text)

    def _with_aliases(self, text: str, spans: list[tuple[int, int]]) -> Rendered:
        """The text with the template's own special tokens as aliases, and the others whole again."""
        cuts = [0, *(cut for span in spans for cut in span), len(text)]
        pieces = [self._alias_piece(text[a:b]) for a, b in pairwise(cuts)]
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
        return Rendered("".join(pieces), tuple(zip(ends[1:-1:2], ends[2:-1:2], strict=True)), aliased=True)

    def _alias_piece(self, text: str) -> str:
        named = self.encoder.pattern.sub(lambda name: alias(self.encoder.special[name[0]]), text)
        return named.replace(BREAK, "")


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": each.role, "content": each.content} for each in messages]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
