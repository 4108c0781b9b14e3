"""Multitask prompts on batches of several tasks, and their transfer: against HF peft, and how mistakes are told."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import MultitaskPromptTuningInit as HFInit
from safetensors.torch import save_file
from torch.nn import functional as F

from peftlab.composition import checked
from peftlab.errors import ConfigError, PeftlabError
from peftlab.peft.adapter import Adapter
from peftlab.peft.base import attach
from peftlab.peft.lora import LoRA
from peftlab.peft.multitask_prompt import COLS, ROWS, SHARED, MultitaskPrompt, TaskPromptAdapter
from peftlab.peft.prompt_tuning import PromptTuning
from peftlab.records.folder import RunFolder, finished_run
from peftlab.records.identity import run_key
from peftlab.runs.adapter_file import backbone_fingerprint
from peftlab.runs.assemble import reassemble
from tests.backbones.tiny_backbones import shake, tiny
from tests.conftest import Peftlab
from tests.data.two_tasks import overrides, write_topics
from tests.peft.tiny import KINDS, batch

N, RANK = 5, 2
TASK_IDS = torch.tensor([2, 0, 1, 2])
THEIR_NAMES = {SHARED: "embedding.weight", COLS: COLS, ROWS: ROWS}
SIZES = {"token_dim": 32, "num_layers": 2, "num_attention_heads": 4, "num_virtual_tokens": N, "num_ranks": RANK}
DECODERS = {"gpt2", "llama"}


def method(**fields: Any) -> MultitaskPrompt:
    return MultitaskPrompt(**{"length": N, "position": "before", "num_tasks": 3, "rank": RANK, **fields})


def large(module: torch.nn.Module, seed: int = 5) -> None:
    """Prompts start near zero; make them matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)


def prompted(backbone: Any, strategy: MultitaskPrompt, *, seed: int = 1, train_head: bool = True) -> TaskPromptAdapter:
    adapter = attach(backbone, strategy, seed=seed, train_head=train_head)
    assert isinstance(adapter, TaskPromptAdapter)
    return adapter


def large_in_shaken(kind: str, *, train_head: bool = True, pooling: Any = "model", **fields: Any) -> TaskPromptAdapter:
    """Prompts that matter, in a backbone whose logits depend on the text."""
    backbone = tiny(kind, pooling=pooling)
    shake(backbone)
    adapter = prompted(backbone, method(**fields), train_head=train_head)
    large(adapter.vectors)
    return adapter


@pytest.mark.parametrize("pooling", ["model", "mean"])
@pytest.mark.parametrize("position", ["before", "after_first"])
def test_each_row_is_read_with_its_own_tasks_prompt(position: Any, pooling: Any) -> None:
    backbone = large_in_shaken("bert", pooling=pooling, position=position).backbone
    ids, mask = batch()
    mixed = backbone(ids, mask, TASK_IDS)
    for task in range(3):
        alone = large_in_shaken("bert", pooling=pooling, position=position, task=task).backbone
        rows = task == TASK_IDS
        torch.testing.assert_close(mixed[rows], alone(ids[rows], mask[rows]), atol=1e-5, rtol=0)
        assert (mixed[~rows] - alone(ids[~rows], mask[~rows])).abs().max() > 1e-2, "the task must matter"


def test_prompts_of_one_task_are_for_all_rows() -> None:
    for strategy in (PromptTuning(length=4), method(num_tasks=1)):
        backbone = tiny("bert")
        attach(backbone, strategy, seed=1)
        assert torch.equal(backbone(*batch(), TASK_IDS), backbone(*batch()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_against_hf_peft(kind: str) -> None:
    adapter = large_in_shaken(kind, train_head=False)
    backbone = adapter.backbone
    config = peft.MultitaskPromptTuningConfig(task_type="SEQ_CLS", num_tasks=3, **SIZES)
    plain = tiny(kind)
    shake(plain)
    oracle = peft.get_peft_model(copy.deepcopy(plain.model), config).eval()
    own, other = adapter.vectors, dict(oracle.prompt_encoder["default"].named_parameters())
    assert len(other) == 3
    pairs = [(mine, other[THEIR_NAMES[name]]) for name, mine in own.named_parameters()]
    with torch.no_grad():
        for mine, theirs in pairs:
            theirs.copy_(mine)
    ids, mask = batch()
    if kind in DECODERS:  # theirs classify a padded batch from the wrong token
        ids, mask = ids[:, :9], mask[:, :9]
    labels = torch.tensor([0, 1, 2, 1])
    logits = backbone(ids, mask, TASK_IDS)
    expected = oracle(input_ids=ids, attention_mask=mask, task_ids=TASK_IDS).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    F.cross_entropy(logits, labels).backward()
    F.cross_entropy(expected, labels).backward()
    for mine, theirs in pairs:
        assert mine.grad is not None
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=0)


# -- transfer ----------------------------------------------------------------------------------------


def saved_source(folder: Path, *, tasks: bool = True, **fields: Any) -> dict[str, torch.Tensor]:
    """A run folder with a trained prompt of three tasks; returns P*, U and V."""
    backbone = tiny("bert")
    fingerprint = backbone_fingerprint(backbone)
    adapter = prompted(backbone, method(**fields), seed=3)
    large(adapter.vectors, seed=8)
    write_source(folder, adapter, fingerprint, tasks=tasks)
    return adapter.inference_prompt()


def write_source(folder: Path, adapter: Adapter, fingerprint: str, *, tasks: bool = True) -> None:
    folder.mkdir()
    state = {name: tensor.contiguous() for name, tensor in adapter.state_dict().items()}
    save_file(state, folder / "adapter.safetensors")
    name = adapter.strategy.name
    facts: dict[str, Any] = {"run": "k", "method": name, "backbone": {}, "backbone_fingerprint": fingerprint}
    if tasks:
        facts["tasks"] = [{"name": name, "classes": [2 * i, 2 * i + 2]} for i, name in enumerate(("a", "b", "c"))]
    (folder / "adapter.json").write_text(json.dumps(facts))
    (folder / "record.json").write_text("{}")


def started(source: Path, **fields: Any) -> tuple[TaskPromptAdapter, dict[str, torch.Tensor]]:
    """A prompt that starts from ``source``, and as it is without."""
    backbone = tiny("bert")
    fingerprint = backbone_fingerprint(backbone)
    adapter = prompted(backbone, method(**{"num_tasks": 1, "source": str(source), **fields}))
    fresh = adapter.inference_prompt()
    adapter.load_source(fingerprint)
    return adapter, fresh


@pytest.mark.parametrize(
    ("fields", "theirs"),
    [
        ({}, {"prompt_tuning_init": HFInit.AVERAGE_SOURCE_TASKS}),
        ({"source_init": "shared"}, {"prompt_tuning_init": HFInit.ONLY_SOURCE_SHARED}),
        (
            {"source_init": "exact", "source_task": "c"},
            {"prompt_tuning_init": HFInit.EXACT_SOURCE_TASK, "prompt_tuning_init_task": 2},
        ),
        (
            {"source_init": "exact", "source_task": 1},
            {"prompt_tuning_init": HFInit.EXACT_SOURCE_TASK, "prompt_tuning_init_task": 1},
        ),
    ],
)
def test_the_start_is_hf_pefts(tmp_path: Path, fields: dict[str, Any], theirs: dict[str, Any]) -> None:
    source = saved_source(tmp_path / "source")
    save_file({name: tensor.contiguous() for name, tensor in source.items()}, tmp_path / "prompt.safetensors")
    config = peft.MultitaskPromptTuningConfig(
        task_type="SEQ_CLS", num_tasks=1, **SIZES, **theirs,
        prompt_tuning_init_state_dict_path=str(tmp_path / "prompt.safetensors"),
    )  # fmt: skip
    oracle = peft.get_peft_model(tiny("bert").model, config).prompt_encoder["default"]
    adapter, fresh = started(tmp_path / "source", **fields)
    for name, mine in adapter.vectors.named_parameters():
        if fields.get("source_init") == "shared" and name != SHARED:
            assert torch.equal(mine, fresh[name]), "the matrices start anew"
        else:
            assert torch.equal(mine, dict(oracle.named_parameters())[THEIR_NAMES[name]])
            assert not torch.equal(mine, fresh[name])
        assert mine.requires_grad
    assert adapter.backbone.provenance["prompt_source"]["tasks"] == ["a", "b", "c"]


def test_every_new_task_starts_the_same(tmp_path: Path) -> None:
    source = saved_source(tmp_path / "source", tasks=False)
    adapter, _ = started(tmp_path / "source", num_tasks=2)
    cols = adapter.vectors.prefix_task_cols
    assert isinstance(cols, torch.Tensor)
    torch.testing.assert_close(cols.detach(), source[COLS].mean(dim=0).expand(2, -1, -1))
    assert adapter.backbone.provenance["prompt_source"]["tasks"] == ["0", "1", "2"]


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    saved_source(folder)
    for fields, said in (
        ({"length": 7}, rf"peft\.source=.* length {N}, rank {RANK}, 32 dimensions, and this run one of length 7"),
        ({"rank": 1}, rf"rank {RANK}, .* rank 1, .*source_init=shared"),
        ({"source_init": "exact", "source_task": "d"}, r"peft\.source_task=d.* It has: a, b, c"),
        ({"source_init": "exact", "source_task": 3}, r"peft\.source_task=3.* It has: a, b, c"),
    ):
        with pytest.raises(PeftlabError, match=said):
            started(folder, **fields)  # type: ignore[arg-type]
    started(folder, rank=1, source_init="shared")  # the shared prompt has no rank
    elsewhere = prompted(tiny("bert", seed=9), method(num_tasks=1, source=str(folder)))
    with pytest.raises(PeftlabError, match="other weights than this run's backbone"):
        elsewhere.load_source(backbone_fingerprint(tiny("bert", seed=9)))
    plain = tiny("bert")
    fingerprint = backbone_fingerprint(plain)
    write_source(tmp_path / "lora", attach(plain, LoRA(), seed=0), fingerprint)
    with pytest.raises(PeftlabError, match=r"peft=lora, which has no prompt that tasks share"):
        started(tmp_path / "lora")
    (folder / "adapter.safetensors").write_bytes(b"damaged")
    with pytest.raises(PeftlabError, match=r"peft\.source=.*cannot be read"):
        started(folder)
    with pytest.raises(ConfigError, match=r"peft\.source=nowhere: .*no record\.json"):
        method(source="nowhere").files()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"source_init": "shared"}, "give peft.source"),
        ({"source_task": "a"}, "give peft.source"),
        ({"source": "x", "source_init": "exact"}, "goes with peft.source_init=exact"),
        ({"source": "x", "source_task": "a"}, "goes with peft.source_init=exact"),
        ({"source": "x", "init": "random"}, "peft.init=random has no effect"),
    ],
)
def test_contradictory_fields(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MultitaskPrompt(**fields)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=multitask", "peft.num_tasks=3"], ["peft.num_tasks=3", "2 tasks", "peft.num_tasks=null"]),
        (["data=multitask", "peft.task=1"], ["peft.task=1", "has no effect"]),
        (["peft.task=1"], ["peft.task=1", "one task"]),
        (["peft.source=nowhere"], ["peft.source=nowhere", "record.json"]),
        (
            ["data=multitask", "peft=compose", "peft.methods=[bitfit,{name: multitask_prompt, num_tasks: 3}]"],
            ["check: peft.methods[1].num_tasks=3", "2 tasks"],
        ),
    ],
    ids=lambda part: " ".join(part),
)
def test_wrong_numbers_of_tasks_are_told_at_once(peftlab: Peftlab, overrides: list[str], said: list[str]) -> None:
    result = peftlab("check", "peft=multitask_prompt", *overrides)
    assert result.status == 2
    for part in said:
        assert part in result.err


def test_the_tasks_are_counted(scratch: Path, reviews: Path) -> None:
    def key(*more: str) -> str:
        return run_key(checked([*overrides(reviews, write_topics(scratch)), "peft=multitask_prompt", *more]))

    assert key() == key("peft.num_tasks=2")
    one = checked(["data=text_files", f"data.path={reviews}", "peft=multitask_prompt"])
    assert isinstance(one.peft, MultitaskPrompt)
    assert one.peft.num_tasks == 1
    compose = checked([*overrides(reviews, write_topics(scratch)), "peft=compose", "peft.methods=[multitask_prompt]"])
    assert compose.plain()["peft"]["methods"][0]["num_tasks"] == 2


def reassembled(folder: RunFolder) -> TaskPromptAdapter:
    adapter = reassemble(folder, finished_run(str(folder.path))[1])[0].adapter
    assert isinstance(adapter, TaskPromptAdapter)
    return adapter


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_what_one_task_needs_is_kept_of_several(kind: str) -> None:
    ids, mask = batch()
    for task in range(3):
        adapter = large_in_shaken(kind, task=0)
        expected = adapter.backbone(ids, mask, torch.full((len(ids),), task))
        adapter.keep_task(task)
        assert torch.equal(adapter.backbone(ids, mask), expected)
        assert adapter.num_parameters() == N * 32 + RANK * (N + 32)
        assert adapter.backbone.task_prompts == 1
        adapter.keep_task(task)  # of a single prompt, all
        assert torch.equal(adapter.backbone(ids, mask), expected)


def test_transfer_from_run_to_run(peftlab: Peftlab, scratch: Path, reviews: Path) -> None:
    prompt = ["peft=multitask_prompt", "peft.length=4", "trainer.max_epochs=1"]
    assert peftlab("train", *overrides(reviews, write_topics(scratch)), *prompt, "name=source").status == 0
    [record] = Path("outputs").glob("source/*/record.json")
    source = record.parent
    tiny_run = ["data=text_files", f"data.path={reviews}", "backbone=tiny", "logger=none", "data.max_length=48"]
    result = peftlab("train", *tiny_run, *prompt, f"peft.source={source}", "name=target", "optim.lr=1e-30")
    assert result.status == 0, result.err
    [record] = Path("outputs").glob("target/*/record.json")
    target, config, facts = finished_run(str(record.parent))
    assert facts["backbone"]["prompt_source"]["run"] == source.name
    # With next to no learning rate it ends where it started: at the source's shared prompt and mean matrices.
    theirs, ours = (reassembled(folder).vectors.state_dict() for folder in (finished_run(str(source))[0], target))
    assert torch.equal(ours[SHARED], theirs[SHARED])
    for name in (COLS, ROWS):
        torch.testing.assert_close(ours[name], theirs[name].mean(dim=0, keepdim=True))

    def key(path: Path | None) -> str:
        return run_key(checked([*tiny_run, *prompt, *([] if path is None else [f"peft.source={path}"])]))

    shutil.copytree(source, "moved")
    assert key(Path("moved")) == key(source) != key(None)
    # Copied together they find each other, in a place where the old path leads nowhere.
    shutil.copytree(source, f"together/{source.name}")
    shutil.copytree(target.path, f"together/{target.path.name}")
    source.rename("hidden")
    assert peftlab("verify", f"together/{target.path.name}", "--rerun-eval").status == 0
    Path("hidden").rename(source)
    # The target's folder is enough to use it, whatever became of the source.
    shutil.rmtree(source)
    again = json.loads(peftlab("evaluate", target.path, "--json").out)
    assert again["metrics"]["accuracy"] == facts["metrics"]["test"]["accuracy"]
    assert config.peft.name == "multitask_prompt"
