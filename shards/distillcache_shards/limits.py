"""What the format has room for. Needs nothing, so that settings can be checked before anything is loaded."""

__all__ = ["MAX_VOCABULARY"]

MAX_VOCABULARY = 1 << 20  # ids; of 20 bits
