# mypy: disable-error-code="no-untyped-def"
"""Kernels of attention that take logits and values."""

import triton
import triton.language as tl

from ofq.quantization.kernels.triton.arithmetic import LOG2_E, probabilities, update_sums


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
    """Compute :func:`ofq.quantization.kernels.attend_logits`; strides of logits are in vectors."""
    pair = tl.program_id(0)
    image, head = (pair // heads).to(tl.int64), pair % heads
    columns *= VECTOR  # so that the compiler knows that it is a multiple
    channel = tl.arange(0, CHANNELS)[None, :]
    query = tl.program_id(1) * TILE + tl.arange(0, TILE)
    query_mask = query < tokens
    logits += (image * logits_image + head * logits_head) * VECTOR
    values += image * values_image + head * values_head
    place = query[:, None] * (logits_query * VECTOR)
    highest = tl.full([TILE], float("-inf"), tl.float32)
    sums = tl.zeros([TILE], tl.float32)
    for block in range(BLOCKS):
        key = (block * TILE + tl.arange(0, TILE))[None, :]
        # loads whole vectors; the padding is masked afterwards
        mask = query_mask[:, None] & (key < columns)
        scores = tl.load(logits + place + key, mask, 0.0).to(tl.float32) * (factor * LOG2_E)
        highest, sums = update_sums(tl.where(key < tokens, scores, float("-inf")), highest, sums)
    total = highest + tl.log2(sums)
    step = tl.load(p_scale + query, query_mask, 1.0)
    attended = tl.zeros([TILE, CHANNELS], tl.float32)
    within_range = tl.zeros([TILE, CHANNELS], tl.float32)
    for block in range(BLOCKS):
        key = block * TILE + tl.arange(0, TILE)
        v = tl.load(values + key[:, None] * values_token + channel, (key < tokens)[:, None], 0.0)
        mask = query_mask[:, None] & (key < columns)[None, :]
        scores = tl.load(logits + place + key[None, :], mask, 0.0).to(tl.float32)
        scores *= factor * LOG2_E
        p, codes = probabilities(scores, total[:, None], step[:, None], highest_code)
        attended += tl.dot(codes.to(v.dtype), v)  # v is 0 beyond the last key
        inside = tl.where(p <= highest_code * step[:, None], p, 0.0)
        within_range += tl.dot(inside.to(v.dtype), v)
    attended *= step[:, None]
    kind = out.dtype.element_ty
    start = (image * tokens * heads + head) * CHANNELS
    place = query[:, None] * heads * CHANNELS + channel
    tl.store(out + start + place, attended.to(kind), query_mask[:, None])
    tl.store(inner + start + place, within_range.to(kind), query_mask[:, None])
    tl.store(totals + pair * tokens + query, total, query_mask)


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
    """Compute the gradients of :func:`attend_logits`."""
    pair, block = tl.program_id(0), tl.program_id(1)
    image, head = (pair // heads).to(tl.int64), pair % heads
    columns *= VECTOR  # so that the compiler knows that it is a multiple
    channel = tl.arange(0, CHANNELS)
    key = block * TILE + tl.arange(0, TILE)
    key_mask = key < tokens
    start = image * values_image + head * values_head
    v_place = key[:, None] * values_token + channel[None, :]
    v = tl.load(values + start + v_place, key_mask[:, None], 0.0)
    above = (image * tokens * heads + head) * CHANNELS
    beside = (image * logits_image + head * logits_head) * VECTOR
    of_v = tl.zeros([TILE, CHANNELS], tl.float32)
    for other in range(BLOCKS):
        query = other * TILE + tl.arange(0, TILE)
        query_mask = query < tokens
        place = query[:, None] * heads * CHANNELS + channel[None, :]
        gradient = tl.load(upstream + above + place, query_mask[:, None], 0.0)
        wide = gradient.to(tl.float32)
        own_inner = tl.load(inner + above + place, query_mask[:, None], 0.0).to(tl.float32)
        step = tl.load(p_scale + query, query_mask, 1.0)
        common = tl.sum(wide * own_inner, 1)
        if block == 0:
            own_out = tl.load(out + above + place, query_mask[:, None], 0.0).to(tl.float32)
            of_step = tl.sum(wide * (own_out - own_inner), 1) / step
            tl.store(of_rows + pair * tokens + query, of_step, query_mask)
        place = query[:, None] * (logits_query * VECTOR) + key[None, :]
        mask = query_mask[:, None] & (key < columns)[None, :]
        scores = tl.load(logits + beside + place, mask, 0.0).to(tl.float32)
        scores = tl.where(key_mask[None, :], scores * (factor * LOG2_E), float("-inf"))
        total = tl.load(totals + pair * tokens + query, query_mask, float("inf"))
        p, codes = probabilities(scores, total[:, None], step[:, None], highest_code)
        of_v += tl.dot(tl.trans((codes * step[:, None]).to(v.dtype)), gradient)
        of_p = tl.dot(gradient, tl.trans(v))
        of_p = tl.where(p <= highest_code * step[:, None], of_p, 0.0) - common[:, None]
        # padding has a gradient too, which is 0
        tl.store(of_logits + beside + place, (p * of_p * factor).to(v.dtype), mask)
    tl.store(of_values + start + v_place, of_v.to(v.dtype), key_mask[:, None])
