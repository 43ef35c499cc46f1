"""transformers without its own printing: what it has to say is for us to pass on.

Knows nothing of what is run meanwhile.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

__all__ = ["quiet_loading", "quiet_transformers"]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no log lines of transformers inside, all as it was after."""
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    level = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        (enable_progress_bars if hub_bars else disable_progress_bars)()


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """The same while a model is loaded, without warnings and without the bar of a GGUF file being read.

    That bar is tqdm's own, which asks nobody, so nothing goes to stderr; errors are raised all the same.
    """
    with quiet_transformers(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
