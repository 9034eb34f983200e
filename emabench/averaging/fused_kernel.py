"""The Triton kernel of `fused`, in a module of its own because it cannot be imported without Triton."""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

TYPES = {"float16": tl.float16, "bfloat16": tl.bfloat16, "float32": tl.float32, "float64": tl.float64}


@triton.jit
def look(  # type: ignore[no-untyped-def]
    rows, sizes, blocks, state, tensors, programs, update, BLOCK: tl.constexpr, theta_type: tl.constexpr
):
    """Note `update` in state[0] if a weight of this program's block is NaN or infinite and nothing is noted yet."""
    program = tl.program_id(0)
    tensor = tl.load(blocks + program)
    at = tl.load(blocks + programs + program).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < tl.load(sizes + tensor)
    pointer = tl.load(rows + tensor).to(tl.pointer_type(theta_type)) + at
    theta = tl.load(pointer, mask=mask, other=0.0).to(tl.float32 if theta_type != tl.float64 else tl.float64)
    bad = tl.where(tl.abs(theta) < float("inf"), 0, 1)  # NaN is not below infinity either
    if tl.max(bad, axis=0) > 0:
        tl.atomic_cas(state, 0, update)


@triton.jit
def move(  # type: ignore[no-untyped-def]
    rows,
    sizes,
    blocks,
    which,
    source,
    alphas,
    state,
    moves,
    tensors,
    programs,
    update,
    BLOCK: tl.constexpr,
    theta_type: tl.constexpr,
    shadow_type: tl.constexpr,
):
    """Program p moves one block of one tensor in every moved set; see `fused.Table` for the arguments.

    Nothing is moved once state[0] is set. state[1] becomes `update`.
    """
    program = tl.program_id(0)
    if program == 0:
        tl.store(state + 1, update)
    if tl.load(state) == 0:
        tensor = tl.load(blocks + program)
        at = tl.load(blocks + programs + program).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        mask = at < tl.load(sizes + tensor)
        live = tl.load(tl.load(rows + tensor).to(tl.pointer_type(theta_type)) + at, mask=mask).to(shadow_type)
        for m in range(moves):
            alpha = tl.load(alphas + m * tensors + tensor)
            row = tl.load(which + m) + 1
            other = tl.load(source + m) + 1  # row 0 holds the live weights
            shadow = tl.load(rows + row * tensors + tensor).to(tl.pointer_type(shadow_type)) + at
            theta = live
            if other > 0:
                moved = tl.load(rows + other * tensors + tensor).to(tl.pointer_type(shadow_type)) + at
                theta = tl.load(moved, mask=mask)
            old = tl.load(shadow, mask=mask)
            # torch.lerp's two branches; at alpha 1 the old content must not leak in, it may be NaN
            low = old + alpha * (theta - old)
            high = theta - (theta - old) * (1 - alpha)
            tl.store(shadow, tl.where(alpha == 1, theta, tl.where(alpha < 0.5, low, high)), mask=mask)
