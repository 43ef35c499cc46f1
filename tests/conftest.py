"""What every test stands on: one thread, no network, and the same random examples in every run."""

import os
import signal

# Before anything imports torch or a hub client.
# With more than one thread, tests on a busy machine wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Wide enough that no table of ours wraps, whatever terminal runs the tests.
os.environ["COLUMNS"] = "120"

# As from a terminal: what runs in the background is born deaf to Ctrl-C, and so would be what it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from hypothesis import settings

# A deadline would measure the machine; a random seed would fail on somebody who changed nothing.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")
