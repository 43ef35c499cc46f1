"""A teacher on this machine: a transformers model with a chat template. The one home of torch in this folder.

One question at a time, in a thread of its own, so that the run's bookkeeping goes on meanwhile.
"""

import asyncio
from pathlib import Path
from typing import Any

from distillcache.errors import TeacherError
from distillcache.generate.prices import Usage
from distillcache.generate.teacher import Answer, AskError, Question

__all__ = ["LocalTeacher"]


class LocalTeacher:
    """The model in `folder`; loaded at once. Raises `TeacherError` when it cannot be."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if not Path(folder).is_dir():
            raise TeacherError(f"{folder}: no folder of a transformers model; give --teacher local:FOLDER")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self._model: Any = AutoModelForCausalLM.from_pretrained(folder)
        except (OSError, ValueError) as fault:
            raise TeacherError(f"{folder}: cannot be loaded; {' '.join(str(fault).split())[:200]}") from None
        if self._tokenizer.chat_template is None:
            raise TeacherError(
                f"{folder}: the tokenizer has no chat template; choose an instruction-tuned model"
            )
        self._folder = folder
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Nothing to give back."""

    async def ask(self, question: Question) -> Answer:
        """Greedy without a temperature or at 0; sampled otherwise, seeded by the question's id."""
        async with self._turn:
            return await asyncio.to_thread(self._generate, question)

    def _generate(self, question: Question) -> Answer:
        import torch

        messages = [{"role": "user", "content": question.prompt}]
        if question.system is not None:
            messages.insert(0, {"role": "system", "content": question.system})
        inputs = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        prompt_ids_BT = inputs["input_ids"]
        how: dict[str, Any] = {"do_sample": False}
        if question.temperature:
            torch.manual_seed(int(question.id, 16) % 2**63)
            how = {"do_sample": True, "temperature": question.temperature, "top_k": None, "top_p": None}
        try:
            with torch.inference_mode():
                ids_BT = self._model.generate(
                    **inputs,
                    max_new_tokens=question.max_tokens,
                    pad_token_id=self._tokenizer.eos_token_id,
                    **how,
                )
        except (RuntimeError, ValueError) as fault:
            raise AskError(f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}") from None
        answer_ids = ids_BT[0, prompt_ids_BT.shape[1] :].tolist()
        ends = self._model.generation_config.eos_token_id
        ended = bool(answer_ids) and answer_ids[-1] in (ends if isinstance(ends, list) else [ends])
        text = self._tokenizer.decode(answer_ids, skip_special_tokens=True)
        usage = Usage(prompt_ids_BT.shape[1], len(answer_ids))
        return Answer(text, "stop" if ended else "length", usage, self._folder)
