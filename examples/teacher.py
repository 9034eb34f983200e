"""A target network: Mean Teacher (Tarvainen and Valpola 2017) on digits of which only forty are labelled.

    .venv/bin/python examples/teacher.py

The teacher's weights are an average of the student's; the student learns to agree with it on unlabelled images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_loop import digits

from emabench.averaging import EMA, TargetNetwork

STEPS, LABELLED, NOISE, CONSISTENCY = 800, 40, 0.3, 3.0


def main() -> dict[str, float]:
    """Test accuracy of a network trained on the labels alone, of a student, and of its teacher."""
    (x, y), (test_x, test_y) = digits()
    alone, _ = train(x, y, consistency=0.0)
    student, teacher = train(x, y, consistency=CONSISTENCY)
    accuracies = {}
    for name, net in {"labels alone": alone, "student": student, "teacher": teacher.module}.items():
        with torch.no_grad():
            accuracies[name] = float((net(test_x).argmax(1) == test_y).float().mean())
        print(f"{name:<13} {accuracies[name]:.3f}")
    return accuracies


def train(x: Tensor, y: Tensor, consistency: float) -> tuple[nn.Module, TargetNetwork]:
    """Train with labels of the first images, and agreement with the teacher on all of them."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    teacher = TargetNetwork(student, EMA(decay=0.99))
    draw = torch.Generator().manual_seed(1)

    def noisy(images: Tensor) -> Tensor:
        return images + NOISE * torch.randn(images.shape, generator=draw)

    for step in range(STEPS):
        labelled = torch.randint(LABELLED, (20,), generator=draw)
        unlabelled = torch.randint(len(x), (80,), generator=draw)
        loss = F.cross_entropy(student(noisy(x[labelled])), y[labelled])
        seen, also_seen = noisy(x[unlabelled]), noisy(x[unlabelled])
        difference = student(seen).softmax(1) - teacher(also_seen).softmax(1)
        ramp = min(1.0, step / (0.25 * STEPS))
        optimizer.zero_grad()
        (loss + consistency * ramp * difference.square().sum(1).mean()).backward()
        optimizer.step()
        teacher.update()
    return student, teacher


if __name__ == "__main__":
    main()
