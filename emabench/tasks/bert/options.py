"""The configuration of task bert."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from emabench.config import Count, Fraction, Positive, Section


class FineTune(Section):
    """The classification that the weights are fine-tuned for: at the end of the run, on a copy of them.

    `replaced_token`: is a window as it was written, or are some of its tokens replaced? The others are GLUE's.
    """

    task: Literal["replaced_token", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"]
    test: Annotated[
        int, Field(ge=2)
    ]  # replaced_token: windows of the validation text that accuracy is measured on
    steps: Count
    batch_size: Count
    lr: Positive  # of AdamW; a tenth of the steps warm up, then it falls linearly to 0
    restarts: Count  # accuracies of so many fine-tunings are averaged


class Variance(Section):
    """Which weights are recorded along the run."""

    weights: Count  # how many of them
    steps: Annotated[int, Field(ge=8)]  # over so many steps at the end of the run
    lag: Count  # steps between the weights that ρ is measured from
    decays: float | list[float] | None  # of the averages whose variance is compared: those of the run


class Options(Section):
    """The model, the text and what is measured."""

    name: Literal["bert"]
    corpus: str  # topics, python, a text file, a folder, hub:<data set>[+<data set>]
    tokenizer: str | None  # a tokenizer.json or a name on the Hugging Face hub; null: trained on the corpus
    vocabulary: Annotated[int, Field(ge=300)]  # of a tokenizer that is trained here
    layers: Count
    hidden: Count
    heads: Count
    intermediate: Count
    length: Annotated[int, Field(ge=8)]  # tokens of a sequence
    dropout: Annotated[float, Field(ge=0, lt=1)]
    layer_norm: bool
    initial_sd: Positive  # of the weights drawn at the start
    masked: Fraction  # share of the tokens that are to be predicted
    validation_sequences: Count
    finetune: FineTune
    variance: Variance
