"""Starter specs that ``pmray init`` prints: complete, commented, and checked by the tests."""

from __future__ import annotations

from pmray import plugins
from pmray.errors import SpecError

CHOICE = (
    "# What to try, on what, and how to decide. `pmray plan FILE` shows what this runs; `pmray sweep FILE` runs it.\n"
)
ADAPTATION = "# Which models go on learning language, and from what. `pmray pretrain FILE` runs it.\n"

BEGINNING = """\
# Paths are relative to the folder you start pmray in; ~ and ${VARIABLES} are expanded.
task: {task}

"""

TEXT = """\
data:
  train: data/train.csv            # csv, tsv, jsonl, parquet, arrow; file, glob, folder or URL (s3://...); or hub:NAME
  validation: 0.15                 # guides the search: a path, or the fraction of train to split off (stratified)
  test: 0.2                        # decides, and is opened once at the end: a path or a fraction
  columns:                         # role: name of your column
    text: text
    label: label                   # a list of labels in each row makes it multi-label
    # text_pair: second_text       # for pairs of texts
    # group: author                # rows of one group never fall on both sides of a split
  # positive_label: spam           # two labels: whose own F1 is reported too (default: the rarer one)
  # bad_rows: drop                 # default: error, which names them

candidates:                        # Hub id[@revision], a folder, or package:NAME/folder
  - google-bert/bert-base-uncased
  - FacebookAI/roberta-base
  - model: sentence-transformers/all-MiniLM-L6-v2
    layers: 3                      # only its first three layers: cheaper
    # recipe: {lr: 1.0e-4}         # differs from the default recipe; tried first
    # space: {lr: {log: [1.0e-5, 3.0e-4]}, batch_size: {choice: [16, 32]}
    # resources: {workers: 2, cpus_per_worker: 1, gpus_per_worker: 0}

# score: f1_macro                  # what decides (default: f1_macro; f1_micro for multi-label)

"""

TOKENS = """\
data:
  train: data/train.jsonl          # csv, tsv, jsonl, parquet, arrow; file, glob, folder or URL (s3://...); or hub:NAME
  validation: 0.15                 # guides the search: a path, or the fraction of train to split off (stratified)
  test: 0.2                        # decides, and is opened once at the end: a path or a fraction
  columns:                         # role: name of your column
    words: tokens                  # lists of words, or texts
    label: ner_tags                # as many tags (BIO, BIOES, BILOU or IO), or spans: [{start: 0, end: 5, label: PER}]
    # group: document              # rows of one group never fall on both sides of a split
  # bad_rows: drop                 # default: error, which names them

candidates:                        # Hub id[@revision], a folder, or package:NAME/folder
  - google-bert/bert-base-cased
  - FacebookAI/roberta-base
  - model: distilbert/distilbert-base-cased
    # recipe: {lr: 5.0e-5}         # differs from the default recipe; tried first
    # space: {lr: {log: [1.0e-5, 1.0e-4]}, batch_size: {choice: [16, 32]}}
    # resources: {workers: 2, cpus_per_worker: 1, gpus_per_worker: 0}

# score: span_f1                   # what decides (default: micro F1 of whole spans, as seqeval's)

"""

IMAGES = """\
data:
  train: data/train                # a folder of class folders; or a table (csv, parquet ...) with paths or bytes
  validation: 0.15                 # guides the search: a path, or the fraction of train to split off (stratified)
  test: 0.2                        # decides, and is opened once at the end: a path or a fraction
  # columns:                       # of a table: role: name of your column
    # image: file_name             # relative paths begin at the table
    # label: label                 # a list of labels in each row makes it multi-label
    # group: patient               # rows of one group never fall on both sides of a split
  # bad_rows: error                # default: images that cannot be read are dropped and counted

candidates:                        # Hub id[@revision], a folder, or package:NAME/folder
  - google/vit-base-patch16-224-in21k
  - google/mobilenet_v1_1.0_224
  - model: google/efficientnet-b0
    # recipe: {lr: 1.0e-3, augment: false}   # differs from the default recipe; tried first
    # space: {lr: {log: [1.0e-4, 3.0e-3]}}
    # resources: {workers: 2, cpus_per_worker: 1, gpus_per_worker: 0}

# score: f1_macro                  # what decides

"""

TEXTS = """\
data:
  train: data/texts/*.jsonl        # csv, tsv, jsonl, parquet, arrow; file, glob, folder or URL (s3://...); or hub:NAME
  validation: 0.05                 # picks the best weights: a path, or the fraction of train to split off
  test: 0.05                       # tells the perplexity in the end
  columns:                         # role: name of your column
    text: text
    # group: document              # rows of one group never fall on both sides of a split

candidates:                        # Hub id[@revision], a folder, or package:NAME/folder
  - google-bert/bert-base-uncased  # encoders predict masked tokens, decoders the next one
  - model: openai-community/gpt2
    # recipe: {epochs: 5, lr: 1.0e-4, max_length: 256}   # differs from the default recipe
    # resources: {workers: 2, cpus_per_worker: 1, gpus_per_worker: 0}

search:
  state_seconds: 30                # an interrupted fit goes on from its latest state

storage: runs                      # run folders with the adapted models, encoded data
"""

END = """\
search:
  trials: 16                       # fine-tuning runs; halving stops the weak ones early
  keep_after_rank: 0.5             # share of the candidates that is fine-tuned (at least three)
  finalists: 3                     # compared on the test rows...
  seeds: 3                         # ...with this many fits each
  # until_sure: true               # start no trial once the leaders can hardly change any more
  # experience: on                 # learn from earlier runs in `storage`, and for later ones
  # hours: 2                       # start no new trial after this

decide:
  alpha: 0.05
  prefer: latency                  # what wins among equals: latency, parameters, training or score
  # max_latency_ms: 20
  # max_parameters: 400M

storage: runs                      # run folders, encoded data, registry
"""

STARTERS = {
    "text-classification": CHOICE + BEGINNING + TEXT + END,
    "token-classification": CHOICE + BEGINNING + TOKENS + END,
    "image-classification": CHOICE + BEGINNING + IMAGES + END,
    "pretraining": ADAPTATION + BEGINNING + TEXTS,
}


def starter_spec(task: str) -> str:
    """Return a commented spec for a task.

    Raises:
        UnknownName: No such task.
        SpecError: A plug-in's task, which brings no starter.
    """
    plugins.task_class(task)
    if task not in STARTERS:
        raise SpecError(f"there is no starter for the plug-in task {task!r}; see its own documentation.")
    return STARTERS[task].replace("{task}", task)
