"""Which token a server means: exact, or none."""

import pytest
from tiny_api_teacher import tokenizer_of
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from distillcache.generate.logprobs import Entry
from distillcache.teach.api.names import TokenNames


def entry(*, id: int | None = None, text: str | None = None, spelled: bytes | None = None) -> Entry:
    """An entry of some log-probability."""
    return Entry(-1.0, id, text, spelled)


@pytest.fixture(scope="module")
def of_bytes() -> TokenNames:
    """Those of a byte-level tokenizer with pieces of words."""
    return TokenNames(tokenizer_of(merges=True))


@pytest.fixture(scope="module")
def of_pieces() -> TokenNames:
    """Those of a SentencePiece-like tokenizer: marks for blanks, bytes for what it lacks, one piece twice."""
    names = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "\u2581", "a", "\u2581a", "A", "<0x41>"]
    inner = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[], byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return TokenNames(PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>"))


def test_bytes_name_one_token(of_bytes: TokenNames) -> None:
    """Text is its bytes where no bytes are given, and bytes go before text."""
    number = of_bytes.id_of(entry(text=" the"))
    assert number is not None and of_bytes.bytes_of[number] == b" the"
    assert of_bytes.id_of(entry(spelled=b" the", text="?")) == number
    assert of_bytes.id_of(entry(spelled=b" thx")) is None
    assert of_bytes.id_of(entry(text="")) is None


def test_what_cannot_be_read_names_nothing(of_bytes: TokenNames) -> None:
    """U+FFFD stands for any bytes, and so for none; the bytes themselves are a name."""
    assert of_bytes.id_of(entry(text="\ufffd")) is None
    assert of_bytes.id_of(entry(text="\ufffd", spelled="\ufffd".encode())) is None
    assert of_bytes.id_of(entry(text="\ufffd", spelled=b"\xc3")) is not None


def test_an_id_is_held_to_what_is_said_beside_it(of_bytes: TokenNames) -> None:
    """Bytes must be the token's own; a text beside an id may lack its blank; a special token has any name."""
    number = of_bytes.id_of(entry(text=" the"))
    assert of_bytes.id_of(entry(id=number)) == number
    assert of_bytes.id_of(entry(id=number, text="the")) == number
    assert of_bytes.id_of(entry(id=number, text="\ufffd")) == number
    assert of_bytes.id_of(entry(id=number, spelled=b"the")) is None
    assert of_bytes.id_of(entry(id=number, text="corpus")) is None
    assert of_bytes.id_of(entry(id=2, text="</s>")) == 2
    assert of_bytes.id_of(entry(id=10**6)) is None


def test_two_tokens_of_one_spelling_have_no_name(of_pieces: TokenNames) -> None:
    """A letter and the byte that spells it: their ids tell them apart, their bytes do not."""
    assert of_pieces.id_of(entry(text="A")) is None
    assert of_pieces.id_of(entry(id=9, spelled=b"A")) == 9 and of_pieces.id_of(entry(id=8, text="A")) == 8


def test_marks_of_blanks_are_blanks(of_pieces: TokenNames) -> None:
    """As servers decode them; a byte of a character is that byte."""
    assert of_pieces.id_of(entry(text=" a")) == 7 and of_pieces.id_of(entry(text="a")) == 6
    assert of_pieces.id_of(entry(spelled=b"\xc3")) == 4 and of_pieces.id_of(entry(text="\n")) == 3


def test_other_tokenizers_are_known_by_ids_alone() -> None:
    """Where it is not known how a token is spelled, bytes name nothing."""
    inner = Tokenizer(models.WordLevel(vocab={"<unk>": 0, "word": 1}, unk_token="<unk>"))
    names = TokenNames(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"))
    assert names.id_of(entry(text="word")) is None and names.id_of(entry(id=1, text="word")) == 1
