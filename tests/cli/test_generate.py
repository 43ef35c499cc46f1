"""The command `generate`, run as a user runs it, against a server of the tests' own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "generate"))
from vendor_server import VendorServer

KEY = "sk-cli-0123456789abcdef"
PROGRAM = """
import sys, typer
from distillcache_cli.errors import exit_code
from distillcache_cli.generate import generate
app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
app.callback()(lambda: None)
app.command("generate")(generate)
command = typer.main.get_command(app)
sys.exit(exit_code(lambda: command.main(sys.argv[1:], standalone_mode=False)))
"""


def popen(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own, in `folder`, the key in its environment, nothing on stdin."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "ANTHROPIC_"))}
    environment |= {"ANTHROPIC_API_KEY": KEY, "OPENAI_API_KEY": KEY, "MY_KEY": KEY}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "generate", *arguments],
        cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = popen(folder, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def server_flags(server: VendorServer) -> list[str]:
    """Flags that lead to the server."""
    return ["--base-url", server.address, "--price", "1", "5", "--key-env", "MY_KEY"]


def test_the_example_of_the_help_text_runs(tmp_path: Path) -> None:
    """As it stands, led to a server of ours: data, report, the path on stdout, and the key nowhere."""
    from distillcache_cli.generate import EXAMPLE

    with VendorServer() as server:
        arguments = shlex.split(EXAMPLE)[2:]
        code, out, err = run(tmp_path, *arguments, *server_flags(server), "--yes")
        assert code == 0, err
        assert len(server.delivered) == 100
        assert any(KEY in value for headers in server.headers for value in headers.values())
    assert out.strip().endswith(str(Path("runs/first/data.jsonl")))
    lines = (tmp_path / "runs" / "first" / "data.jsonl").read_text().splitlines()
    assert len(lines) == 100 and all(json.loads(line)["response"] for line in lines)
    assert "100 requests" in err and "at most $" in err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY not in path.read_text()
    assert KEY not in out + err


def test_without_yes_and_without_a_terminal_nothing_is_asked(tmp_path: Path) -> None:
    """The estimate is shown, the remedy is named, the exit code is 1."""
    with VendorServer() as server:
        code, _, err = run(tmp_path, "run", "--teacher", "anthropic:m", "--count", "8", *server_flags(server))
        assert code == 1 and "--yes: needed" in err and "about $" in err
        assert not server.asked


def test_json_is_one_object_on_stdout(tmp_path: Path) -> None:
    """Data for machines; progress stays on stderr."""
    with VendorServer() as server:
        flags = ["--teacher", "anthropic:m", "--count", "8", "--yes", "--json"]
        code, out, err = run(tmp_path, "run", *flags, *server_flags(server))
    assert code == 0, err
    report = json.loads(out)
    assert report["kept"] == report["answered"] == 8
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())


def test_an_unknown_price_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    """No traceback for what the caller can mend."""
    code, out, err = run(tmp_path, "run", "--teacher", "openai:gpt-imaginary", "--count", "8", "--yes")
    assert code == 1 and out == "" and err.count("\n") == 1
    assert "no price for the model `gpt-imaginary`" in err and "--price INPUT OUTPUT" in err


def test_ctrl_c_brings_requests_under_way_home(tmp_path: Path) -> None:
    """One Ctrl-C: exit code 130, a report, no request lost; the same command asks the rest."""
    with VendorServer(answer_seconds=0.1) as server:
        flags = [
            "run",
            "--teacher",
            "anthropic:m",
            "--count",
            "24",
            "--yes",
            "--concurrency",
            "4",
            *server_flags(server),
        ]
        process = popen(tmp_path, *flags)
        while len(server.delivered) < 4 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert report["requests"]["lost"] == 0 and 4 <= report["answered"] == sum(server.asked.values()) < 24
        server.answer_seconds = 0
        code, _, err = run(tmp_path, *flags)
        assert code == 0 and set(server.asked.values()) == {1} and len(server.asked) == 24, err


def test_help_needs_no_client_and_no_torch() -> None:
    """The command's module, as the list of commands imports it, leaves both out."""
    program = (
        "import sys, distillcache_cli.generate; "
        "print(sorted({'torch', 'openai', 'anthropic', 'transformers', 'datasketch'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("flag", ["--key", "--api-key"])
def test_there_is_no_flag_for_a_key(tmp_path: Path, flag: str) -> None:
    """A key in a flag would be in the shell's history and in the list of processes."""
    code, _, err = run(tmp_path, "run", "--teacher", "openai:m", "--count", "1", flag, "x")
    assert code == 2 and flag in err
