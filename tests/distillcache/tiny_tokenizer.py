"""A small real tokenizer: byte-level BPE trained here on a little text, with a ChatML template."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "The teacher reads the corpus once and the student learns from what the teacher said about every token.",
    "A user asks the assistant a question, and the assistant answers the user in a sentence or two.",
    "def answer(question):\n    return 'the answer is ' + str(question)\n",
    "user\nassistant\nsystem\n",
] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(
    *, template: str | None = CHATML, bos: bool = False, extra: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """About 400 ids; with `bos` it puts <|endoftext|> before a text, `extra` are further special tokens."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*SPECIAL, *extra],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(TEXT, trainer)
    inner.post_processor = (
        processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
        if bos
        else processors.ByteLevel(trim_offsets=True)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *extra],
    )
    tokenizer.chat_template = template
    return tokenizer
