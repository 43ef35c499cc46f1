"""The weights of a model on disk: which files they are, and what tells them from others.

Reads little of them, and knows nothing of what they mean.
"""

import hashlib
import json
from pathlib import Path

from distillcache.errors import DistillcacheError

__all__ = ["weight_files", "weights_fingerprint"]

MIB = 1 << 20


def weights_fingerprint(
    folder: Path, gguf_file: str | None = None, *, error: type[DistillcacheError] = DistillcacheError
) -> str:
    """sha256, in hex, that tells one model's weights from another's, in seconds for any size.

    Over, for every weight file by rising name: name, size, first and last MiB, 4 KiB at each MiB between;
    then the bytes of `config.json`.
    Of a GGUF file just that file.
    Weight files are those an index names, else `model.safetensors`, else their `pytorch_model` forerunners.

    Detects another model, another training run (every weight moves), another dtype or quantisation, another
    config, and a file that is cut, renamed or altered at its ends.
    Does not detect an edit of a few weights that spares the 0.4 % of bytes that are read, nor forgery.
    Raises `error` if there is no weight file.
    """
    digest = hashlib.sha256()
    files = [folder / gguf_file] if gguf_file is not None else weight_files(folder, error=error)
    for file in sorted(files, key=lambda each: each.name):
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(MIB))
            for start in range(MIB, size - MIB, MIB):
                stream.seek(start)
                digest.update(stream.read(4096))
            if size > MIB:
                stream.seek(max(MIB, size - MIB))
                digest.update(stream.read(MIB))
    if gguf_file is None:
        digest.update((folder / "config.json").read_bytes())
    return digest.hexdigest()


def weight_files(folder: Path, *, error: type[DistillcacheError] = DistillcacheError) -> list[Path]:
    """Those an index names, else the one there is. Raises `error` if some or all are missing."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        if index.is_file():
            try:
                names = set(json.loads(index.read_bytes())["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError):
                raise error(f"{index}: is not an index of weights; fetch the model again") from None
            lacking = sorted(name for name in names if not (folder / name).is_file())
            if lacking:
                raise error(f"{folder}: weights are missing; found no {lacking[0]}; fetch the model again")
            return [folder / name for name in names]
        if (folder / f"{stem}.{suffix}").is_file():
            return [folder / f"{stem}.{suffix}"]
    raise error(f"{folder}: no weights; found neither model.safetensors nor an index of several")
