# mypy: disable-error-code="no-untyped-def"
"""Kernels of attention, of logits that are there."""

import triton
import triton.language as tl

from ofq.quantization.kernels.triton.arithmetic import LOG2_E, probabilities, seen


@triton.jit
def attend_logits(
    logits,
    values,
    p_scale,
    out,
    inner,
    totals,
    heads,
    tokens,
    columns,
    factor,
    highest_code,
    logits_image,
    logits_head,
    logits_query,
    values_image,
    values_head,
    values_token,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """See :func:`ofq.quantization.kernels.attend_logits`; strides of logits in vectors."""
    pair = tl.program_id(0)
    image, head = (pair // heads).to(tl.int64), pair % heads
    columns *= VECTOR  # so that the compiler knows it as a multiple
    channel = tl.arange(0, CHANNELS)[None, :]
    query = tl.program_id(1) * TILE + tl.arange(0, TILE)
    asked = query < tokens
    logits += (image * logits_image + head * logits_head) * VECTOR
    values += image * values_image + head * values_head
    place = query[:, None] * (logits_query * VECTOR)
    highest = tl.full([TILE], float("-inf"), tl.float32)
    sums = tl.zeros([TILE], tl.float32)
    for block in range(BLOCKS):
        key = (block * TILE + tl.arange(0, TILE))[None, :]
        # whole vectors, of which the padding is left out afterwards
        within = asked[:, None] & (key < columns)
        given = tl.load(logits + place + key, within, 0.0).to(tl.float32) * (factor * LOG2_E)
        highest, sums = seen(tl.where(key < tokens, given, float("-inf")), highest, sums)
    total = highest + tl.log2(sums)
    step = tl.load(p_scale + query, asked, 1.0)
    attended = tl.zeros([TILE, CHANNELS], tl.float32)
    within_range = tl.zeros([TILE, CHANNELS], tl.float32)
    for block in range(BLOCKS):
        key = block * TILE + tl.arange(0, TILE)
        v = tl.load(values + key[:, None] * values_token + channel, (key < tokens)[:, None], 0.0)
        within = asked[:, None] & (key < columns)[None, :]
        given = tl.load(logits + place + key[None, :], within, 0.0).to(tl.float32)
        given *= factor * LOG2_E
        p, codes = probabilities(given, total[:, None], step[:, None], highest_code)
        attended += tl.dot(codes.to(v.dtype), v)  # v is 0 beyond the last key
        inside = tl.where(p <= highest_code * step[:, None], p, 0.0)
        within_range += tl.dot(inside.to(v.dtype), v)
    attended *= step[:, None]
    kind = out.dtype.element_ty
    start = (image * tokens * heads + head) * CHANNELS
    place = query[:, None] * heads * CHANNELS + channel
    tl.store(out + start + place, attended.to(kind), asked[:, None])
    tl.store(inner + start + place, within_range.to(kind), asked[:, None])
    tl.store(totals + pair * tokens + query, total, asked)


@triton.jit
def attend_logits_backward(
    upstream,
    logits,
    values,
    out,
    inner,
    totals,
    p_scale,
    of_logits,
    of_values,
    of_rows,
    heads,
    tokens,
    columns,
    factor,
    highest_code,
    logits_image,
    logits_head,
    logits_query,
    values_image,
    values_head,
    values_token,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Its gradients."""
    pair, block = tl.program_id(0), tl.program_id(1)
    image, head = (pair // heads).to(tl.int64), pair % heads
    columns *= VECTOR  # so that the compiler knows it as a multiple
    channel = tl.arange(0, CHANNELS)
    key = block * TILE + tl.arange(0, TILE)
    known = key < tokens
    start = image * values_image + head * values_head
    v_place = key[:, None] * values_token + channel[None, :]
    v = tl.load(values + start + v_place, known[:, None], 0.0)
    above = (image * tokens * heads + head) * CHANNELS
    beside = (image * logits_image + head * logits_head) * VECTOR
    of_v = tl.zeros([TILE, CHANNELS], tl.float32)
    for other in range(BLOCKS):
        query = other * TILE + tl.arange(0, TILE)
        asked = query < tokens
        place = query[:, None] * heads * CHANNELS + channel[None, :]
        gradient = tl.load(upstream + above + place, asked[:, None], 0.0)
        wide = gradient.to(tl.float32)
        own_inner = tl.load(inner + above + place, asked[:, None], 0.0).to(tl.float32)
        step = tl.load(p_scale + query, asked, 1.0)
        common = tl.sum(wide * own_inner, 1)
        if block == 0:
            own_out = tl.load(out + above + place, asked[:, None], 0.0).to(tl.float32)
            of_step = tl.sum(wide * (own_out - own_inner), 1) / step
            tl.store(of_rows + pair * tokens + query, of_step, asked)
        place = query[:, None] * (logits_query * VECTOR) + key[None, :]
        within = asked[:, None] & (key < columns)[None, :]
        given = tl.load(logits + beside + place, within, 0.0).to(tl.float32)
        given = tl.where(known[None, :], given * (factor * LOG2_E), float("-inf"))
        total = tl.load(totals + pair * tokens + query, asked, float("inf"))
        p, codes = probabilities(given, total[:, None], step[:, None], highest_code)
        of_v += tl.dot(tl.trans((codes * step[:, None]).to(v.dtype)), gradient)
        of_p = tl.dot(gradient, tl.trans(v))
        of_p = tl.where(p <= highest_code * step[:, None], of_p, 0.0) - common[:, None]
        # padding has a gradient too, which is 0
        tl.store(of_logits + beside + place, (p * of_p * factor).to(v.dtype), within)
    tl.store(of_values + start + v_place, of_v.to(v.dtype), known[:, None])
