"""The documentation: its commands compose, its Python runs, and its reference is whole.

With ``PEFTLAB_DOCS=run`` (``make docs-test``) trainings run, on a few rows, instead of being composed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from peftlab.cli import COMMANDS
from peftlab.objectives.base import objective, objectives
from peftlab.peft.base import methods
from peftlab.reference import every_key
from peftlab.sweeps.reading import read_sweep
from peftlab.sweeps.record_paths import LEAVES, check_record_path
from tests.conftest import REPOSITORY, Peftlab, write_reviews
from tests.once import two_runs
from tests.test_readme import COMMANDS as README_COMMANDS
from tests.test_readme import ELSEWHERE, OF_RUNS, distinct, local_folder, train

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUN = os.environ.get("PEFTLAB_DOCS") == "run"


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code of a page that are in a language."""
    return re.findall(rf"```{language}[^\n]*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page."""
    lines = (line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines() if line.strip())
    return [words for line in lines if (words := shlex.split(without_escapes(line), comments=True))]


def without_escapes(line: str) -> str:
    """A line of bash whose ``$'…'`` are plain quotes around what they mean."""
    return re.sub(r"\$'([^']*)'", lambda quoted: f"'{quoted[1].replace(chr(92) + 'n', chr(10))}'", line)


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """docs/_generated.py."""
    spec = importlib.util.spec_from_file_location("docs_generated", DOCS / "_generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_here(page: Path) -> list[list[str]]:
    """The commands of a page that stand neither in the README, whose test runs them, nor on a page before it."""
    before = [*README_COMMANDS, *(words for other in PAGES[: PAGES.index(page)] for words in commands(other))]
    return [words for words in distinct(commands(page)) if words not in before]


def test_each_command_has_one_place() -> None:
    """That runs it."""
    everywhere = distinct([*README_COMMANDS, *(words for page in PAGES for words in commands(page))])
    run = [*distinct(README_COMMANDS), *(words for page in PAGES for words in first_here(page))]
    assert sorted(run) == sorted(everywhere)
    assert len(run) > 80


@pytest.mark.parametrize("page", [p for p in PAGES if first_here(p)], ids=lambda p: p.relative_to(DOCS).as_posix())
def test_every_command_of_a_page(page: Path, peftlab: Peftlab, scratch: Path) -> None:
    runs = two_runs()
    shutil.copy(REPOSITORY / "README.md", scratch)
    reviews = write_reviews(scratch, rows=120)
    (scratch / "sweeps").symlink_to(REPOSITORY / "sweeps")
    (scratch / "new.csv").write_text("id,text\n1,fine\n2,dull\n")
    for name in ("train.csv", "test.csv"):
        (scratch / name).write_text(
            "text,topic,prompt,response\n"
            + "".join(f"text number {i} {'ab'[i % 2]},{'ab'[i % 2]},What is {i}?,{i}\n" for i in range(80))
        )
    (scratch / "rte").mkdir()
    (scratch / "rte" / "train.csv").write_text("sentence1,sentence2,label\n" + "a film,a film,0\na film,a dog,1\n" * 20)
    for text in blocks(page, "yaml"):
        values = yaml.safe_load(text)
        if isinstance(values, dict) and "cells" in values and "name" in values:
            (scratch / f"{values['name']}.yaml").write_text(text)
        if isinstance(values, dict) and "partition" in values and "sbatch" not in values:
            (scratch / "mine.yaml").write_text(text)
    for words in first_here(page):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE), words
            continue
        assert words[0] == "peftlab", words
        verb, given = words[1], words[2:]
        assert verb in COMMANDS
        result = called(peftlab, verb, given, scratch, reviews, runs)
        assert result == 0, words


def called(peftlab: Peftlab, verb: str, given: list[str], scratch: Path, reviews: Path, runs: dict[str, str]) -> int:
    """Call a command of a page, with what it needs here and without what takes long; its exit status."""
    if verb == "train":
        given = [a.replace("reviews.jsonl", str(reviews)) for a in given]
        slow = "backbone=smollm2_135m" in given  # minutes, and rows of its own
        if RUN and not slow and not any(a in ELSEWHERE for a in given):
            (scratch / "sweeps").unlink(missing_ok=True)
            status: int = train(peftlab, given, reviews, scratch).status
            return status
        return peftlab("check", "--no-counts", *local(given, scratch)).status
    if verb == "sweep":
        files = [a for a in given if a.endswith(".yaml") and not a.startswith("-")]
        if {"--schema", "--new", "--new-cluster"} & set(given):
            return peftlab(verb, *given[: given.index(">")] if ">" in given else given).status
        read_sweep(Path(files[0]))
        return 0
    if verb in ("submit", "status") or "--on" in given:
        return 0 if {"train", "outputs/rank_alpha"} & set(given) else 1
    if verb in OF_RUNS:
        folders = {"RUN": runs["t"], "outputs/rank_alpha": "outputs/t", "outputs/ranks": "outputs/t"}
        folders |= {"outputs/first": "outputs/t"}
        words = [folders.get(a, a) for a in given]
        if verb == "report":
            words = [a for a in words if a != "--baseline" and not a.startswith("rank 8")]
        if "--probe" in words:  # of a language model: tests/runs/test_language_runs.py
            place = words.index("--probe")
            del words[place : place + 2]
        if verb == "remove":
            words[0] = runs["u"]
        if verb == "reproduce" and "--print" not in words:
            words.append("--print")
        return peftlab(verb, *words).status
    return peftlab(verb, *local(given, scratch)).status


def local(given: list[str], scratch: Path) -> list[str]:
    """With real files where a command says FOLDER."""
    shutil.rmtree(scratch / "folder", ignore_errors=True)
    return local_folder(given, scratch) if "FOLDER" in " ".join(given) else given


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.stem)
def test_every_block_of_python(page: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    session: dict[str, Any] = vars(module)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), session)
    if page.stem == "method":
        from peftlab.peft.base import _REGISTRY, attach
        from tests.peft.tiny import tiny

        try:
            backbone = tiny("bert")
            adapter = attach(backbone, session["Scaled"](), seed=0)
            assert adapter.num_parameters() == session["Scaled"]().closed_form(tiny("bert")) == 4
            for kind in ("bert", "gpt2", "llama"):
                require_low_rank(session["GatedLoRA"](rank=4), kind)
        finally:
            _REGISTRY.pop("scaled", None)
            _REGISTRY.pop("gated_lora", None)
    if page.stem == "tutorial":
        assert len(Path("reviews.jsonl").read_text().splitlines()) == 300


def require_low_rank(method: Any, kind: str) -> None:
    """The page's method does what the page says: slices and Conv1D (gpt2) too, counts, starts, merging, other types."""
    import torch

    from peftlab.peft.base import attach
    from tests.peft.tiny import batch, tiny

    ids, mask = batch()
    backbone = tiny(kind)
    with torch.no_grad():
        plain = backbone(ids, mask)
        adapter = attach(backbone, method, seed=1, train_head=False)
        assert torch.equal(backbone(ids, mask), plain), "B is zero"
        assert adapter.num_parameters() == method.closed_form(tiny(kind))
        again, other = (attach(tiny(kind), method, seed=seed, train_head=False) for seed in (1, 2))
        first, *_ = adapter.deltas()
        assert torch.equal(first.A, next(iter(again.deltas())).A)
        assert not torch.equal(first.A, next(iter(other.deltas())).A)
        for delta in adapter.deltas():
            delta.B.normal_(std=5.0, generator=torch.Generator().manual_seed(2))
            delta.gate.fill_(0.7)
        trained = backbone(ids, mask)
        assert not torch.allclose(trained, plain, atol=1e-3)
        adapter.merge()
        torch.testing.assert_close(backbone(ids, mask), trained, atol=1e-5, rtol=1e-4)
        small = tiny(kind).to(torch.bfloat16)
        kept = attach(small, method, seed=1, train_head=False)
        assert {parameter.dtype for parameter in kept.parameters()} == {torch.float32}
        assert small(ids, mask).isfinite().all()


def test_the_reference_has_what_a_method_is_made_of(generated: ModuleType) -> None:
    page = generated.pages()["reference/extending.md"]
    for place in ("base.PEFTStrategy", "base.Supports", "base.Selection", "base.Target", "delta.Delta", "parts.Parts"):
        assert re.search(rf"^::: peftlab\.\w+\.{place}$", page, flags=re.MULTILINE), place
    for place in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE):
        module, _, name = place.rpartition(".")
        assert hasattr(importlib.import_module(module), name), place


def test_every_key_is_in_the_reference(generated: ModuleType) -> None:
    heads = re.findall(r"^### `([^`]+)`", generated.keys_page(), flags=re.MULTILINE)
    assert sorted(heads) == sorted(f"{group}.{key.name}" if group else key.name for group, _, key in every_key())


def test_no_page_shows_the_marks_of_docstrings(generated: ModuleType) -> None:
    """Neither roles nor double backticks; and signs of prose are escaped, which Markdown would take for emphasis."""
    for path, text in generated.pages().items():
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        assert not re.search(r":[a-z]+:`", text), path
        assert "``" not in prose, path
        assert not re.search(r"(?<![\\*\w])\*(?=\w[^*\n]*[^\\]\*\w)", prose), path
    pages = generated.pages()
    assert "A folder of train.\\*, validation.\\*, test.\\*, or one file" in pages["reference/keys.md"]
    assert "- `lr_ratio`: LoRA+ (Hayou" in pages["reference/methods/lora.md"]
    assert "h = W x + s · B A x" in pages["reference/methods/lora.md"].split("```text\n")[1]
    rendered = "see :func:<code>~peftlab.library.fitting.fit</code> and :mod:<code>peftlab.pairs</code>"
    assert generated.on_page_content(rendered) == "see <code>fit</code> and <code>peftlab.pairs</code>"


def test_every_column_is_in_the_reference(generated: ModuleType) -> None:
    """Each with a meaning, and each passes the check of a sweep's columns."""
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \|$", generated.pages()["reference/columns.md"], flags=re.MULTILINE)
    assert [place for place, meaning in rows if not meaning] == []
    for place, _ in rows:
        check_record_path(place)
    known = {place for place, _ in rows}
    assert known >= {f"{place}.{name}" for place, names in LEAVES.items() for name in names} - set(LEAVES)


def test_every_method_and_command_has_its_place(generated: ModuleType) -> None:
    pages = generated.pages()
    for name, cls in methods():
        if cls.__module__.startswith("peftlab."):
            assert f"reference/methods/{name}.md" in pages
            assert f"(methods/{name}.md)" in pages["reference/methods.md"]
    for command in COMMANDS:
        assert f"## {command}\n" in pages["reference/commands.md"]
    assert "| LoRA | optim.lr=" in pages["reference/methods/lora.md"]
    places = [place for group in generated.PLACES.values() for place in group]
    import peftlab

    assert {place.rpartition(".")[2] for place in places} | {"PeftlabError"} == set(peftlab.__all__)


def test_the_reference_has_the_columns_of_predictions(generated: ModuleType) -> None:
    """Those that each objective keeps of a row, and those of written answers."""
    page, option = generated.predictions_page(), SimpleNamespace(answer=0, characters=[3, 5])
    kept: dict[str, dict[str, Any]] = {
        "classification": objective("classification").kept(torch.tensor([[0.5, 0.1]]), [1], ["no", "yes"]),
        "regression": objective("regression").kept(torch.tensor([[0.5]]), [1.5], ["value"]),
        "causal_lm": objective("causal_lm").kept(torch.tensor([[0.5, 2.0, 1.0]]), [None], [])
        | dict.fromkeys(("generated", "reference", "exact_match", "number")),
        "multiple_choice": objective("multiple_choice").kept(torch.tensor([[-1.0, -2.0]]), [option], ["A", "B"]),
    }
    assert set(kept) == set(objectives())
    for name, columns in kept.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE)) == set(columns)
    assert all(f"| `{name}` |" in page for name in ("row", "hash", "task", "gold_value"))


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere(generated: ModuleType) -> None:
    config = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    made = set(generated.pages())
    for page in PAGES:
        name = page.relative_to(DOCS).as_posix()
        assert f": {name}\n" in config, name
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            found = (page.parent / target).resolve()
            inside = os.path.relpath(found, DOCS)
            assert found.exists() or inside in made, f"{name}: {target}"
