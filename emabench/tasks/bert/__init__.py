"""BERT: masked tokens and next sentences (§8.2 of the article), with and without LayerNorm (§17.2).

Small: two layers on the text that every Python carries. Paper: BERT-base on Wikipedia and books, fine-tuned on GLUE
(Devlin et al. 2019). Batches and masks are functions of (seed, step); the masks of validation are fixed.
"""

from emabench.tasks.bert.options import Options
from emabench.tasks.bert.task import Task

__all__ = ["Options", "Task"]
