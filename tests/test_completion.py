"""What a shell completes: in its own words, in a real bash and zsh, and without importing anything that takes time."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftlab.cli import COMMANDS
from peftlab.completion import answer, candidates
from tests.conftest import REPOSITORY, Peftlab

CONFIG = REPOSITORY / "conf"


def completed(line: str) -> list[str]:
    """Of what stands behind ``peftlab``."""
    return candidates(line.split(" "), COMMANDS)


def test_what_there_is() -> None:
    assert set(COMMANDS) < set(completed(""))
    assert completed("rep") == ["report", "reproduce"]
    assert completed("train peft=") == sorted(f"peft={file.stem}" for file in (CONFIG / "peft").glob("*.yaml"))
    assert completed("train -m peft=lora,do") == ["peft=lora,dora"]
    assert completed("train pe") == ["peft.", "peft="]
    assert completed("train trainer.max") == ["trainer.max_epochs=", "trainer.max_steps="]
    assert "peft.lr_ratio=" in completed("train peft.")
    assert "peft.lr_ratio=" not in completed("train peft=vera peft.")
    assert "peft.lr_ratio=" in completed("train experiment=first_run peft.")
    assert completed("train trainer.select=") == ["trainer.select=best", "trainer.select=last"]
    assert completed("train backbone.quantize=n") == ["backbone.quantize=nf4", "backbone.quantize=null"]
    assert completed("train trainer.progress_bar=") == ["trainer.progress_bar=false", "trainer.progress_bar=true"]
    assert completed("train ++see") == ["++seed="]
    assert completed("submit --set partition=x train optim=s") == ["optim=sgd"]
    assert completed("explain trainer.pre") == ["trainer.precision"]
    assert completed("methods ver") == ["vera"]
    assert completed("report --best ") == ["highest", "lowest"]
    assert completed("evaluate out") == [], "files are the shell's"
    assert {"--config-dir", "--multirun"} < set(completed("train -"))


def test_options_are_those_of_the_commands(peftlab: Peftlab) -> None:
    for command in COMMANDS:
        said = set(re.findall(r"--[a-z-]+", peftlab(command, "--help").out))
        missing = {word for word in completed(f"{command} -") if word.startswith("--")} - said
        assert command == "train" or not missing, "the help of train is ours, and its options are Hydra's"


def test_configs_of_ones_own(scratch: Path) -> None:
    Path("mine/peft").mkdir(parents=True)
    Path("mine/peft/ours.yaml").write_text("_target_: ours.Method\nwidth: 3\n")
    assert completed("train --config-dir mine peft=our") == ["peft=ours"]
    assert completed("train --config-dir mine peft=ours peft.") == ["peft.width="]


def test_bash_is_given_what_stands_behind_its_last_break() -> None:
    def of(line: str) -> list[str]:
        return answer(["bash", " \t\n\"'><=;|&(:", line], COMMANDS).splitlines()

    assert of("peftlab train peft=dor") == ["dora"]
    assert of("peftlab train --conf") == ["--config-dir", "--config-name"]
    assert of("peftlab train 'peft=dor") == ["dora"]
    assert "train" in of("peftlab ")


def test_it_is_fast_and_imports_no_torch() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); from peftlab.cli import main; "
        "main(['__complete', 'bash', '=:', 'peftlab train trainer.precision=bf']); "
        "print(sorted({'torch', 'hydra', 'pydantic', 'omegaconf', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["bf16", "bf16-mixed", "bf16-true", "[]"]


def test_hydras_own_way_of_asking(peftlab: Peftlab) -> None:
    for words in (["-sc", "install=bash"], ["train", "-sc", "install=bash"]):
        result = peftlab(*words)
        assert result.status == 0
        assert "complete -o bashdefault -o default -F _peftlab peftlab" in result.out
    assert "compdef _peftlab peftlab" in peftlab("completion", "zsh").out
    assert "there is no completion for 'fish', but for bash, zsh" in peftlab("completion", "fish").err
    assert 'eval "$(peftlab completion bash)"' in peftlab("-sc").err


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_in_a_real_shell(shell: str, scratch: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    command = scratch / "bin/peftlab"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY / "src"} exec {sys.executable} -m peftlab "$@"\n')
    command.chmod(0o755)
    flags = ["--norc", "--noprofile", "-i"] if shell == "bash" else ["-f", "-i"]
    with Terminal([shell, *flags], {"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(scratch)}) as there:
        there.types(f'eval "$(peftlab completion {shell})"; echo rea""dy\n', "ready")
        there.types("peftlab rep\t\t", "reproduce")
        there.types("\x15peftlab train peft=dor\t", "dora")
        there.types("trainer.prec\t", "ision=")  # zsh writes the sign before once more
        there.types("bf16-m\t", "ixed")


class Terminal:
    """A shell that believes that somebody types."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._command, self._environment = command, {**os.environ, **environment, "TERM": "dumb", "PS1": "$ "}

    def __enter__(self) -> Terminal:
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.execvpe(self._command[0], self._command, self._environment)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        os.waitpid(self._pid, 0)

    def types(self, text: str, wanted: str) -> None:
        """Type ``text``; fail unless ``wanted`` appears, and leave when the shell is silent again."""
        os.write(self._fd, text.encode())
        seen, end = "", time.monotonic() + 60
        while select.select([self._fd], [], [], 0.5)[0] or wanted not in seen:
            assert time.monotonic() < end, seen
            if select.select([self._fd], [], [], 0.2)[0]:
                seen += os.read(self._fd, 65536).decode(errors="replace")
