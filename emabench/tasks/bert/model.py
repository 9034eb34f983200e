"""BERT for pre-training, with and without LayerNorm."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining

from emabench.tasks.bert.options import Options
from emabench.tasks.bert.sequences import Batch


class Model(nn.Module):
    """`BertForPreTraining`, with the prediction head run on the masked tokens alone."""

    def __init__(self, options: Options, vocabulary: int, padding: int) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=options.intermediate,
            max_position_embeddings=options.length,
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.dropout,
            initializer_range=options.initial_sd,
            pad_token_id=padding,
        )
        self.bert = BertForPreTraining(config)
        if not options.layer_norm:
            _without_layer_norm(self.bert)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the masked tokens [n, masked, vocabulary], and of following or not [n, 2]."""
        hidden, pooled = self.bert.bert(batch.ids, token_type_ids=batch.segments, return_dict=False)[:2]
        masked = hidden.gather(1, batch.positions[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.bert.cls.predictions(masked), self.bert.cls.seq_relationship(pooled)


def _without_layer_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.LayerNorm):
            setattr(module, name, nn.Identity())
        else:
            _without_layer_norm(child)
