"""Claims about students: built to size, loaded whole, on the cache's tokenizer, or refused in one line."""

import shutil
from pathlib import Path

import pytest
import torch

from distillcache.config import load_config
from distillcache.errors import ConfigError, DistillcacheError
from distillcache.learn.architecture import Architecture
from distillcache.learn.student import load_student, student_identity
from distillcache_shards.cache import Cache
from tests.distillcache.tiny_cache import NUM_IDS, sentences, small_teacher, write_cache
from tests.distillcache.tiny_models import byte_tokenizer, save_teacher, tiny
from tests.distillcache.tiny_tokenizer import tiny_tokenizer

STUDENTS = Path(__file__).parents[2] / "configs" / "student"
SMALL = """hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 128
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache of short sentences."""
    return Cache.open(write_cache(tmp_path_factory.mktemp("student") / "cache", small_teacher(), sentences()))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of sizes."""
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


def refusal(source: Path | str, cache: Cache) -> str:
    """The line that a student is refused with."""
    with pytest.raises(DistillcacheError) as caught:
        load_student(str(source), cache, seed=0)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_without_a_model(cache: Cache, small: Path, tied: bool) -> None:
    """The formula, against the model that is built."""
    small.write_text(SMALL + f"tie_word_embeddings = {str(tied).lower()}\n")
    student = load_student(str(small), cache, seed=0)
    sizes = load_config(Architecture, small, {})
    assert student.num_parameters == sizes.num_parameters(NUM_IDS) == student.model.num_parameters()
    assert (student.name, student.is_new) == ("small", True)
    assert student.model.config.vocab_size == NUM_IDS
    assert student.model.config.eos_token_id == byte_tokenizer().eos_token_id


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", (4, 8)), ("10m", (7, 11)), ("100m", (100, 125)), ("350m", (330, 360))]
)
def test_the_students_in_configs_are_of_the_size_they_say(name: str, millions: tuple[int, int]) -> None:
    """With the vocabularies of CodeLlama and SmolLM2."""
    sizes = load_config(Architecture, STUDENTS / f"{name}.toml", {})
    low, high = (1e6 * each for each in millions)
    assert low < sizes.num_parameters(32_016) < sizes.num_parameters(49_152) < high


def test_every_student_in_configs_has_a_size_to_hold_it_to() -> None:
    """No file is left out of the test above."""
    assert {each.stem for each in STUDENTS.glob("*.toml")} == {"tiny", "10m", "100m", "350m"}


def test_a_seed_makes_the_same_student_and_another_another(cache: Cache, small: Path) -> None:
    """And the caller's own random numbers are not touched."""
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    first, again = (load_student(str(small), cache, seed=3).model.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), wanted)
    other = load_student(str(small), cache, seed=4).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_any_causal_model_can_be_continued_also_with_padded_embeddings(cache: Cache, tmp_path: Path) -> None:
    """Loaded whole, in fp32, to be trained."""
    folder = save_teacher(tmp_path / "gpt", tiny("gpt2").to(torch.bfloat16))
    student = load_student(str(folder), cache, seed=0)
    assert (student.name, student.is_new) == ("gpt", False)
    assert all(each.dtype == torch.float32 and each.requires_grad for each in student.model.parameters())
    assert student.model.config.vocab_size > NUM_IDS


def test_a_student_with_another_tokenizer_is_refused(cache: Cache, tmp_path: Path) -> None:
    """The line names the first token that differs."""
    folder = save_teacher(tmp_path / "other", tiny("llama"))
    tiny_tokenizer().save_pretrained(folder)
    assert "'<pad>'" in refusal(folder, cache)
    byte_tokenizer(chat=False).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    assert "chat templates differ" in refusal(folder, cache)


def test_a_cache_whose_tokenizer_was_altered_is_refused(small: Path, tmp_path: Path) -> None:
    """A new student has no tokenizer of its own that would tell."""
    folder = write_cache(tmp_path / "cache", small_teacher(), sentences(4))
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    assert "tokenizer" in refusal(small, Cache.open(folder))


def test_what_is_no_student_is_refused(cache: Cache, small: Path, tmp_path: Path) -> None:
    """Missing, incomplete, of another kind, too small."""
    assert "no such file" in refusal(tmp_path / "none.toml", cache)
    assert "no such folder" in refusal(tmp_path / "none", cache)
    assert "no config.json" in refusal(tmp_path, cache)
    assert "cannot be loaded" in refusal("no-such-model-anywhere", cache)

    sees = tmp_path / "sees"
    byte_tokenizer().save_pretrained(sees)
    (sees / "config.json").write_text('{"model_type": "clip"}')
    (sees / "model.safetensors").touch()
    assert "not a causal language model" in refusal(sees, cache)

    lacking = save_teacher(tmp_path / "lacking", tiny("llama", num_hidden_layers=1))
    two_layers = (lacking / "config.json").read_text().replace('hidden_layers": 1', 'hidden_layers": 2')
    (lacking / "config.json").write_text(two_layers)
    assert "weights are missing" in refusal(lacking, cache)

    assert "too few embeddings" in refusal(
        save_teacher(tmp_path / "narrow", tiny("llama", vocab_size=200)), cache
    )
    small.write_text(SMALL.replace("128", "16"))
    assert "too few positions" in refusal(small, cache)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("hidden_sise = 3", "did you mean `hidden_size`?"),
        ("num_hidden_layers = 0", "at least 1"),
        ("num_attention_heads = 5", "even multiple"),
        ("num_key_value_heads = 3", "must divide"),
        ("initializer_range = 0.0", "above 0"),
        ("max_position_embeddings = 1", "at least 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(cache: Cache, small: Path, change: str, wanted: str) -> None:
    """In one line that names the file."""
    name = change.split(" ")[0]
    kept = [line for line in SMALL.splitlines() if not line.startswith(name)]
    small.write_text("\n".join([*kept, change]))
    with pytest.raises(ConfigError) as caught:
        load_student(str(small), cache, seed=0)
    assert str(caught.value).startswith(f"{small}: ") and wanted in str(caught.value)


def test_a_file_without_a_size_names_it(cache: Cache, small: Path) -> None:
    """By the name it has in the file."""
    small.write_text("hidden_size = 32\n")
    assert "intermediate_size" in refusal(small, cache)


def test_identity_of_a_new_student_is_its_sizes_of_another_its_weights(small: Path, tmp_path: Path) -> None:
    """A file or folder may move; a size or a weight may not."""
    moved = Path(shutil.copy(small, tmp_path / "moved.toml"))
    assert student_identity(str(small)) == student_identity(str(moved))
    moved.write_text(SMALL.replace("48", "64"))
    assert student_identity(str(small)) != student_identity(str(moved))
    folder = save_teacher(tmp_path / "one", small_teacher())
    identity = student_identity(str(folder))
    assert student_identity(str(shutil.copytree(folder, tmp_path / "other"))) == identity
    save_teacher(folder, small_teacher(seed=8))
    assert student_identity(str(folder)) != identity
