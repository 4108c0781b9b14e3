"""A run on a DataFrame, as `peftlab train` makes it: a folder, a record, the same bits again.

    python examples/fit_dataframe.py

Here the backbone is a tiny random one; leave `backbone=tiny` out for MiniLM.
"""

import random

import pandas as pd

from peftlab import fit, load_run

GOOD = ["a fine and moving film", "great acting", "a wonderful story", "I loved it", "superb and funny"]
BAD = ["a dull and empty film", "awful acting", "a terrible story", "I hated it", "boring and long"]

draw = random.Random(7)
rows = [(f"{draw.choice((BAD, GOOD)[label])}, {draw.choice((BAD, GOOD)[label])}", label) for label in [0, 1] * 60]
reviews = pd.DataFrame({"review": [text for text, _ in rows], "opinion": [("bad", "good")[label] for _, label in rows]})

words = ("backbone=tiny", "peft=lora", "optim.lr=1e-2", "trainer.max_epochs=3", "data.max_length=64", "logger=none")
columns = ("data.text_column=review", "data.label_column=opinion")

run = fit(*words, *columns, data=reviews, name="dataframe", seed=1)
print(run)
print(run.metrics[["train/loss", "validation/loss", "validation/accuracy"]])
for found in run.predict(["a fine story", "boring acting"]):
    print(found)

# The same rows and words are the same run: it is found, not trained again, by another process too.
assert fit(*words, *columns, data=reviews, name="dataframe", seed=1).key == run.key

# Its folder is enough to predict with it.
assert load_run(run.folder).predict(["a fine story"]) == run.predict(["a fine story"])
