"""Each logger writes where it should, and W&B makes one finished run a job, offline and without an account."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from peftlab.interop.wandb_replay import tags
from peftlab.runs.finished import _not_logged
from peftlab.training.loggers import TensorBoard, WandB, kinds
from tests.conftest import TINY, Peftlab, run_folder


def train(peftlab: Peftlab, reviews: Path, *more: str) -> Path:
    arguments = [a for a in TINY if not a.startswith("logger")]
    result = peftlab(
        "train",
        *arguments,
        f"data.path={reviews}",
        "name=logged",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        *more,
    )
    assert result.status == 0, result.err
    return run_folder("logged")


def test_csv(peftlab: Peftlab, reviews: Path) -> None:
    (file,) = train(peftlab, reviews, "logger=csv").glob("logs/csv/*/metrics.csv")
    header, *rows = file.read_text().splitlines()
    assert {"train/loss_step", "validation/accuracy", "test/accuracy"} <= set(header.split(","))
    assert len(rows) > 20
    assert "name: logged" in (file.parent / "hparams.yaml").read_text()
    table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    steps = [row for row in table if row["train/gradient_norm"]]
    assert len(steps) == len([row for row in table if row["train/loss_step"]])
    assert all(float(row["train/gradient_norm"]) > 0 and float(row["train/memory_mib"]) > 100 for row in steps)
    rates = [float(row["train/lr"]) for row in steps]
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] < rates[len(rates) // 2]
    assert all(float(row["train/samples_per_second"]) > 0 for row in steps)


def test_tensorboard(peftlab: Peftlab, reviews: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    run = train(peftlab, reviews, "logger=tensorboard", "peft.targets=[query,value]")
    folder = run / "logs/tensorboard"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert len(events.Scalars("validation/accuracy")) == 2
    assert len(events.Scalars("train/lr")) == len(events.Scalars("train/gradient_norm")) > 2
    assert list(folder.rglob("hparams.yaml"))
    said = events.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(said[metadata.SESSION_START_INFO_TAG])
    end = metadata.parse_session_end_info_plugin_data(said[metadata.SESSION_END_INFO_TAG])
    values = {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in start.hparams.items()}
    expected = {"key": run.name, "peft": "LoRA", "peft.rank": 8, "peft.targets": '["query", "value"]', "seed": 0}
    expected |= {"optim.lr": 1e-3, "trainer.deterministic": True}
    assert {name: values.get(name) for name in expected} == expected
    assert not {"name", "output_dir", "logger"} & set(values)
    assert end.status == plugin_data_pb2.SessionEndInfo(status="STATUS_SUCCESS").status
    tested = json.loads((run / "record.json").read_text())["metrics"]["test"]["accuracy"]
    assert [event.value for event in events.Scalars("test/accuracy")] == pytest.approx([tested])


def test_a_folder_of_runs_is_a_table_of_tensorboard(tmp_path: Path) -> None:
    """What TensorBoard itself makes of two runs whose methods have other keys: a row each, with all keys of both."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.api_pb2 import ListSessionGroupsRequest
    from tensorboard.plugins.hparams.backend_context import Context
    from tensorboard.plugins.hparams.list_session_groups import Handler

    for key, method, accuracy in (("a1", {"rank": 4, "dropout": None}, 0.75), ("b2", {"bottleneck": 16}, 0.5)):
        config = {"peft": {"_target_": f"methods.{key}", **method}, "name": "n"}
        logger = TensorBoard().build(name="n", key=key, folder=tmp_path / key, config=config)
        logger.log_metrics({"test/accuracy": accuracy}, step=3)
        logger.finalize("success")
    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = Context(TBContext(data_provider=provider, logdir=str(tmp_path)))
    request = RequestContext()
    known = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(
        request, "", True, known, provider.list_hyperparameters(request, experiment_ids=[""], limit=100)
    )
    assert {info.name for info in experiment.hparam_infos} == {"key", "peft", "peft.rank", "peft.bottleneck"}
    assert [info.name.tag for info in experiment.metric_infos] == ["test/accuracy"]
    asked = ListSessionGroupsRequest(slice_size=10, allowed_statuses=[1, 2, 3])
    rows = Handler(request, context, "", asked).run().session_groups
    assert {row.hparams["key"].string_value: row.metric_values[0].value for row in rows} == {"a1": 0.75, "b2": 0.5}


def test_several_at_once(peftlab: Peftlab, reviews: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = "logger.loggers=[csv,{name: wandb, mode: offline, tags: [mine]}]"
    folder = train(peftlab, reviews, "logger=several", chosen)
    assert list(folder.glob("logs/csv/*/metrics.csv"))
    assert list((folder / "logs/wandb").glob("offline-run-*"))
    record = json.loads((folder / "record.json").read_text())
    assert "mine" in tags(record)
    arguments = [a for a in TINY if not a.startswith("logger")]
    again = [*arguments, f"data.path={reviews}", "name=logged", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]
    assert "It has nothing" not in peftlab("train", *again, "logger=wandb").out
    said = peftlab("train", *again, "logger=tensorboard").out
    assert "is finished already" in said
    assert "nothing for tensorboard: it ran with logger csv, wandb" in said
    assert "wandb-sync" not in said


def test_what_a_finished_run_lacks() -> None:
    several = {"_target_": "peftlab.training.loggers.Several", "loggers": [{"name": "csv"}, {"_target_": "mine.Own"}]}
    assert kinds(several) == ["csv", "Own"]
    assert kinds({"_target_": "peftlab.training.loggers.WandB", "project": "p"}) == ["wandb"]
    assert kinds({"_target_": "peftlab.training.loggers.NoLogger"}) == kinds({}) == []
    config, folder = SimpleNamespace(logger=WandB()), SimpleNamespace(path=Path("outputs/my runs/a1"))
    record = {"status": "finished", "config": {"logger": {"_target_": "peftlab.training.loggers.CSV"}}}
    said = _not_logged(config, folder, record)  # type: ignore[arg-type]
    assert "nothing for wandb: it ran with logger csv" in said
    assert "force=true" in said
    assert "peftlab wandb-sync 'outputs/my runs/a1'." in said
    record["config"] = {"logger": {"_target_": "peftlab.training.loggers.WandB"}}
    assert _not_logged(config, folder, record) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_wandb_offline(peftlab: Peftlab, reviews: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))  # no login here
    folder = train(peftlab, reviews, "logger=wandb", f"logger.mode={mode}")
    (run,) = (folder / "logs/wandb").glob("offline-run-*")
    assert run.name.endswith(folder.name), "the run's id is its key"
    (file,) = run.glob("*.wandb")
    assert file.stat().st_size > 0
    assert wandb.run is None, "finished, so the next job in this process starts its own"


def test_wandb_without_a_login_is_one_line(peftlab: Peftlab, reviews: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    words = [word for word in TINY if not word.startswith("logger")]
    told = peftlab("train", *words, f"data.path={reviews}", "logger=wandb", "logger.mode=online")
    assert told.status == 2
    assert "logger.mode=online: W&B says: No API key configured." in told.err
    assert "logger.mode=offline" in told.err
    assert "Traceback" not in told.err


def test_none(peftlab: Peftlab, reviews: Path) -> None:
    assert not (train(peftlab, reviews, "logger=none") / "logs").exists()
