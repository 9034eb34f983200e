"""The Triton kernel of `fused`, in a module of its own because it cannot be imported without Triton."""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

TYPES = {"float16": tl.float16, "bfloat16": tl.bfloat16, "float32": tl.float32, "float64": tl.float64}


@triton.jit
def move(  # type: ignore[no-untyped-def]
    rows,
    sizes,
    blocks,
    which,
    alphas,
    moves,
    tensors,
    programs,
    BLOCK: tl.constexpr,
    theta_type: tl.constexpr,
    shadow_type: tl.constexpr,
):
    """Program p moves one block of one tensor in every moved set; see `fused.Table` for the arguments."""
    program = tl.program_id(0)
    tensor = tl.load(blocks + program)
    at = tl.load(blocks + programs + program).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < tl.load(sizes + tensor)
    theta = tl.load(tl.load(rows + tensor).to(tl.pointer_type(theta_type)) + at, mask=mask).to(shadow_type)
    for m in range(moves):
        alpha = tl.load(alphas + m * tensors + tensor)
        row = tl.load(which + m) + 1
        shadow = tl.load(rows + row * tensors + tensor).to(tl.pointer_type(shadow_type)) + at
        old = tl.load(shadow, mask=mask)
        # torch.lerp's two branches; at alpha 1 the old content must not leak in, it may be NaN
        low = old + alpha * (theta - old)
        high = theta - (theta - old) * (1 - alpha)
        tl.store(shadow, tl.where(alpha == 1, theta, tl.where(alpha < 0.5, low, high)), mask=mask)
