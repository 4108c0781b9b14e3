"""A sweep's file that says the least, one to begin with, and the schema that editors read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from peftlab.errors import ConfigError
from peftlab.sweeps.beginning import PARTS, beginning, file_schema, keys_in_files
from peftlab.sweeps.call import Call
from peftlab.sweeps.declaration import plain_number
from peftlab.sweeps.reading import read_sweep
from tests.conftest import REPOSITORY, TINY, Peftlab

LEAST = """\
name: least
seeds: [0]
overrides: [{overrides}]
cells: [{{id: lora, overrides: [peft=lora]}}, {{id: head, overrides: [peft=head]}}]
"""


def least(folder: Path, *overrides: str) -> Path:
    path = folder / "least.yaml"
    path.write_text(LEAST.format(overrides=", ".join([*TINY, "trainer.max_epochs=1", *overrides])), encoding="utf-8")
    return path


def test_name_seeds_and_cells_are_enough(peftlab: Peftlab, reviews: Path, scratch: Path) -> None:
    path = least(scratch, f"data.path={reviews}")
    assert peftlab("sweep", str(path), "--dry-run").out.splitlines()[-1] == "2 jobs, 0 of them finished. least."
    done = peftlab("sweep", str(path))
    assert done.status == 0, done.err
    assert "|  | test accuracy | trainable parameters | train seconds |" in done.out
    said = json.loads((scratch / "outputs" / "least" / "sweep.json").read_text())
    assert (said["title"], said["metric"]) == ("least", "metrics.test.accuracy")
    assert "the file's word" not in peftlab("check", str(path)).out
    assert peftlab("report", "outputs/least").status == 0


def test_the_usual_columns_are_the_objectives_own(scratch: Path) -> None:
    (scratch / "rows.jsonl").write_text('{"text": "a", "label": 1.5}\n', encoding="utf-8")
    path = least(scratch, f"data.path={scratch / 'rows.jsonl'}", "data.objective=regression")
    sweep = Call(path, []).plan(reading=True).sweep
    assert [column.value for column in sweep.columns] == [
        "metrics.test.pearson", "parameters.trainable", "timing.train_seconds",
    ]  # fmt: skip
    path.write_text(path.read_text() + "metric: metrics.test.mse\n", encoding="utf-8")
    sweep = Call(path, []).plan(reading=True).sweep
    assert (sweep.metric, sweep.columns[0].value) == ("metrics.test.mse", "metrics.test.mse")


def test_the_first_column_is_the_metric(scratch: Path) -> None:
    path = least(scratch)
    path.write_text(path.read_text() + "columns: [{title: F1, value: metrics.test.macro_f1}]\n", encoding="utf-8")
    assert read_sweep(path).metric == "metrics.test.macro_f1"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("titel: x", "unknown key 'titel'. Did you mean 'title'?"),
        ("seeds: 3", "seeds=3 is not allowed: it must be a list"),
        ("colums: []", "unknown key 'colums'. Did you mean 'columns'?"),
        ("columns: [{titel: x, value: metrics.test.loss}]", "unknown key 'columns[0].titel'. Did you mean 'title'?"),
        ("cells: [{idd: x}]", "unknown key 'cells[0].idd'. Did you mean 'id'?"),
    ],
)
def test_an_unknown_key_names_its_neighbours(scratch: Path, line: str, says: str) -> None:
    values = yaml.safe_load(least(scratch).read_text()) | yaml.safe_load(line)
    (scratch / "wrong.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read_sweep(scratch / "wrong.yaml")
    assert says in str(refused.value)


def test_a_file_to_begin_with(peftlab: Peftlab, scratch: Path) -> None:
    assert peftlab("sweep", "--new", "mine.yaml").status == 0
    sweep = read_sweep(Path("mine.yaml"))
    assert (sweep.name, [arm.id for arm in sweep.cells]) == ("mine", ["head", "lora_2", "lora_8"])
    listed = peftlab("sweep", "mine.yaml", "--dry-run")
    assert "12 jobs, 0 of them finished" in listed.out
    data, shared, *jobs = listed.out.splitlines()[:-1]
    assert data.startswith("data: 500 training, 200 validation and 500 test rows")
    common = shared.removeprefix("all jobs: ").split()
    assert len(common) > 2
    assert len(jobs) == 12
    assert [line for line in jobs if set(common) & set(line.split())] == [], "what all share is said once"
    assert all("seed=" in line for line in jobs)
    again = peftlab("sweep", "--new", "mine.yaml")
    assert (again.status, "is there already" in again.err) == (2, True)
    named = peftlab("sweep", "--new", "my sweep.yaml")
    assert (named.status, "'my sweep' cannot name a folder" in named.err) == (2, True)
    assert peftlab("sweep").status == 2


def test_the_schema_takes_every_file_that_ships_and_no_wrong_one(peftlab: Peftlab) -> None:
    schema = json.loads(peftlab("sweep", "--schema").out)
    assert schema == file_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    files = sorted((REPOSITORY / "sweeps").glob("*.yaml"))
    assert len(files) > 8
    texts = [*(file.read_text(encoding="utf-8") for file in files), beginning("x")]
    good = [_numbers(yaml.safe_load(text)) for text in texts]
    for values in good:
        jsonschema.validate(values, schema)
    for wrong in ({"titel": "x"}, {"seeds": ["a"]}, {"cells": [{"id": "x", "start": "y"}]}, {"cells": [{"id": "a b"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(good[0] | wrong, schema)


def _numbers(values: Any) -> Any:
    """As an editor's YAML 1.2 reads them: ``1e-5`` is a number there."""
    if isinstance(values, dict):
        return {key: _numbers(value) for key, value in values.items()}
    return [_numbers(value) for value in values] if isinstance(values, list) else plain_number(values)


def test_every_key_has_a_meaning_and_stands_in_the_how_to() -> None:
    how_to = (REPOSITORY / "docs" / "sweep_files.md").read_text(encoding="utf-8")
    for part in PARTS:
        for key, meaning in keys_in_files(part).items():
            assert meaning.endswith((".", ")")), key
            assert f"`{key}`" in how_to, key
    blocks = [block.partition("```")[0] for block in how_to.split("```yaml\n")[1:]]
    assert len(blocks) >= 3
    whole = [block for block in blocks if block.startswith("name:")]
    assert whole
    for block in whole:
        Path("block.yaml").write_text(block, encoding="utf-8")
        assert read_sweep(Path("block.yaml")).cells
