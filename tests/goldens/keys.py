"""Configs whose run keys are kept in keys.json: every file of conf/, and fields away from their defaults.

A key names the folder of a run, so a changed key means that finished runs are trained again. Computing one imports no
torch and needs no network; what a config reads from files is written by :func:`write_files`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from peftlab.composition import checked
from peftlab.records.identity import run_key
from peftlab.shipped import config_folder
from tests.goldens.changed import spelled_as_then

KEYS = Path(__file__).with_name("keys.json")

_FILES = ("data=text_files", "data.path={folder}/reviews.jsonl")
"""``{folder}`` is where the files are. The default data is 25,000 reviews, which would have to be hashed."""


def _peft(*overrides: str) -> tuple[str, ...]:
    return (*_FILES, "backbone=tiny", *overrides)


_METHODS: tuple[tuple[str, ...], ...] = (
    ("peft=adalora",),
    ("peft=adalora", "peft.rank=4", "peft.initial_rank=6", "peft.alpha=8", "peft.interval=5", "peft.warmup_fraction=0"),
    ("peft=adalora", "peft.beta1=0.5", "peft.beta2=0.6", "peft.orthogonality=0.1", "peft.final_fraction=0.2"),
    ("peft=bitfit",),
    ("peft=bitfit", "peft.targets=[query, ffn_up]"),
    ("peft=compose",),
    ("peft=compose", "peft.methods=[lora, bitfit]"),
    ("peft=compose", "peft.methods=[{name: lora, rank: 4}, bitfit]"),
    ("peft=compose", "peft.methods=[bitfit, {name: lora, rank: 4}]"),
    ("peft=compose", "peft.methods=[{name: lora, rank_pattern: {ffn_up: 2}, targets: [query, ffn_up]}, layernorm]"),
    ("peft=compose", "peft.methods=[{name: vera, rank: 16}, layernorm]"),
    ("peft=compose", "peft.methods=[{name: prefix_tuning, length: 5}, {name: parallel_adapter, learned_scale: true}]"),
    ("peft=compose", "peft.methods=[{_target_: peftlab.peft.lora.LoRA, rank: 2}, prompt_tuning, head]"),
    ("peft=compose", "peft.methods=[{name: import, path: '{folder}/adapter'}, bitfit]"),
    ("peft=dora",),
    ("peft=dora", "peft.dropout=0.1", "peft.dropout_mode=peft", "peft.detach_norm=false"),
    ("peft=dora", "+peft.rank_pattern.ffn_up=4", "peft.targets=[query, ffn_up]", "peft.rank_stabilized=true"),
    ("peft=dynamic_dora",),
    ("peft=dynamic_dora", "peft.initial_rank=16", "peft.beta=0.5", "peft.equilibrium=0", "peft.interval=3"),
    ("peft=full",),
    ("peft=head",),
    ("peft=hf_peft",),
    ("peft=hf_peft", "peft.peft_type=LOHA", "~peft.options.oft_block_size", "+peft.options.r=8"),
    ("peft=hf_peft", "peft.options={oft_block_size: 8, target_modules: [query, value]}"),
    ("peft=houlsby",),
    ("peft=houlsby", "peft.reduction_factor=null", "peft.bottleneck=8", "peft.activation=relu", "peft.init=normal"),
    ("peft=houlsby", "peft.layer_norm=true", "peft.bias=false", "peft.dropout=0.1"),
    ("peft=ia3",),
    ("peft=ia3", "peft.targets=[key, value, ffn_down]", "peft.feedforward_targets=[ffn_down]"),
    ("peft=import", "peft.path={folder}/adapter"),
    ("peft=import", "peft.path={folder}/adapter", "peft.head=new", "+peft.changes.dropout=0.1"),
    ("peft=import", "peft.path={folder}/adapter_and_head"),
    ("peft=last_layers",),
    ("peft=last_layers", "peft.layers=1", "peft.final_norm=true"),
    ("peft=layernorm",),
    ("peft=layernorm", "peft.biases=false", "peft.targets=['.*attention.*LayerNorm']"),
    ("peft=lora",),
    ("peft=lora", "peft.rank=4", "peft.alpha=32", "peft.dropout=0.1", "peft.targets=[query, key, value, embedding]"),
    ("peft=lora", "peft.lr_ratio=16"),
    ("peft=lora", "peft.freeze_A=true"),
    ("peft=lora", "peft.init=pissa", "peft.rank_stabilized=true"),
    ("peft=lora", "peft.init=orthogonal", "peft.bias=all"),
    ("peft=lora", "peft.bias=lora_only"),
    ("peft=lora", "peft.rank_pattern={ffn_up: 4, query: 16}", "peft.targets=[query, ffn_up]"),
    ("peft=lora", "+peft.alpha_pattern.value=2.5"),
    ("peft=multitask_prompt",),
    ("peft=multitask_prompt", "peft.num_tasks=3", "peft.task=1", "peft.rank=2", "peft.position=after_first"),
    ("peft=multitask_prompt", "peft.source={folder}/earlier", "peft.source_init=exact", "peft.source_task=1"),
    ("peft=p_tuning",),
    ("peft=p_tuning", "peft.encoder=lstm", "peft.layers=1", "peft.hidden=16", "peft.length=5"),
    ("peft=p_tuning_v2",),
    ("peft=p_tuning_v2", "peft.reparameterize=true", "peft.hidden=64", "peft.dropout=0.1", "peft.length=5"),
    ("peft=parallel_adapter",),
    ("peft=parallel_adapter", "peft.targets=[ffn, attention]", "peft.learned_scale=true", "peft.scale=1"),
    ("peft=parallel_adapter", "peft.targets=[query, ffn_up]", "peft.reduction_factor=8", "peft.layer_norm=true"),
    ("peft=parameters",),
    ("peft=parameters", "peft.patterns=['.*bias', '.*LayerNorm.*']"),
    ("peft=pfeiffer",),
    ("peft=pfeiffer", "peft.targets=[attention_output]", "peft.reduction_factor=2", "peft.activation=tanh"),
    ("peft=prefix_tuning",),
    ("peft=prefix_tuning", "peft.reparameterize=false", "peft.position_shift=true", "peft.length=7"),
    ("peft=prompt_tuning",),
    ("peft=prompt_tuning", "peft.init=text", "peft.init_text='good or bad'", "peft.position=before"),
    ("peft=vera",),
    ("peft=vera", "peft.rank=16", "peft.d_initial=0.01", "peft.projection_seed=5", "peft.dropout=0.1"),
)

_TASKS = (
    "data.tasks=[{task: reviews, name: text_files, path: '{folder}/reviews.jsonl'},"
    "{task: topics, name: text_files, path: '{folder}/topics.csv', limit_train: 20}]"
)

CONFIGS: tuple[tuple[str, ...], ...] = (
    *(_peft(*method) for method in _METHODS),
    # -- the defaults, and the data sets
    (),
    ("data=bbc_news",),
    ("data=bbc_news", "data.holdout_fraction=0.3", "data.limit_train=100", "data.truncation=head_and_tail"),
    ("data=ag_news",),
    ("data=ag_news", "data.hub_revision=abc", "data.limit_train=100", "data.limit_val=10", "data.limit_test=10"),
    ("data=ag_news", "data.source=local", "data.path={folder}/official"),
    ("data=glue",),
    ("data=glue", "data.task=rte", "data.max_length=64"),
    ("data=imdb",),
    ("data=imdb", "data.source=local", "data.path={folder}/official"),
    ("data=multitask", "peft=multitask_prompt"),
    ("data=multitask", _TASKS),
    ("data=multitask", _TASKS, "peft=multitask_prompt", "data.mixing=square_root", "data.epoch_rows=64"),
    ("data=text_files", "data.path={folder}/topics.csv"),
    ("data=text_files", "data.path={folder}/official"),
    (
        "data=text_files", "data.train={folder}/official/train.csv", "data.test={folder}/official/test.csv",
        "data.label_column=topic", "data.text_column=body", "data.second_column=rest", "data.labels=[a, b]",
    ),
    (*_FILES, "data.val_fraction=0.2", "data.split_seed=3", "data.order_seed=4", "data.batch_size=4"),
    (*_FILES, "data.group_by_length=false", "data.eval_batch_size=7", "data.max_length=99"),
    # -- backbones
    *((*_FILES, f"backbone={name}") for name in (
        "bert_base", "deberta_v3_base", "distilbert", "gpt2", "llama", "minilm", "roberta_base", "roberta_large",
        "smollm2_135m", "text_classifier", "tiny",
    )),
    (*_FILES, "backbone=tiny", "backbone.architecture.hidden_size=16", "backbone.architecture.model_type=roberta"),
    (*_FILES, "backbone=tiny", "backbone.quantize=nf4"),
    (*_FILES, "backbone=tiny", "backbone.quantize=int8", "backbone.dtype=bfloat16"),
    (*_FILES, "backbone=tiny", "backbone.train_head=false", "backbone.dropout=0", "backbone.attention=eager"),
    (*_FILES, "backbone=bert_base", "backbone.revision=abc", "backbone.pooling=mean", "backbone.quantize=fp4"),
    (*_FILES, "backbone=bert_base", "backbone.name_or_path={folder}/model"),
    (*_FILES, "backbone=text_classifier", "backbone.embedding_dim=8", "backbone.hidden_dim=4", "backbone.min_count=2"),
    (*_FILES, "backbone=text_classifier", "backbone.glove={folder}/glove.txt", "backbone.embedding_dim=3"),
    (*_FILES, "backbone=text_classifier", "backbone.from_run={folder}/earlier"),
    (*_FILES, "backbone=tiny", "backbone.from_run={folder}/earlier", "measure_forgetting=true"),
    # -- optimizers and schedules
    *((*_FILES, "backbone=tiny", f"optim={name}") for name in (
        "adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "sgd",
    )),
    (*_FILES, "backbone=tiny", "optim.lr=3e-4", "optim.weight_decay=0.01", "optim.eps=1e-6", "optim.beta2=0.98"),
    (*_FILES, "backbone=tiny", "optim=sgd", "optim.momentum=0.9", "optim.nesterov=true"),
    *((*_FILES, "backbone=tiny", f"schedule={name}") for name in ("constant", "cosine", "linear", "step")),
    (*_FILES, "backbone=tiny", "schedule=cosine", "schedule.final_factor=0.1", "schedule.warmup_fraction=0.5"),
    (*_FILES, "backbone=tiny", "schedule=step", "schedule.gamma=0.5", "schedule.every_epochs=2"),
    # -- trainers, and what is no part of a key
    *((*_FILES, "backbone=tiny", f"trainer={name}") for name in ("ddp", "default", "gpu")),
    (*_FILES, "backbone=tiny", "trainer.max_steps=7", "trainer.accumulate_grad_batches=2", "trainer.select=last"),
    (*_FILES, "backbone=tiny", "trainer.monitor=loss", "trainer.early_stopping_patience=2", "trainer.threads=1"),
    (*_FILES, "backbone=tiny", "trainer.label_smoothing=0.1", "trainer.gradient_clip_norm=0", "trainer.precision=16"),
    *((*_FILES, "backbone=tiny", f"logger={name}") for name in ("csv", "none", "tensorboard", "wandb")),
    (*_FILES, "backbone=tiny", "logger=wandb", "logger.tags=[a]", "name=other", "output_dir=there", "force=true"),
    (*_FILES, "backbone=tiny", "seed=17"),
    # -- recipes
    ("experiment=first_run",),
    ("experiment=first_run", "seed=1", "trainer.threads=1"),
    ("experiment=lecture_lora", "backbone.from_run={folder}/earlier"),
    ("experiment=lecture_lora", "backbone.from_run={folder}/earlier", *_FILES),
    ("experiment=lecture_pretrain",),
    ("experiment=lecture_pretrain", "data=bbc_news", "backbone.glove={folder}/glove.txt"),
    ("experiment=lecture_transformer",),
    ("experiment=lecture_transformer", "backbone=minilm", "data=imdb_packaged"),
    (*_FILES, "backbone=tiny", "debug=fast"),
    # -- what came later, at the end
    ("data=hub", "data.id=some/reviews"),
    (*_FILES, "backbone=hf", "backbone.name_or_path=some/bert"),
    (*_FILES, "backbone=tiny", "trainer=fsdp"),
    ("data=instructions", "data.path={folder}/reviews.jsonl"),
    ("data=text", "data.path={folder}/reviews.jsonl", "data.stride=8"),
    ("experiment=trec_instructions", "data.path={folder}/official"),
    ("data=multiple_choice", "data.path={folder}/reviews.jsonl", "data.options=[bad,good]", "data.answer_column=label"),
    (*_FILES, "backbone=tiny", "peft=loreft"),
    (*_FILES, "backbone=tiny", "peft=lora", "peft.init=lora_ga", "peft.gradient_batches=2"),
    (*_FILES, "backbone=tiny", "peft=compose", "peft.methods=[{name: lora, init: lora_ga, gamma: 4}, bitfit]"),
    ("experiment=qlora", "data.path={folder}/reviews.jsonl"),
    (*_FILES, "backbone=tiny", "trainer=cpu"),
    ("data=gsm8k",),
    ("data=alpaca",),
    ("data=e2e_nlg",),
    ("data=wikitext2",),
    ("data=wikitext103",),
    ("data=commonsense_170k",),
    ("data=boolq",),
    ("data=piqa",),
    ("data=siqa",),
    ("data=hellaswag",),
    ("data=winogrande",),
    ("data=arc_easy",),
    ("data=arc_challenge",),
    ("data=openbookqa",),
    (*_FILES, "backbone=tiny", "logger=several"),
    ("experiment=rte_instructions", "data.path={folder}/official"),
)  # fmt: skip

PATH_IS_PART_OF_THE_KEY = ("backbone.name_or_path=", "backbone.glove=", "peft.methods=")
"""Fields whose path enters the key beside the content of the file: the same files elsewhere are another run.

So it is, and the goldens hold it fast by relative paths. (``peft.methods`` with an ``import`` among them; the path of
``peft=import`` alone does not count.)
"""

LEFT_OUT = {"hydra"}
"""Groups of conf/ that are no part of a run."""


def options() -> set[str]:
    """``group=file`` of every file in conf/."""
    return {
        f"{path.parent.name}={path.stem}"
        for path in config_folder().glob("*/*.yaml")
        if path.parent.name not in LEFT_OUT
    }


def write_files(folder: Path) -> None:
    """Write into ``folder`` what the configs read; nothing of it is a real model or a real run."""
    rows = [(f"a {'good' if i % 2 else 'bad'} film {i}", ("bad", "good")[i % 2]) for i in range(20)]
    csv = "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    adapter = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query", "value"]})
    earlier = {"run": "0123456789ab", "backbone_fingerprint": "00ff" * 16}
    files = {
        "reviews.jsonl": "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows),
        "topics.csv": csv.replace("film", "match"),
        "official/train.csv": csv,
        "official/test.csv": csv.replace("film", "story"),
        "glove.txt": "film 0.1 0.2 0.3\n",
        "adapter/adapter_config.json": adapter,
        "adapter/adapter_model.safetensors": "weights",
        "adapter_and_head/adapter_config.json": adapter,
        "adapter_and_head/adapter_model.safetensors": "weights",
        "adapter_and_head/head.safetensors": "a head",
        "earlier/record.json": "{}",
        "earlier/adapter.json": json.dumps(earlier),
        "earlier/adapter.safetensors": "trained",
        "model/config.json": '{"model_type": "bert"}',
        "model/model.safetensors": "weights of a model",
        "model/tokenizer.json": "{}",
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())


def key_of(overrides: Sequence[str], folder: Path | str = ".") -> str:
    """The key of a config whose files are in ``folder``, its values spelled as when the goldens were made."""
    config = checked([override.replace("{folder}", str(folder)) for override in overrides])
    return run_key(spelled_as_then(config, overrides))


def make() -> None:
    """Write keys.json; the current folder is scratch."""
    write_files(Path())
    lines = [f"  {json.dumps([*overrides, key_of(overrides)], ensure_ascii=False)}" for overrides in CONFIGS]
    KEYS.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{KEYS}: {len(lines)} keys")
