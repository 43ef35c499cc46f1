"""What the format has room for. Needs nothing, so that settings can be checked before anything is loaded."""

__all__ = ["MAX_BLOCK_BYTES", "MAX_VOCABULARY"]

MAX_VOCABULARY = 1 << 20  # ids; of 20 bits
MAX_BLOCK_BYTES = 1 << 24  # that a block may expand to: a reader of any cache needs little memory
