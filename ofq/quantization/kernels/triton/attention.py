# mypy: disable-error-code="no-untyped-def"
"""Kernels of attention that take queries, keys and values as one tensor."""

import triton
import triton.language as tl

from ofq.quantization.kernels.triton.arithmetic import (
    LOG2_E,
    exp2,
    lsq,
    lsq_gradients,
    probabilities,
    update_sums,
)


@triton.jit
def quantize_qkv(
    qkv,
    q_scale,
    k_scale,
    v_scale,
    q_after,
    v_after,
    quantized,
    tokens,
    low,
    high,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Quantize queries, keys and values, and add the shifts after queries and values."""
    start = tl.program_id(0).to(tl.int64) * tokens * (3 * HEADS * CHANNELS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    token_mask = token < tokens
    part, head = tl.program_id(2) // HEADS, tl.program_id(2) % HEADS
    channel = tl.arange(0, CHANNELS)
    column = head * CHANNELS + channel
    place = token[:, None] * (3 * HEADS * CHANNELS)
    place += (tl.program_id(2) * CHANNELS + channel)[None, :]
    x = tl.load(qkv + start + place, token_mask[:, None], 0.0).to(tl.float32)
    if part == 0:
        x = lsq(x, tl.load(q_scale + token, token_mask, 1.0)[:, None], low, high)
        x += tl.load(q_after + column)[None, :]
    elif part == 1:
        x = lsq(x, tl.load(k_scale + token, token_mask, 1.0)[:, None], low, high)
    else:
        x = lsq(x, tl.load(v_scale + column)[None, :], low, high)
        x += tl.load(v_after + column)[None, :]
    tl.store(quantized + start + place, x.to(quantized.dtype.element_ty), token_mask[:, None])


@triton.jit
def attend(
    quantized,
    p_scale,
    out,
    inner,
    totals,
    tokens,
    factor,
    highest_code,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Compute :func:`ofq.quantization.kernels.attend` from quantized queries, keys, values."""
    pair = tl.program_id(0)
    image, head = (pair // HEADS).to(tl.int64), pair % HEADS
    width = HEADS * CHANNELS
    channel = tl.arange(0, CHANNELS)[None, :]
    base = quantized + image * tokens * 3 * width + head * CHANNELS
    query = tl.program_id(1) * TILE + tl.arange(0, TILE)
    query_mask = query < tokens
    q = tl.load(base + query[:, None] * 3 * width + channel, query_mask[:, None], 0.0)
    highest = tl.full([TILE], float("-inf"), tl.float32)
    sums = tl.zeros([TILE], tl.float32)
    for block in range(BLOCKS):
        key = block * TILE + tl.arange(0, TILE)
        key_mask = key < tokens
        k = tl.load(base + width + key[:, None] * 3 * width + channel, key_mask[:, None], 0.0)
        logits = tl.dot(q, tl.trans(k)) * (factor * LOG2_E)
        logits = tl.where(key_mask[None, :], logits, float("-inf"))
        highest, sums = update_sums(logits, highest, sums)
    total = highest + tl.log2(sums)
    step = tl.load(p_scale + query, query_mask, 1.0)
    attended = tl.zeros([TILE, CHANNELS], tl.float32)
    within_range = tl.zeros([TILE, CHANNELS], tl.float32)
    for block in range(BLOCKS):
        key = block * TILE + tl.arange(0, TILE)
        key_mask = key < tokens
        place = key[:, None] * 3 * width + channel
        k = tl.load(base + width + place, key_mask[:, None], 0.0)
        v = tl.load(base + 2 * width + place, key_mask[:, None], 0.0)
        logits = tl.dot(q, tl.trans(k)) * (factor * LOG2_E)
        p, codes = probabilities(logits, total[:, None], step[:, None], highest_code)
        attended += tl.dot(codes.to(v.dtype), v)  # v is 0 beyond the last key
        inside = tl.where(p <= highest_code * step[:, None], p, 0.0)
        within_range += tl.dot(inside.to(v.dtype), v)
    attended *= step[:, None]
    start = image * tokens * width + head * CHANNELS
    place = query[:, None] * width + channel
    tl.store(out + start + place, attended.to(q.dtype), query_mask[:, None])
    tl.store(inner + start + place, within_range.to(q.dtype), query_mask[:, None])
    tl.store(totals + pair * tokens + query, total, query_mask)


@triton.jit
def attend_backward_queries(
    upstream,
    qkv,
    quantized,
    out,
    inner,
    totals,
    q_scale,
    p_scale,
    of_qkv,
    of_rows,
    of_columns,
    commons,
    pairs,
    tokens,
    factor,
    low,
    high,
    highest_code,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Compute the gradients of queries, and of parameters per query or query channel."""
    pair, block = tl.program_id(0), tl.program_id(1)
    image, head = (pair // HEADS).to(tl.int64), pair % HEADS
    width = HEADS * CHANNELS
    channel = tl.arange(0, CHANNELS)
    query = block * TILE + tl.arange(0, TILE)
    query_mask = query < tokens
    start = image * tokens * width + head * CHANNELS
    place = query[:, None] * width + channel[None, :]
    gradient = tl.load(upstream + start + place, query_mask[:, None], 0.0)
    wide = gradient.to(tl.float32)
    own_out = tl.load(out + start + place, query_mask[:, None], 0.0).to(tl.float32)
    own_inner = tl.load(inner + start + place, query_mask[:, None], 0.0).to(tl.float32)
    step = tl.load(p_scale + query, query_mask, 1.0)
    common = tl.sum(wide * own_inner, 1)
    of_step = tl.sum(wide * (own_out - own_inner), 1) / step
    tl.store(commons + pair * tokens + query, common, query_mask)
    tl.store(of_rows + pair * tokens + query, of_step, query_mask)
    start = image * tokens * 3 * width + head * CHANNELS
    base = quantized + start
    q_place = query[:, None] * 3 * width + channel[None, :]
    q = tl.load(base + q_place, query_mask[:, None], 0.0)
    total = tl.load(totals + pair * tokens + query, query_mask, float("inf"))
    of_q = tl.zeros([TILE, CHANNELS], tl.float32)
    for other in range(BLOCKS):
        key = other * TILE + tl.arange(0, TILE)
        key_mask = key < tokens
        place = key[:, None] * 3 * width + channel[None, :]
        k = tl.load(base + width + place, key_mask[:, None], 0.0)
        v = tl.load(base + 2 * width + place, key_mask[:, None], 0.0)
        logits = tl.dot(q, tl.trans(k)) * (factor * LOG2_E)
        p = exp2(tl.where(key_mask[None, :], logits, float("-inf")) - total[:, None])
        of_p = tl.dot(gradient, tl.trans(v))
        of_p = tl.where(p <= highest_code * step[:, None], of_p, 0.0) - common[:, None]
        of_q += tl.dot((p * of_p).to(k.dtype), k)
    of_q *= factor
    own_q = tl.load(qkv + start + q_place, query_mask[:, None], 0.0).to(tl.float32)
    q_step = tl.load(q_scale + query, query_mask, 1.0)[:, None]
    of_own, slope = lsq_gradients(of_q, own_q, q_step, low, high)
    tl.store(of_qkv + start + q_place, of_own.to(q.dtype), query_mask[:, None])
    tl.store(of_rows + (pairs + pair) * tokens + query, tl.sum(slope, 1), query_mask)
    tl.store(of_columns + (block * pairs + pair) * CHANNELS + channel, tl.sum(of_q, 0))


@triton.jit
def attend_backward_keys(
    upstream,
    qkv,
    quantized,
    totals,
    commons,
    k_scale,
    v_scale,
    p_scale,
    of_qkv,
    of_rows,
    of_columns,
    pairs,
    tokens,
    factor,
    low,
    high,
    highest_code,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Compute the gradients of keys, values, and parameters per key or value channel."""
    pair, block, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    image, head = (pair // HEADS).to(tl.int64), pair % HEADS
    width = HEADS * CHANNELS
    channel = tl.arange(0, CHANNELS)
    key = block * TILE + tl.arange(0, TILE)
    key_mask = key < tokens
    start = image * tokens * 3 * width + head * CHANNELS
    base = quantized + start
    k_place = width + key[:, None] * 3 * width + channel[None, :]
    v_place = k_place + width
    k = tl.load(base + k_place, key_mask[:, None], 0.0)
    v = tl.load(base + v_place, key_mask[:, None], 0.0)
    upstream += image * tokens * width + head * CHANNELS
    of_k = tl.zeros([TILE, CHANNELS], tl.float32)
    of_v = tl.zeros([TILE, CHANNELS], tl.float32)
    for other in range(BLOCKS):
        query = other * TILE + tl.arange(0, TILE)
        query_mask = query < tokens
        place = query[:, None] * width + channel[None, :]
        q = tl.load(base + query[:, None] * 3 * width + channel[None, :], query_mask[:, None], 0.0)
        gradient = tl.load(upstream + place, query_mask[:, None], 0.0)
        total = tl.load(totals + pair * tokens + query, query_mask, float("inf"))
        common = tl.load(commons + pair * tokens + query, query_mask, 0.0)
        step = tl.load(p_scale + query, query_mask, 1.0)
        logits = tl.dot(q, tl.trans(k)) * (factor * LOG2_E)
        p, codes = probabilities(logits, total[:, None], step[:, None], highest_code)
        of_v += tl.dot(tl.trans((codes * step[:, None]).to(k.dtype)), gradient)
        of_p = tl.dot(gradient, tl.trans(v))
        of_p = tl.where(p <= highest_code * step[:, None], of_p, 0.0) - common[:, None]
        of_k += tl.dot(tl.trans((p * of_p).to(k.dtype)), q)
    place = (block * pairs + pair) * CHANNELS + channel
    of_v = tl.where(key_mask[:, None], of_v, 0.0)
    tl.store(of_columns + 2 * blocks * pairs * CHANNELS + place, tl.sum(of_v, 0))
    own_v = tl.load(qkv + start + v_place, key_mask[:, None], 0.0).to(tl.float32)
    v_step = tl.load(v_scale + head * CHANNELS + channel)[None, :]
    of_own, slope = lsq_gradients(of_v, own_v, v_step, low, high)
    tl.store(of_qkv + start + v_place, of_own.to(k.dtype), key_mask[:, None])
    tl.store(of_columns + blocks * pairs * CHANNELS + place, tl.sum(slope, 0))
    own_k = tl.load(qkv + start + k_place, key_mask[:, None], 0.0).to(tl.float32)
    k_step = tl.load(k_scale + key, key_mask, 1.0)[:, None]
    of_own, slope = lsq_gradients(of_k * factor, own_k, k_step, low, high)
    tl.store(of_qkv + start + k_place, of_own.to(k.dtype), key_mask[:, None])
    tl.store(of_rows + (2 * pairs + pair) * tokens + key, tl.sum(slope, 1), key_mask)
