"""Buffers by what they are: masks, counters, statistics, vectors of spectral normalisation, caches that grow."""

import copy

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, recalibrate


def shift(model, by=1.0):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)


def with_buffer(value, **options):
    model = nn.Linear(4, 4)
    model.register_buffer("extra", value, **options)
    return model


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_a_mask_of_minus_infinity_is_copied(buffers):
    mask = torch.full((4, 4), float("-inf")).triu(1)
    model = with_buffer(mask.clone())
    averager = Averager(model, EMA(decay=0.9), buffers=buffers)
    for _ in range(3):
        shift(model)
        averager.update()
    assert torch.equal(averager.export()["extra"], mask)
    with averager.applied():
        assert torch.equal(model.extra, mask)


def test_statistics_that_are_not_finite_are_still_an_error():
    model = nn.BatchNorm1d(4)
    averager = Averager(model, EMA(decay=0.9))
    model.running_var[0] = float("inf")
    with pytest.raises(ValueError, match="'running_var' is not finite"):
        averager.update()


def test_patterns_decide_before_what_a_buffer_is():
    model = nn.ModuleDict({"a": with_buffer(torch.zeros(2)), "b": with_buffer(torch.zeros(2))})
    averager = Averager(model, EMA(decay=0.5), buffers={"b.*": "copy"})
    for part in model.values():
        part.extra.add_(1)
    averager.update()
    exported = averager.export()
    assert exported["a.extra"].tolist() == [0.5, 0.5]
    assert exported["b.extra"].tolist() == [1, 1]
    model = with_buffer(torch.zeros(2))
    assert len(Averager(model, EMA(decay=0.5), buffers={"*.extra": "copy"}).followed) == 2


@pytest.mark.parametrize("persistent", [True, False])
def test_a_cache_that_grows_is_taken_as_it_is(persistent):
    model = with_buffer(torch.zeros(4), persistent=persistent)
    averager = Averager(model, EMA(decay=0.5))
    model.extra = torch.ones(8)
    shift(model)
    averager.update()
    assert ("extra" in averager.export()) == persistent
    if persistent:
        assert torch.equal(averager.export()["extra"], torch.ones(8))
    with averager.applied():
        assert model.extra.shape == (8,)


def test_a_cache_that_appears_in_a_forward_is_no_new_layer():
    model = nn.Linear(4, 4)
    averager = Averager(model, EMA(decay=0.5))
    model.register_buffer("cos", torch.ones(3), persistent=False)
    averager.update()
    model.register_buffer("counter", torch.zeros((), dtype=torch.long))
    averager.update()
    assert averager.export()["counter"] == 0


# -- spectral normalisation


def normalised(kind, layers=3, size=24):
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.spectral_norm if kind == "new" else nn.utils.spectral_norm
    return nn.Sequential(*[norm(nn.Linear(size, size)) for _ in range(layers)])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["new", "old"])
@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_spectral_norms_are_those_of_the_averaged_weights(kind, buffers):
    """Far apart weights: the vectors of either one, or their mean, estimate a norm that is far too small."""
    model = normalised(kind)
    averager = Averager(model, EMA(decay=0.7), buffers=buffers)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
        for _ in range(20):
            model.train()(torch.randn(8, 24, generator=generator))
        averager.update()
    before = copy.deepcopy(model.state_dict())
    model.eval()
    with averager.applied(), torch.no_grad():
        x = torch.eye(24)
        for layer in model:
            effective = (layer(x) - layer.bias).t()
            assert torch.linalg.matrix_norm(effective, 2) == pytest.approx(1, abs=5e-3)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    loaded = normalised(kind)
    loaded.load_state_dict(averager.export())
    with averager.applied(), torch.no_grad():
        expected = model(torch.ones(2, 24))
    assert torch.allclose(loaded.eval()(torch.ones(2, 24)), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["new", "old"])
def test_spectral_vectors_may_be_copied_by_name(kind):
    model = normalised(kind, layers=1)
    name = next(n for n, _ in model.named_buffers() if n.endswith("_u"))
    averager = Averager(model, EMA(decay=0.5), buffers={"*_u": "copy", "*_v": "copy"})
    shift(model)
    averager.update()
    assert torch.equal(averager.export()[name], model.state_dict()[name])


# -- what is estimated anew


def test_recalibrate_measures_instance_norm_and_spectral_norm_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv1d(3, 3, 1)),
        nn.InstanceNorm1d(3, track_running_stats=True),
        nn.BatchNorm1d(3),
    )
    with torch.no_grad():
        model[0].parametrizations.weight.original.normal_()
    batches = [torch.randn(4, 3, 10) for _ in range(3)]
    assert recalibrate(model, batches) == 3
    norm = torch.linalg.matrix_norm(model.eval()[0].weight.detach().flatten(1), 2)
    assert norm == pytest.approx(1, abs=1e-3)
    with torch.no_grad():
        hidden = [model[0](x) for x in batches]
    means = torch.stack([h.mean((0, 2)) for h in hidden]).mean(0)
    assert torch.allclose(model[1].running_mean, means, atol=1e-6)
    assert model[1].momentum == 0.1
