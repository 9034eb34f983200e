"""The code listings of the article, as printed (comments translated) and corrected, and how they are run."""

from __future__ import annotations

from typing import Any

EMA_CLASS = """\
class EMA:
    def __init__(self, model, decay=0.999):
        self.model = model
        self.decay = decay
        self.shadow = {}
        for name, param in model.named_parameters():
            if param.requires_grad:
                self.shadow[name] = param.data.clone()

    def update(self):
        for name, param in self.model.named_parameters():
            if param.requires_grad:
                self.shadow[name] = self.decay * self.shadow[name] + (1 - self.decay) * param.data

    def apply_shadow(self):
        for name, param in self.model.named_parameters():
            if param.requires_grad:
                param.data = self.shadow[name]
"""

EMA_CLASS_RIGHT = """\
class EMA:
    def __init__(self, model, decay=0.999):
        self.model = model
        self.decay = decay
        self.shadow = {}
        self.backup = {}
        for name, param in model.named_parameters():
            if param.requires_grad:
                self.shadow[name] = param.data.clone()

    def update(self, decay=None):
        decay = self.decay if decay is None else decay
        for name, param in self.model.named_parameters():
            if param.requires_grad:
                self.shadow[name] = decay * self.shadow[name] + (1 - decay) * param.data

    def apply_shadow(self):
        for name, param in self.model.named_parameters():
            if param.requires_grad:
                self.backup[name] = param.data.clone()
                param.data.copy_(self.shadow[name])

    def restore(self):
        for name, param in self.model.named_parameters():
            if param.requires_grad:
                param.data.copy_(self.backup[name])
"""

EMA_USE = """\
ema = EMA(model, decay=0.999)
for batch in dataloader:
    optimizer.zero_grad()
    loss = criterion(model(batch))
    loss.backward()
    optimizer.step()
    ema.update()  # update the EMA at every step

# evaluate with the EMA's parameters
ema.apply_shadow()
evaluate(model)
"""

STABLE_UPDATES = """\
# unstable form
ema_param = beta * ema_param + (1 - beta) * param

# stable form (recommended)
ema_param += (1 - beta) * (param - ema_param)

# with Kahan compensation
delta = param - ema_param
y = (1 - beta) * delta - compensation
ema_param_new = ema_param + y
compensation = (ema_param_new - ema_param) - y
ema_param = ema_param_new
"""

PLAIN, LERP, KAHAN = (part.strip() for part in STABLE_UPDATES.split("\n\n"))

DDPM_LOOP = """\
# DDPM training loop
for epoch in range(num_epochs):
    for batch in dataloader:
        # forward
        loss = criterion(model(batch), targets)
        # backward
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

        # EMA update (every step, not every epoch)
        with torch.no_grad():
            for param, ema_param in zip(model.parameters(), ema_model.parameters()):
                ema_param.data.mul_(0.9999).add_(param.data, alpha=0.0001)
"""

TRAINING_LOOP = """\
class TrainingLoop:
    def __init__(self, model, optimizer, ema_decay=0.999):
        self.model = model
        self.optimizer = optimizer
        self.ema_model = EMA(model, decay=ema_decay)

    def train_step(self, batch, step, total_steps):
        # learning rate
        warmup_steps = int(0.1 * total_steps)
        if step < warmup_steps:
            lr = lr_base * (step / warmup_steps)
            beta = 0.99 * (step / warmup_steps)
        else:
            lr = lr_base * 0.5 * (1 + cos(pi*(step-warmup_steps)/(total_steps-warmup_steps)))
            beta = 0.999

        # set the optimiser's learning rate
        for param_group in self.optimizer.param_groups:
            param_group['lr'] = lr

        # forward and backward
        loss = self.model(batch)
        loss.backward()

        # clip gradients
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=sqrt(param_dim))

        # optimiser step
        self.optimizer.step()
        self.optimizer.zero_grad()

        # EMA update (with a dynamic decay)
        self.ema_model.update(decay=beta)

    def evaluate(self, val_loader):
        # switch to the EMA's parameters
        self.ema_model.apply_shadow()

        # evaluate
        with torch.no_grad():
            for batch in val_loader:
                predictions = self.model(batch)
                # compute metrics

        # switch back to the training parameters
        self.ema_model.restore()
"""

TRAINING_LOOP_RIGHT = """\
from math import cos, pi


class TrainingLoop:
    def __init__(self, model, optimizer, lr_base, ema_decay=0.999, max_norm=1.0):
        self.model = model
        self.optimizer = optimizer
        self.lr_base = lr_base
        self.ema_decay = ema_decay
        self.max_norm = max_norm
        self.ema_model = EMA(model, decay=ema_decay)  # the corrected class of section 9.2

    def train_step(self, batch, step, total_steps):
        warmup_steps = int(0.1 * total_steps)
        if step < warmup_steps:
            lr = self.lr_base * (step + 1) / warmup_steps
            beta = self.ema_decay * (step + 1) / warmup_steps
        else:
            lr = self.lr_base * 0.5 * (1 + cos(pi*(step-warmup_steps)/(total_steps-warmup_steps)))
            beta = self.ema_decay

        for param_group in self.optimizer.param_groups:
            param_group['lr'] = lr

        loss = self.model(batch)  # a model that returns its loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema_model.update(decay=beta)

    def evaluate(self, val_loader):
        self.ema_model.apply_shadow()
        with torch.no_grad():
            for batch in val_loader:
                predictions = self.model(batch)
        self.ema_model.restore()
"""


def executed(source: str, **names: Any) -> dict[str, Any]:
    """The names after running a listing in which these are known."""
    namespace = dict(names)
    exec(compile(source, "<listing>", "exec"), namespace)
    return namespace
