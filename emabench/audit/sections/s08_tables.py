"""§8: the tables of results, their arithmetic, and what is read off them."""

from __future__ import annotations

import math

import numpy as np

from emabench.audit.statement import (
    CONDITIONAL,
    EMPIRICAL,
    HOLDS,
    Effort,
    Form,
    Outcome,
    conditional,
    reported,
    statement,
    truth,
)
from emabench.audit.tools import percent, same_as_table

IMAGENET = {
    "sgd": {"top1": 76.1, "top5": 92.9},
    "ema99": {"top1": 76.4, "top5": 93.1},
    "ema999": {"top1": 76.5, "top5": 93.2},
    "swa": {"top1": 76.6, "top5": 93.3},
}
BERT = {
    "none": {"perplexity": 3.85, "finetune_accuracy": 84.2},
    "b9": {"perplexity": 3.82, "finetune_accuracy": 84.5},
    "b99": {"perplexity": 3.79, "finetune_accuracy": 84.8},
    "b999": {"perplexity": 3.77, "finetune_accuracy": 85.0},
    "b9999": {"perplexity": 3.76, "finetune_accuracy": 85.1},
}
LATENT = {"none": (12.5, 28.3), "0.999": (10.8, 32.1), "0.9999": (9.6, 35.2)}


@statement(
    "8.1-table",
    section="8.1",
    says="ResNet-50 on ImageNet: top-1 76.1, 76.4, 76.5, 76.6 with SGD, EMA 0.99, EMA 0.999, SWA.",
    verdict=EMPIRICAL,
    method="the numbers against those that the table judges",
    printed=IMAGENET,
    table="imagenet_resnet50",
)
def imagenet_numbers(rows: Form, effort: Effort) -> Outcome:
    return same_as_table(rows, "imagenet_resnet50")


@statement(
    "8.1-gain",
    section="8.1",
    says="The EMA brings 0.3 to 0.5 % (top-1).",
    verdict=CONDITIONAL,
    method="differences of the table's own rows",
    printed=(0.3, 0.5),
    corrected=r"+0.3 \text{ and } +0.4 \text{ points for the two EMAs; } +0.5 \text{ is SWA's}",
    right=(0.3, 0.4),
    needs="SWA counts as an EMA, as the heading of §5 has it",
    table="imagenet_resnet50",
    note="Points, not per cent.",
)
def imagenet_gains(claimed: Form, effort: Effort) -> Outcome:
    gains = [IMAGENET[row]["top1"] - IMAGENET["sgd"]["top1"] for row in ("ema99", "ema999", "swa")]
    return conditional(
        bool(np.allclose(claimed, (min(gains[:2]), max(gains[:2])))),
        bool(np.allclose(claimed, (min(gains), max(gains)))),
        f"{min(gains[:2]):.1f} to {max(gains[:2]):.1f} points, with SWA to {max(gains):.1f}",
        f"{claimed[0]:g} to {claimed[1]:g}",
    )


@statement(
    "8.1-best",
    section="8.1",
    says="SWA is best.",
    verdict=HOLDS,
    method="order of the table's own rows",
    printed="swa",
    states="the table of §8.1",
    table="imagenet_resnet50",
)
def swa_first(best: Form, effort: Effort) -> Outcome:
    first = {metric: max(IMAGENET, key=lambda row, m=metric: IMAGENET[row][m]) for metric in ("top1", "top5")}  # type: ignore[misc]
    return truth(set(first.values()) == {best}, f"{best} highest in both columns", f"{first}")


@statement(
    "8.2-table",
    section="8.2",
    says="BERT pre-training: dev PPL 3.85 … 3.76 and fine-tuned accuracy 84.2 … 85.1 as β grows to 0.9999.",
    verdict=EMPIRICAL,
    method="the numbers against those that the table judges",
    printed=BERT,
    table="bert",
)
def bert_numbers(rows: Form, effort: Effort) -> Outcome:
    return same_as_table(rows, "bert")


@statement(
    "8.2-best",
    section="8.2",
    says="β = 0.999 to 0.9999 is best for Transformers.",
    verdict=HOLDS,
    method="order of the table's own rows",
    printed=("b999", "b9999"),
    states="the table of §8.2",
    table="bert",
)
def largest_best(best: Form, effort: Effort) -> Outcome:
    by_ppl = sorted(BERT, key=lambda row: BERT[row]["perplexity"])
    by_accuracy = sorted(BERT, key=lambda row: -BERT[row]["finetune_accuracy"])
    ok = set(by_ppl[:2]) == set(by_accuracy[:2]) == set(best)
    return truth(
        ok,
        "0.999 and 0.9999 first in both columns",
        f"first two by PPL {by_ppl[:2]}, by accuracy {by_accuracy[:2]}",
    )


@statement(
    "8.3-table",
    section="8.3",
    says="Latent diffusion: FID 12.5, 10.8, 9.6 and IS 28.3, 32.1, 35.2 with no EMA, β = 0.999 and 0.9999.",
    verdict=EMPIRICAL,
    method="order of the rows; no data set, sampler or guidance is given",
    printed=LATENT,
    note="No table measures it. Published: raw 16.65 against EMA 16.23 (BK-SDM, fine-tuning), 17 against 7 (U-ViT).",
)
def latent_numbers(rows: Form, effort: Effort) -> Outcome:
    fid, inception = zip(*rows.values(), strict=True)
    ordered = list(fid) == sorted(fid, reverse=True) and list(inception) == sorted(inception)
    return reported(ordered, "FID falls and IS rises with β", f"FID {fid}, IS {inception}")


@statement(
    "8.3-larger",
    section="8.3",
    says="For generative models a larger β is better, within a range.",
    verdict=EMPIRICAL,
    method="order of the rows of §8.3 and of EDM2's published curve",
    printed="within a range",
    table="ddpm_cifar10",
    note="EDM2 (Karras et al. 2024): FID is sharply U-shaped in the length of the EMA.",
)
def larger_is_better(limit: Form, effort: Effort) -> Outcome:
    return reported(
        limit == "within a range",
        "a range, beyond which it is worse",
        "U-shaped in EDM2; rising over the two β of §8.3",
    )


@statement(
    "8.3-gain",
    section="8.3",
    says="Generative models are extremely sensitive to the EMA.",
    verdict=EMPIRICAL,
    method="relative changes of the table's own rows",
    printed=LATENT,
    table="ddpm_cifar10",
)
def latent_gain(rows: Form, effort: Effort) -> Outcome:
    change = rows["0.9999"][0] / rows["none"][0] - 1
    classification = (100 - 76.5) / (100 - 76.1) - 1
    return reported(
        abs(change) > 5 * abs(classification) and not math.isnan(change),
        "relative gain far above classification's",
        f"FID {percent(change)}; top-1 error of §8.1 {percent(classification)}",
    )
