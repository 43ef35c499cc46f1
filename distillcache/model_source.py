"""A causal model of a folder, the hub or a GGUF file: who it is, and the model itself, whole or refused.

What can be told wrong is refused before anything is loaded; what the libraries beneath say, in one line.
Knows nothing of what is done with the model, and nothing of caches.
"""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.hub import cached_file, extract_commit_hash

from distillcache.errors import DistillcacheError
from distillcache.quiet import quiet_loading
from distillcache.tokenizer import load_tokenizer
from distillcache.weights import weight_files, weights_fingerprint

__all__ = ["ModelSource"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, as somebody wrote it; `error` is what it is refused with."""

    text: str
    folder: Path | None  # None: of the hub
    gguf_file: str | None
    revision: str | None
    error: type[DistillcacheError]

    @classmethod
    def of(
        cls,
        text: str,
        error: type[DistillcacheError],
        *,
        gguf_file: str | None = None,
        revision: str | None = None,
    ) -> "ModelSource":
        """Of a folder, a hub name, or a GGUF file in one of these; `text` may be that file itself.

        Raises `error` for a folder or a file in it that is not there.
        """
        where = Path(text).expanduser()
        if gguf_file is None and where.suffix == ".gguf" and where.is_file():
            where, gguf_file = where.parent, where.name
        found = cls(text, where if where.is_dir() else None, gguf_file, revision, error)
        found._check(where)
        return found

    @property
    def name(self) -> str:
        """A name that says nothing of the machine."""
        if self.folder is None:
            return self.shown
        return self.gguf_file or self.folder.resolve().name

    def tokenizer(self) -> Any:
        """Its tokenizer, without the weights. Raises ConfigError if there is none."""
        with quiet_loading():
            return load_tokenizer(self._place, gguf_file=self.gguf_file, revision=self.revision)

    def identity(self) -> dict[str, Any]:
        """What tells its weights from others, before they are loaded: their fingerprint, or the hub's commit.

        Raises `error` if there are none.
        """
        if self.folder is not None:
            return {"weights": self.sha256()}
        return {"model": self.text, "revision": self._commit()}

    def pinned(self) -> "ModelSource":
        """The same at the commit that the hub has now, so that all that is loaded of it is of one."""
        return self if self.folder is not None else dataclasses.replace(self, revision=self._commit())

    def sha256(self) -> str:
        """The fingerprint of the weights, see `weights_fingerprint`; of the hub's once they were loaded."""
        self._check_weights()
        folder = self.folder
        if folder is None:
            file = self.gguf_file or "config.json"
            folder = Path(self._fetched(file)).parents[file.count("/")]
        return weights_fingerprint(folder, self.gguf_file, error=self.error)

    def load(
        self, dtype: torch.dtype, *, device_map: Any = None, trust_remote_code: bool = False
    ) -> PreTrainedModel:
        """The model in evaluation mode, on the CPU unless `device_map` says where.

        Raises `error` for what cannot be loaded, and for weights that are not there.
        """
        options: dict[str, Any] = {"revision": self.revision, "trust_remote_code": trust_remote_code}
        if self.gguf_file is not None:
            # Without this the weights stay in GGUF blocks, slower to multiply.
            options |= {"gguf_file": self.gguf_file, "quantization_config": GgufConfig(dequantize=True)}
        self._check_weights()
        with quiet_loading(), self._one_line():
            if device_map is not None:
                options["device_map"] = device_map
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self._place, dtype=dtype, output_loading_info=True, **options
            )
        model: PreTrainedModel = loaded[0]
        missing = sorted(loaded[1]["missing_keys"])
        if missing:
            raise self.error(
                f"{self.shown}: weights are missing and would be random; found none for {missing[0]} "
                f"and {len(missing) - 1} others; name a complete model"
            )
        return model.eval()  # type: ignore[no-any-return, no-untyped-call]

    def require_causal(self, *, trust_remote_code: bool = False) -> None:
        """Raises `error` for a model whose config cannot be loaded or tells of no causal language model."""
        self._check_weights()
        if self.gguf_file is not None:
            return
        with quiet_loading(), self._one_line():
            config: Any = AutoConfig.from_pretrained(
                self._place, revision=self.revision, trust_remote_code=trust_remote_code
            )
        auto_map = getattr(config, "auto_map", None) or {}
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in auto_map:
            found = ", ".join(getattr(config, "architectures", None) or [config.model_type])
            raise self.error(
                f"{self.shown}: not a causal language model; found {found}; "
                "name one that predicts the next token"
            )

    @property
    def _place(self) -> str:
        return self.text if self.folder is None else str(self.folder)

    @property
    def shown(self) -> str:
        """As it was written, for a message."""
        if self.gguf_file is None or self.text.endswith(".gguf"):
            return self.text
        return f"{self.text}/{self.gguf_file}"

    def _check(self, where: Path) -> None:
        """Refuse what can be told wrong before anything is loaded."""
        text, folder = self.text, self.folder
        if self.gguf_file is not None and importlib.util.find_spec("gguf") is None:
            raise self.error(
                f"{text}: a GGUF file needs the package gguf; found none; pip install 'distillcache[demo]'"
            )
        if folder is None:
            if where.is_file():
                raise self.error(f"{text}: is a file; name a model folder, a hub name or a .gguf file")
            if text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text:
                raise self.error(f"{text}: no such folder; name a model folder or a hub name")
            return
        if self.gguf_file is not None and not (folder / self.gguf_file).is_file():
            found = _gguf_files(folder) or "no .gguf file"
            raise self.error(f"{text}: no {self.gguf_file} in this folder; found {found}")

    def _check_weights(self) -> None:
        """Refuse a folder without a whole model, before anything is loaded."""
        if self.folder is None or self.gguf_file is not None:
            return
        if not (self.folder / "config.json").is_file():
            found = _gguf_files(self.folder)
            if found:
                first = found.partition(", ")[0]
                raise self.error(f"{self.text}: no config.json; found {found}; name {self.text}/{first}")
            raise self.error(f"{self.text}: no config.json; name the folder of a transformers model")
        weight_files(self.folder, error=self.error)

    def _commit(self) -> str | None:
        return extract_commit_hash(self._fetched("config.json"), None)

    def _fetched(self, file: str) -> str:
        """Where the hub's cache holds a file: as it is there now or, without a network, as it was."""
        with quiet_loading(), self._one_line():
            found: str | None = cached_file(self.text, file, revision=self.revision)
        assert found is not None
        return found

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        """Loading errors of the libraries beneath, which can be pages long, as one line of ours."""
        try:
            yield
        except (DistillcacheError, torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # each library, and each model's own code, fails in its own way
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            first = lines[0] if lines else type(error).__name__
            raise self.error(
                f"{self.shown}: cannot be loaded; found {first.rstrip('.')[:240]}; {_remedy(error)}"
            ) from error


def _gguf_files(folder: Path) -> str:
    return ", ".join(sorted(each.name for each in folder.glob("*.gguf")))


def _remedy(error: BaseException) -> str:
    """What to do about an error of the libraries beneath."""
    causes: list[BaseException] = []
    each: BaseException | None = error
    while each is not None:
        causes.append(each)
        each = each.__cause__ or each.__context__
    if any(isinstance(cause, hub_errors.GatedRepoError) for cause in causes):
        return "ask for access on its page, then run `hf auth login`"
    if any(isinstance(cause, hub_errors.RepositoryNotFoundError) for cause in causes):
        return "check the spelling, or run `hf auth login` if it is private"
    if any(isinstance(cause, hub_errors.LocalEntryNotFoundError | ConnectionError) for cause in causes):
        return "no network? name a folder on this machine"
    if "trust_remote_code" in str(error):
        return "it has code of its own: read that, then pass --trust-remote-code to `teach`"
    return "name a model folder, a hub name or a .gguf file"
