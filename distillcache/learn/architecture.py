"""The shape of a new student, a Llama-style decoder, as a file in configs/student describes it.

Can count its parameters for any vocabulary before there is a model.
Knows neither torch nor transformers.
"""

from dataclasses import dataclass

from distillcache.config import setting
from distillcache.errors import ConfigError

__all__ = ["Architecture"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a Llama-style decoder, by the names of transformers' LlamaConfig.

    Its vocabulary is not here: that is the cache's tokenizer's.
    """

    hidden_size: int = setting(help="Width of the residual stream.", minimum=1)
    intermediate_size: int = setting(help="Width of the feed-forward layers.", minimum=1)
    num_hidden_layers: int = setting(help="Decoder layers.", minimum=1)
    num_attention_heads: int = setting(help="Query heads; each has an even share of the width.", minimum=1)
    num_key_value_heads: int | None = setting(
        None, help="Key and value heads, one for several query heads; as many unless given.", minimum=1
    )
    max_position_embeddings: int = setting(2048, help="Longest sequence.", minimum=2)
    tie_word_embeddings: bool = setting(True, help="One matrix for the embedding and the output head.")
    rope_theta: float = setting(10_000.0, help="Base of the rotary positions.", above=0)
    rms_norm_eps: float = setting(1e-5, help="Epsilon of the norms.", above=0)
    initializer_range: float = setting(0.02, help="Standard deviation of new weights.", above=0, maximum=1)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise ConfigError(
                "--hidden-size: must be an even multiple of num_attention_heads "
                f"({self.num_attention_heads}), found {self.hidden_size}"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ConfigError(
                f"--num-key-value-heads: must divide num_attention_heads ({self.num_attention_heads}), "
                f"found {self.kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Key and value heads, where none are given as many as query heads."""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    def num_parameters(self, vocab_size: int) -> int:
        """Parameters with a vocabulary of that many ids; tied matrices count once."""
        width, inner = self.hidden_size, self.intermediate_size
        attention = 2 * width * width + 2 * width * self.kv_heads * self.head_dim
        layer = attention + 3 * width * inner + 2 * width
        matrices = 1 if self.tie_word_embeddings else 2
        return self.num_hidden_layers * layer + width + matrices * vocab_size * width
