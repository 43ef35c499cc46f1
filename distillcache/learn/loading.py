"""A causal model of a folder, the hub or a GGUF file: who it is, and the model itself, whole or refused.

Its tokenizer is the cache's, or it is refused before the weights are read.
Knows nothing of what is done with the model.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.hub import cached_file, extract_commit_hash

from distillcache.errors import DistillcacheError
from distillcache.quiet import quiet_loading
from distillcache.tokenizer import load_tokenizer, require_same_tokenizer
from distillcache.weights import weights_fingerprint
from distillcache_shards.cache import Cache

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Where a model comes from, as somebody wrote it; `error` is what it is refused with."""

    text: str
    folder: Path | None  # None: of the hub
    gguf_file: str | None
    error: type[DistillcacheError]

    @classmethod
    def of(cls, text: str, error: type[DistillcacheError]) -> "Source":
        """Raises `error` for a folder that is not there or holds no model."""
        where = Path(text).expanduser()
        if where.suffix == ".gguf" and where.is_file():
            if importlib.util.find_spec("gguf") is None:
                raise error(
                    f"{text}: a GGUF file needs the package gguf; found none; "
                    "pip install 'distillcache[demo]'"
                )
            return cls(text, where.parent, where.name, error)
        if not where.is_dir() and (text.startswith(("/", ".", "~")) or text.count("/") > 1):
            raise error(f"{text}: no such folder; name a model folder, a hub name or a .toml file")
        if where.is_dir() and not (where / "config.json").is_file():
            raise error(f"{text}: no config.json; name the folder of a transformers model")
        return cls(text, where if where.is_dir() else None, None, error)

    @property
    def name(self) -> str:
        """A name that says nothing of the machine."""
        if self.folder is None:
            return self.text
        return self.gguf_file or self.folder.resolve().name

    def identity(self) -> dict[str, Any]:
        """What tells its weights from others, before they are loaded: their fingerprint, or the hub's commit.

        Raises `error` if there are none.
        """
        if self.folder is not None:
            return {"weights": weights_fingerprint(self.folder, self.gguf_file, error=self.error)}
        return {"model": self.text, "revision": self._commit()}

    def load(self, cache: Cache, dtype: torch.dtype) -> PreTrainedModel:
        """The model, on the CPU, in evaluation mode.

        Raises `error` for what cannot be loaded, MismatchError for a tokenizer that is not the cache's.
        """
        place = self.text if self.folder is None else str(self.folder)
        options: dict[str, Any] = {}
        if self.folder is None:
            options["revision"] = self._commit()
        if self.gguf_file is not None:
            options["gguf_file"] = self.gguf_file
        with quiet_loading(), self._one_line():
            if self.gguf_file is None:
                config = AutoConfig.from_pretrained(place, **options)
                if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
                    raise self.error(
                        f"{self.text}: not a causal language model; found {config.model_type}; "
                        "a student or teacher predicts the next token"
                    )
            # The tokenizer first: it is refused in no time, a model may take minutes to load.
            require_same_tokenizer(load_tokenizer(place, **options), cache)
            if self.gguf_file is not None:
                # Else the weights stay in GGUF blocks, slower to multiply.
                options["quantization_config"] = GgufConfig(dequantize=True)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, output_loading_info=True, **options
            )
        model: PreTrainedModel = loaded[0]
        missing = sorted(loaded[1]["missing_keys"])
        if missing:
            raise self.error(
                f"{self.text}: weights are missing and would be random; found none for {missing[0]} "
                f"and {len(missing) - 1} others; name a complete model"
            )
        return model.eval()  # type: ignore[no-any-return, no-untyped-call]

    def _commit(self) -> str | None:
        """The hub's, of what is there now or, without a network, of what was fetched before."""
        with quiet_loading(), self._one_line():
            file = cached_file(self.text, "config.json")
        return extract_commit_hash(file, None)

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Loading errors of the libraries beneath, which can be pages long, as one line of ours."""
        try:
            yield
        except (DistillcacheError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # each library fails in its own way
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            first = lines[0] if lines else type(error).__name__
            raise self.error(
                f"{self.text}: cannot be loaded; found {first.rstrip('.')[:240]}; "
                "name a model folder, a hub name or a .toml file"
            ) from error
