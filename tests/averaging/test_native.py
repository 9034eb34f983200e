"""The C library: where it applies, that it moves what torch would, and that it can take everything back."""

import os
import platform
import subprocess
import sys
import warnings
from unittest import mock

import pytest
import torch
from torch import nn

from emabench.averaging import EMA, Averager, NotFinite, build, native
from emabench.averaging.kernels import Move, Plan

LARGE = 270_001  # weights: above native.LOG, several pieces, and no multiple of anything

USE = """
import torch
from emabench.averaging import EMA, Averager, native
assert (native.library() is None) == {absent}
model = torch.nn.Linear(3, 3)
Averager(model, {{"ema": EMA(decay=.5)}}).update()
Averager(model, {{"ema": EMA(decay=.5)}}).update()
"""


@pytest.mark.parametrize(
    ("change", "absent", "warned"),
    [
        ({"EMABENCH_NATIVE": "0"}, True, ""),
        ({"PATH": "/nowhere"}, True, "slower than in C: there is no C compiler"),
        ({"EMABENCH_CACHE": "/proc/nowhere"}, False, ""),
    ],
)
def test_without_the_library_torch_serves_and_says_so_once(change, absent, warned):
    environment = {**os.environ, **change}
    words = [sys.executable, "-c", USE.format(absent=absent)]
    shown = subprocess.run(words, check=True, env=environment, capture_output=True, text=True).stderr
    assert shown.count("slower than in C") == (1 if warned else 0)
    assert warned in shown


def test_it_takes_float32_averages_of_float32_and_bfloat16_weights_alone():
    if native.library() is None:
        return
    for dtype, served in (
        (torch.float32, True),
        (torch.bfloat16, True),
        (torch.float16, False),
        (torch.float64, False),
    ):
        averager = Averager(nn.Linear(3, 3).to(dtype), {"ema": EMA(decay=0.5)})
        averager.update()
        assert (averager._updates._plan._native is not None) == served


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
def test_any_number_of_averages_is_what_each_alone_is(count, dtype):
    """Four at a time, and the rest: decays below .5 (their own form of the lerp) and compensated ones among them."""
    rules = {str(i): EMA(decay=(0.3, 0.9, 0.99, 0.6, 0.999, 0.7, 0.8, 0.95, 0.5)[i]) for i in range(count)}
    torch.manual_seed(0)
    model = nn.Linear(300, 70).to(dtype)
    together = Averager(model, rules, compensated={"2"} if count > 2 else False)
    alone = {n: Averager(model, {n: r}, compensated=n == "2") for n, r in rules.items()}
    for _ in range(5):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        for each in (together, *alone.values()):
            each.update()
    for name, each in alone.items():
        for key, value in each.export(name, torch.float32).items():
            assert torch.equal(value, together.export(name, torch.float32)[key]), (name, key)


# -- nothing is moved by weights that are not finite ----------------------------------------------------------
@pytest.fixture(scope="module", params=["as it is", "AVX2", "plain"])
def instructions(request):
    """Kernels for other processors than this one as well: with and without a log."""
    if native.library() is None or (request.param != "as it is" and platform.machine() != "x86_64"):
        pytest.skip("needs a C compiler, and for other kernels than its own an x86-64 processor")
    flags = {"as it is": (), "AVX2": ("-mno-avx512f",), "plain": ("-march=x86-64",)}[request.param]
    with mock.patch.object(build, "FLAGS", (*build.FLAGS, *flags)):
        native.library.cache_clear()
        yield request.param
    native.library.cache_clear()


def awkward(size, dtype=torch.float32):
    """Numbers of every magnitude: zeros of both signs, the smallest, the largest."""
    x = torch.randn(size) * torch.pow(10.0, torch.randint(-12, 3, (size,)).float())
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-40, 1e38, -1e38, 1.0, -1.0])
    at = torch.randperm(size)[: size // 50]
    x[at] = special[torch.randint(0, len(special), at.shape)]
    return x.to(dtype)


def tensors(dtype=torch.float32, zero=False):
    torch.manual_seed(0)
    sizes = (3, 40_000, LARGE, 17)
    live = [awkward(n, dtype) for n in sizes]
    sets = [[torch.zeros(n) if zero else awkward(n) for n in sizes] for _ in range(6)]
    return live, sets


def bits(sets):
    return [t.view(torch.int32).clone() for one in sets for t in one]


MOVES = {
    "slow decays": [Move(i, [10.0 ** -(i + 1)] * 4) for i in range(6)],
    "one": [Move(1, [0.001] * 4)],
    "by tensor": [Move(0, [0.1, 0.2, 0.001, 0.0]), Move(3, [0.01] * 4)],
    "fast decays": [Move(i, [0.14 + i / 25] * 4) for i in range(3)],
    "copies": [Move(0, [1.0] * 4), Move(1, [0.001] * 4)],
    "beyond a half": [Move(i, [alpha] * 4) for i, alpha in enumerate((0.7, 0.001, 0.5, 0.4))],
    "one follows another": [
        Move(0, [0.1] * 4),
        Move(4, [0.01] * 4, source=0),
        *(Move(i, [0.001] * 4) for i in (1, 2, 3)),
        Move(5, [0.02] * 4, source=4),
    ],
}


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moves", MOVES)
def test_a_checked_pass_moves_the_same_bits_or_none(instructions, moves, dtype, zero, monkeypatch):
    live, sets = tensors(dtype, zero)
    _, plain = tensors(dtype, zero)
    checked = native.table(live, sets, [None] * 6)
    unchecked = native.table(live, plain, [None] * 6)
    assert checked.update(MOVES[moves], True)
    unchecked.update(MOVES[moves], False)
    before = bits(plain)
    assert all(map(torch.equal, bits(sets), before))
    for threads, tensor, at, value in ((1, 2, LARGE - 1, "nan"), (2, 2, 140_000, "-inf"), (2, 3, 16, "inf")):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        kept = live[tensor][at].clone()
        live[tensor][at] = float(value)
        assert not checked.update(MOVES[moves], True)
        live[tensor][at] = kept
        assert all(map(torch.equal, bits(sets), before))


@pytest.mark.parametrize("moves", MOVES)
def test_c_and_torch_agree(moves):
    if native.library() is None:
        return
    torch.manual_seed(0)
    live = [torch.randn(n) for n in (3, 40_000, LARGE, 17)]
    sets = [[torch.randn_like(t) for t in live] for _ in range(6)]
    other = [[t.clone() for t in one] for one in sets]
    native.table(live, sets, [None] * 6).update(MOVES[moves], True)
    with mock.patch.object(native, "table", lambda *given: None):
        plan = Plan(live, other, [None] * 6)
    assert plan.arithmetic == "torch"
    plan.update(MOVES[moves])
    for ours, theirs in zip(sets, other, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_compensated_averages_are_left_as_they_were_too():
    if native.library() is None:
        return
    live, sets = tensors()
    compensation = [[torch.rand_like(t) for t in one] if i == 1 else None for i, one in enumerate(sets)]
    table = native.table(live, sets, compensation)
    before = bits([*sets, compensation[1]])
    live[2][-1] = float("nan")
    assert not table.update(MOVES["slow decays"], True)
    assert all(map(torch.equal, bits([*sets, compensation[1]]), before))


def test_a_large_model_is_named_where_it_is_not_finite_and_resumes_unharmed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(700, 1000), nn.Linear(1000, 20))
    rules = {"ema": EMA(decay=0.99), "slow": EMA(decay=0.9999)}
    hurt, well = Averager(model, rules), Averager(model, rules)
    for step in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
            if step == 2:
                kept = model[1].bias[7].clone()
                model[1].bias[7] = float("inf")
                with pytest.raises(NotFinite, match=r"'1\.bias' is not finite"):
                    hurt.update()
                model[1].bias[7] = kept
        hurt.update()
        well.update()
    for name in rules:
        assert all(torch.equal(v, well.export(name)[k]) for k, v in hurt.export(name).items())


def test_the_log_takes_a_fraction_of_the_averages_memory():
    live = [torch.randn(4_000_000)]
    table = native.table(live, [[torch.randn(4_000_000)]], [None]) if native.library() else None
    if table is None:
        return
    table.update([Move(0, [0.001])], True)
    average = 4 * 4_000_000
    if not table._can_log:
        return
    assert table._arrays["marks"].nbytes <= average / 16
    assert int(table._arrays["taken"].sum()) < 4_000_000 / 100  # of what is reserved, hardly any is touched


def test_a_small_update_waits_for_no_other_thread(monkeypatch):
    if native.library() is None:
        return
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(native, "_parallel", lambda: asked.append(1))
    for size, waits in ((1_000, False), (native.ALONE, True)):
        live = [torch.randn(size)]
        native.table(live, [[torch.randn(size)]], [None]).update([Move(0, [0.1])], True)
        assert bool(asked) == waits


# -- the built library ----------------------------------------------------------------------------------------
@pytest.fixture
def cache(tmp_path, monkeypatch):
    if native.library() is None:
        pytest.skip("needs a C compiler")
    monkeypatch.setenv("EMABENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def built(cache):
    [path] = cache.iterdir()
    return path


def test_it_is_built_once_into_a_folder_of_ones_own(cache, monkeypatch):
    build.load()
    first = built(cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert first.suffix == ".so"
    monkeypatch.setattr(subprocess, "run", None)  # nothing is compiled again
    build.load()
    assert built(cache) == first


@pytest.mark.parametrize("damage", ["truncated", "exchanged", "writable", "a link"])
def test_a_library_that_is_not_as_it_was_built_is_built_again(cache, damage, tmp_path):
    build.load()
    path = built(cache)
    whole = path.read_bytes()
    path.unlink()  # this process has it mapped
    if damage == "a link":
        (tmp_path / "elsewhere.so").write_bytes(whole)
        path.symlink_to(tmp_path / "elsewhere.so")
    else:
        path.write_bytes({"truncated": whole[:5000], "exchanged": b"x" * len(whole)}.get(damage, whole))
        path.chmod(0o722 if damage == "writable" else 0o700)
    build.load()
    again = built(cache)
    assert build._sound(again)
    assert not again.is_symlink()


def test_what_lies_in_a_folder_open_to_others_is_not_trusted(cache):
    build.load()
    path = built(cache)
    cache.chmod(0o777)
    before = path.stat().st_ino
    build.load()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert built(cache).stat().st_ino != before


def test_a_folder_of_somebody_else_is_not_used(cache, monkeypatch):
    cache.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1 if (cache / "..").exists() else 0)
    with pytest.raises(build.Unavailable):  # not even the private folder is this user's now
        build.load()
    assert not list(cache.iterdir())


def test_a_compiler_that_fails_is_quoted(cache, tmp_path, monkeypatch):
    compiler = tmp_path / "bin" / "cc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:{os.environ['PATH']}")
    native.library.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert native.library() is None
        assert "no space left" in str(caught[0].message)
    finally:
        native.library.cache_clear()


@pytest.mark.parametrize(
    ("switch", "words"), [("1", "updated in C"), ("0", "switched off by EMABENCH_NATIVE=0")]
)
def test_doctor_tells_what_computes_the_averages(switch, words, monkeypatch):
    if native.library() is None:
        pytest.skip("needs a C compiler")
    pytest.importorskip("rich")  # of the command line
    from emabench.commands import doctor

    monkeypatch.setenv("EMABENCH_NATIVE", switch)
    [(mark, what, text)] = doctor._averages()
    assert (mark, what) == ("ok" if switch == "1" else "note", "averages")
    assert words in text
