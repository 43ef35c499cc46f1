"""A teacher of a few thousand random weights, with a tokenizer of bytes, and a text and a student for it."""

import json
import sysconfig
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["tiny_corpus", "tiny_student", "tiny_teacher"]

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
RECORD_CHARACTERS = 120


def tiny_teacher(room: Path) -> Path:
    """Folder of a model with its tokenizer, 256 ids."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({each: number for number, each in enumerate(characters)}, []))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(characters), **SIZES))
    torch.nn.init.normal_(model.lm_head.weight, std=0.7)  # so that it is sure of some ids
    folder = room / "teacher"
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=fast).save_pretrained(folder)
    return folder


def tiny_corpus(room: Path, characters: int, every: int = 1) -> Path:
    """Every so many-th record of so many characters of the standard library's code, in one file."""
    text = ""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if len(text) >= characters:
            break
        text += path.read_text(errors="replace")
    assert len(text) >= characters
    file = room / f"corpus-{characters}-{every}.jsonl"
    starts = range(0, characters, every * RECORD_CHARACTERS)
    with file.open("w") as stream:
        for start in starts:
            stream.write(
                json.dumps({"text": text[start : min(start + RECORD_CHARACTERS, characters)]}) + "\n"
            )
    return file


def tiny_student(room: Path) -> Path:
    """As in configs/student."""
    file = room / "student.toml"
    file.write_text("".join(f"{name} = {value}\n" for name, value in SIZES.items()))
    return file
