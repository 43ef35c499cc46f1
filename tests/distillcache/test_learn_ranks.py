"""Claims about several ranks: what one would learn, written and said by the first alone; on CPUs, by gloo."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from distillcache.learn.run import learn
from tests.distillcache.learning import Make, command_line, reported, same_weights

ROOT = Path(__file__).parents[2]
# Over the end of an epoch, whose last step has one batch for two ranks.
SETTINGS: dict[str, Any] = {"max_steps": 8, "batch_size": 4, "save_every": 3, "eval_every": 4}


MODULE = ("-m", "distillcache_cli")
# accelerate takes a student apart on GPUs alone, though FSDP itself runs on CPUs: so it is told to.
SHARDED_ON_CPUS = """
import runpy
from accelerate import state
from accelerate.utils import DistributedType

begin = state.AcceleratorState.__init__

def begin_sharded(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if kwargs.get("fsdp_plugin") is not None:
        self.distributed_type = DistributedType.FSDP
        state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = kwargs["fsdp_plugin"]

state.AcceleratorState.__init__ = begin_sharded
runpy.run_module("distillcache_cli", run_name="__main__")
"""
FSDP = ("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")


def launched(
    arguments: list[str], how: tuple[str, ...] = ("--multi_gpu",), what: tuple[str, ...] = MODULE
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of a command in two processes."""
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", *how, "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", "0", *what, *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(launch, capture_output=True, text=True, env=environment, check=False)


def assert_same_reports(output: Path, reference: Path) -> None:
    """Every loss and score."""
    found, wanted = reported(output), reported(reference)
    assert len(found) == len(wanted) > 8
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["packed", "padded", "lora"])
def test_two_ranks_learn_what_one_learns(kind: str, config: Make, room: Path, tmp_path: Path) -> None:
    """The same global batches: every loss and score within the order of sums, and one voice."""
    settings: dict[str, Any] = {**SETTINGS, "packing": kind != "padded"}
    if kind == "lora":
        settings |= {"student": str(room / "teacher"), "lora_rank": 2, "learning_rate": 1e-3}
    one = config(**settings, gradient_accumulation=2, output=tmp_path / "one")
    learn(one)
    ran = launched(command_line(room, tmp_path / "two", **settings))
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.count("sequences learned from") == 1
    assert ran.stderr.count("sequences to learn from") == 1 and "Traceback" not in ran.stderr
    assert_same_reports(tmp_path / "two", one.output)


@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_where_it_was_stopped(room: Path, tmp_path: Path) -> None:
    """From a checkpoint that both share, to the same bits."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launched(command_line(room, whole, **SETTINGS)).returncode == 0
    shutil.copytree(whole, cut)
    # As a crash after step 6 leaves it.
    record = (cut / "learn.json").read_text()
    (cut / "learn.json").write_text(record[: record.index('"result"')] + '"result": null, "files": []}')
    for file in (cut / "checkpoints" / "checkpoint-8").iterdir():
        file.unlink()
    ran = launched(command_line(room, cut, **SETTINGS))
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "from step 6" in ran.stderr
    assert same_weights(cut, whole) and reported(cut) == reported(whole)


@pytest.mark.slow
def test_a_student_in_parts_learns_what_a_whole_one_learns(config: Make, room: Path, tmp_path: Path) -> None:
    """FSDP: the same losses, a saved student that is whole, and goes on where it was stopped."""
    one = config(**SETTINGS, gradient_accumulation=2, output=tmp_path / "one")
    learn(one)
    (tmp_path / "sharded.py").write_text(SHARDED_ON_CPUS)
    arguments = command_line(room, tmp_path / "two", **SETTINGS)
    ran = launched(arguments, FSDP, (str(tmp_path / "sharded.py"),))
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (tmp_path / "two" / "checkpoints" / "checkpoint-8" / "pytorch_model_fsdp_0").is_dir()
    assert_same_reports(tmp_path / "two", one.output)
    whole = AutoModelForCausalLM.from_pretrained(one.output)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    for ours, theirs in zip(found.parameters(), whole.parameters(), strict=True):
        # Adam divides gradients near 0 by their own size: what sums leave of them, in another order.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_accelerate_that_does_not_shard_is_told_of(room: Path, tmp_path: Path) -> None:
    """On CPUs it takes no student apart, whatever it was asked for, and says nothing itself."""
    ran = launched(command_line(room, tmp_path / "two", max_steps=1), FSDP)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stderr.count("warning: accelerate does not shard (FSDP) on CPUs") == 1
