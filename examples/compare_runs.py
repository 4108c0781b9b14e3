"""A few runs, and the table of their records as a DataFrame.

    python examples/compare_runs.py

A declared sweep (`peftlab sweep`) does this for many runs at a time; `find_runs` reads its records as well.
"""

import random

from peftlab import find_runs, fit, load_run

GOOD = ["a fine and moving film", "great acting", "a wonderful story", "I loved it", "superb and funny"]
BAD = ["a dull and empty film", "awful acting", "a terrible story", "I hated it", "boring and long"]

draw = random.Random(7)
labels = [0, 1] * 60
texts = [f"{draw.choice((BAD, GOOD)[label])}, {draw.choice((BAD, GOOD)[label])}" for label in labels]
names = [("bad", "good")[label] for label in labels]

for rank in (1, 4):
    for seed in (0, 1):
        fit(
            "backbone=tiny", "logger=none", "data.max_length=64", "trainer.max_epochs=1", f"peft.rank={rank}",
            data=(texts, names), name="ranks", seed=seed,
        )  # fmt: skip

runs = find_runs("outputs/ranks")
print(runs[["peft.rank", "seed", "validation/accuracy", "test/accuracy", "trainable"]])
print(runs.groupby("peft.rank")["test/accuracy"].agg(["mean", "std", "count"]))

best = load_run(runs.sort_values("validation/accuracy").iloc[-1]["folder"])  # chosen on validation, not on test
print(best.predict(["a fine story"]))
