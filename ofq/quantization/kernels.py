# mypy: disable-error-code="no-untyped-def"
"""Triton kernels of a low-bit block's two widest passes: attention, and GELU before an LSQ.

Launched by :mod:`ofq.quantization.fused`, which says what each one computes. Tensors are contiguous
unless strides are given, activations bf16 or fp16 and everything else float32; arithmetic is
float32. Each program writes sums of its own, which are added up afterwards, so that they are the
same in every run.

Attention's gradients follow FlashAttention's (Dao et al. 2022): tiles of probabilities are computed
again, from each row's denominator (``totals``, a logarithm to base 2). What LSQ adds needs no sum
over such a tile either. With probabilities p, codes c, step s, a mask m of the probabilities inside
the range, and the gradient g of the output O = s·c V, softmax's gradient takes Σ p·m·(V g) = g · O'
(``commons``), where O' = (p·m) V (``inner``); the step's is Σ (c − m·p/s)·(V g) = g · (O − O') / s.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)

# Triton's interpreter, by which tests run the kernels on a CPU, has no assembler
_ASSEMBLER = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def _exp2(x):
    """2ˣ, 0 where that is no normal number, which is what the kernels take it for anyway."""
    if _ASSEMBLER:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def _reciprocal(x):
    """1/x of normal numbers."""
    if _ASSEMBLER:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def _clamped(x, low, high):
    """Within bounds; NaN stays NaN, so that a training's watch over its loss sees it."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _round(x):
    """To the nearest integer, half to even, for magnitudes below 2²²."""
    return (x + 12582912.0) - 12582912.0  # 1.5·2²³: float32 has no bits left for a fraction


@triton.jit
def _quantized(x, scale, low, high):
    # a division per scale, not per element
    return _round(_clamped(x * (1.0 / scale), low, high)) * scale


@triton.jit
def _gradients(upstream, x, scale, low, high):
    """As of Rounding.gradients: of x, and the summands of the scale's."""
    ratio = x * (1.0 / scale)
    clamped = _clamped(ratio, low, high)
    inside = tl.where(clamped == ratio, upstream, 0.0)
    return inside, _round(clamped) * upstream - inside * clamped


@triton.jit
def _normal(x):
    """Distribution function and density of the standard normal distribution.

    By Abramowitz and Stegun 7.1.26, within 1e-7: it has its exponential in common with the density.
    """
    power = _exp2(x * x * -0.7213475204444817)
    t = _reciprocal(1.0 + 0.23164189 * tl.abs(x))
    series = 0.5307027145 * t - 0.7265760135
    series = series * t + 0.7107068705
    series = series * t - 0.142248368
    series = series * t + 0.127414796
    tail = series * t * power
    return tl.where(x < 0, tail, 1.0 - tail), power * 0.3989422804014327


@triton.jit
def _probabilities(logits, total, step, highest_code):
    """Probabilities, and their codes."""
    p = _exp2(logits - total)
    return p, _round(_clamped(p * (1.0 / step), 0.0, highest_code))


@triton.jit
def _seen(logits, highest, sums):
    """Each row's maximum so far, and the sum of powers of 2 relative to it, after more logits."""
    now = tl.maximum(highest, tl.max(logits, 1))
    base = tl.where(now == float("-inf"), 0.0, now)  # as long as a mask has left nothing
    powers = tl.sum(_exp2(logits - base[:, None]), 1)
    return now, sums * _exp2(highest - base) + powers


@triton.jit
def gelu_lsq(
    x,
    shift,
    scale,
    out,
    images,
    positions,
    columns,
    low,
    high,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """See :func:`ofq.quantization.fused.gelu_lsq`."""
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known, there = position < positions, column < columns
    step = tl.load(scale + position, known, 1.0)[:, None]
    moved = tl.load(shift + column, there, 0.0)[None, :]
    place = position[:, None] * columns + column[None, :]
    for index in range(IMAGES):
        image = tl.program_id(2) * IMAGES + index
        start = image.to(tl.int64) * positions * columns
        within = known[:, None] & there[None, :] & (image < images)
        given = tl.load(x + start + place, within, 0.0)
        wide = given.to(tl.float32)
        share, _ = _normal(wide)
        activated = (wide * share).to(given.dtype).to(tl.float32) + moved
        found = _quantized(activated, step, low, high)
        tl.store(out + start + place, found.to(given.dtype), within)


@triton.jit
def gelu_lsq_backward(
    upstream,
    x,
    shift,
    scale,
    of_x,
    of_shift,
    of_scale,
    images,
    positions,
    columns,
    low,
    high,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Its gradients; those of shift and scale as sums of each program."""
    position = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known, there = position < positions, column < columns
    step = tl.load(scale + position, known, 1.0)[:, None]
    moved = tl.load(shift + column, there, 0.0)[None, :]
    place = position[:, None] * columns + column[None, :]
    total = tl.zeros([POSITIONS, COLUMNS], tl.float32)
    slopes = tl.zeros([POSITIONS, COLUMNS], tl.float32)
    for index in range(IMAGES):
        image = tl.program_id(2) * IMAGES + index
        start = image.to(tl.int64) * positions * columns
        within = known[:, None] & there[None, :] & (image < images)
        given = tl.load(x + start + place, within, 0.0)
        gradient = tl.load(upstream + start + place, within, 0.0).to(tl.float32)
        wide = given.to(tl.float32)
        share, density = _normal(wide)
        activated = (wide * share).to(given.dtype).to(tl.float32) + moved
        inside, slope = _gradients(gradient, activated, step, low, high)
        total += inside
        slopes += slope
        found = inside * (share + wide * density)
        tl.store(of_x + start + place, found.to(given.dtype), within)
    group = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    tl.store(of_shift + group * columns + column, tl.sum(total, 0), there)
    group = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    tl.store(of_scale + group * positions + position, tl.sum(slopes, 1), known)


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
    """Queries, keys and values as attention takes them."""
    start = tl.program_id(0).to(tl.int64) * tokens * (3 * HEADS * CHANNELS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    known = token < tokens
    part, head = tl.program_id(2) // HEADS, tl.program_id(2) % HEADS
    channel = tl.arange(0, CHANNELS)
    column = head * CHANNELS + channel
    place = token[:, None] * (3 * HEADS * CHANNELS)
    place += (tl.program_id(2) * CHANNELS + channel)[None, :]
    x = tl.load(qkv + start + place, known[:, None], 0.0).to(tl.float32)
    if part == 0:
        x = _quantized(x, tl.load(q_scale + token, known, 1.0)[:, None], low, high)
        x += tl.load(q_after + column)[None, :]
    elif part == 1:
        x = _quantized(x, tl.load(k_scale + token, known, 1.0)[:, None], low, high)
    else:
        x = _quantized(x, tl.load(v_scale + column)[None, :], low, high)
        x += tl.load(v_after + column)[None, :]
    tl.store(quantized + start + place, x.to(quantized.dtype.element_ty), known[:, None])


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
    """See :func:`ofq.quantization.fused.attend`, of quantized queries, keys and values."""
    pair = tl.program_id(0)
    image, head = (pair // HEADS).to(tl.int64), pair % HEADS
    width = HEADS * CHANNELS
    channel = tl.arange(0, CHANNELS)[None, :]
    base = quantized + image * tokens * 3 * width + head * CHANNELS
    query = tl.program_id(1) * TILE + tl.arange(0, TILE)
    asked = query < tokens
    q = tl.load(base + query[:, None] * 3 * width + channel, asked[:, None], 0.0)
    highest = tl.full([TILE], float("-inf"), tl.float32)
    sums = tl.zeros([TILE], tl.float32)
    for block in range(BLOCKS):
        key = block * TILE + tl.arange(0, TILE)
        known = key < tokens
        k = tl.load(base + width + key[:, None] * 3 * width + channel, known[:, None], 0.0)
        logits = tl.dot(q, tl.trans(k)) * (factor * _LOG2_E)
        logits = tl.where(known[None, :], logits, float("-inf"))
        highest, sums = _seen(logits, highest, sums)
    total = highest + tl.log2(sums)
    step = tl.load(p_scale + query, asked, 1.0)
    attended = tl.zeros([TILE, CHANNELS], tl.float32)
    within_range = tl.zeros([TILE, CHANNELS], tl.float32)
    for block in range(BLOCKS):
        key = block * TILE + tl.arange(0, TILE)
        known = key < tokens
        place = key[:, None] * 3 * width + channel
        k = tl.load(base + width + place, known[:, None], 0.0)
        v = tl.load(base + 2 * width + place, known[:, None], 0.0)
        logits = tl.dot(q, tl.trans(k)) * (factor * _LOG2_E)
        p, codes = _probabilities(logits, total[:, None], step[:, None], highest_code)
        attended += tl.dot(codes.to(v.dtype), v)  # v is 0 beyond the last key
        inside = tl.where(p <= highest_code * step[:, None], p, 0.0)
        within_range += tl.dot(inside.to(v.dtype), v)
    attended *= step[:, None]
    start = image * tokens * width + head * CHANNELS
    place = query[:, None] * width + channel
    tl.store(out + start + place, attended.to(q.dtype), asked[:, None])
    tl.store(inner + start + place, within_range.to(q.dtype), asked[:, None])
    tl.store(totals + pair * tokens + query, total, asked)


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
    """Gradients of queries, and of what is per query or query channel."""
    pair, block = tl.program_id(0), tl.program_id(1)
    image, head = (pair // HEADS).to(tl.int64), pair % HEADS
    width = HEADS * CHANNELS
    channel = tl.arange(0, CHANNELS)
    query = block * TILE + tl.arange(0, TILE)
    asked = query < tokens
    start = image * tokens * width + head * CHANNELS
    place = query[:, None] * width + channel[None, :]
    gradient = tl.load(upstream + start + place, asked[:, None], 0.0)
    wide = gradient.to(tl.float32)
    own_out = tl.load(out + start + place, asked[:, None], 0.0).to(tl.float32)
    own_inner = tl.load(inner + start + place, asked[:, None], 0.0).to(tl.float32)
    step = tl.load(p_scale + query, asked, 1.0)
    common = tl.sum(wide * own_inner, 1)
    of_step = tl.sum(wide * (own_out - own_inner), 1) / step
    tl.store(commons + pair * tokens + query, common, asked)
    tl.store(of_rows + pair * tokens + query, of_step, asked)
    start = image * tokens * 3 * width + head * CHANNELS
    base = quantized + start
    q_place = query[:, None] * 3 * width + channel[None, :]
    q = tl.load(base + q_place, asked[:, None], 0.0)
    total = tl.load(totals + pair * tokens + query, asked, float("inf"))
    of_q = tl.zeros([TILE, CHANNELS], tl.float32)
    for other in range(BLOCKS):
        key = other * TILE + tl.arange(0, TILE)
        known = key < tokens
        place = key[:, None] * 3 * width + channel[None, :]
        k = tl.load(base + width + place, known[:, None], 0.0)
        v = tl.load(base + 2 * width + place, known[:, None], 0.0)
        logits = tl.dot(q, tl.trans(k)) * (factor * _LOG2_E)
        p = _exp2(tl.where(known[None, :], logits, float("-inf")) - total[:, None])
        of_p = tl.dot(gradient, tl.trans(v))
        of_p = tl.where(p <= highest_code * step[:, None], of_p, 0.0) - common[:, None]
        of_q += tl.dot((p * of_p).to(k.dtype), k)
    of_q *= factor
    own_q = tl.load(qkv + start + q_place, asked[:, None], 0.0).to(tl.float32)
    q_step = tl.load(q_scale + query, asked, 1.0)[:, None]
    of_own, slope = _gradients(of_q, own_q, q_step, low, high)
    tl.store(of_qkv + start + q_place, of_own.to(q.dtype), asked[:, None])
    tl.store(of_rows + (pairs + pair) * tokens + query, tl.sum(slope, 1), asked)
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
    """Gradients of keys and values, and of what is per key or their channels."""
    pair, block, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    image, head = (pair // HEADS).to(tl.int64), pair % HEADS
    width = HEADS * CHANNELS
    channel = tl.arange(0, CHANNELS)
    key = block * TILE + tl.arange(0, TILE)
    known = key < tokens
    start = image * tokens * 3 * width + head * CHANNELS
    base = quantized + start
    k_place = width + key[:, None] * 3 * width + channel[None, :]
    v_place = k_place + width
    k = tl.load(base + k_place, known[:, None], 0.0)
    v = tl.load(base + v_place, known[:, None], 0.0)
    upstream += image * tokens * width + head * CHANNELS
    of_k = tl.zeros([TILE, CHANNELS], tl.float32)
    of_v = tl.zeros([TILE, CHANNELS], tl.float32)
    for other in range(BLOCKS):
        query = other * TILE + tl.arange(0, TILE)
        asked = query < tokens
        place = query[:, None] * width + channel[None, :]
        q = tl.load(base + query[:, None] * 3 * width + channel[None, :], asked[:, None], 0.0)
        gradient = tl.load(upstream + place, asked[:, None], 0.0)
        total = tl.load(totals + pair * tokens + query, asked, float("inf"))
        common = tl.load(commons + pair * tokens + query, asked, 0.0)
        step = tl.load(p_scale + query, asked, 1.0)
        logits = tl.dot(q, tl.trans(k)) * (factor * _LOG2_E)
        p, codes = _probabilities(logits, total[:, None], step[:, None], highest_code)
        of_v += tl.dot(tl.trans((codes * step[:, None]).to(k.dtype)), gradient)
        of_p = tl.dot(gradient, tl.trans(v))
        of_p = tl.where(p <= highest_code * step[:, None], of_p, 0.0) - common[:, None]
        of_k += tl.dot(tl.trans((p * of_p).to(k.dtype)), q)
    place = (block * pairs + pair) * CHANNELS + channel
    of_v = tl.where(known[:, None], of_v, 0.0)
    tl.store(of_columns + 2 * blocks * pairs * CHANNELS + place, tl.sum(of_v, 0))
    own_v = tl.load(qkv + start + v_place, known[:, None], 0.0).to(tl.float32)
    v_step = tl.load(v_scale + head * CHANNELS + channel)[None, :]
    of_own, slope = _gradients(of_v, own_v, v_step, low, high)
    tl.store(of_qkv + start + v_place, of_own.to(k.dtype), known[:, None])
    tl.store(of_columns + blocks * pairs * CHANNELS + place, tl.sum(slope, 0))
    own_k = tl.load(qkv + start + k_place, known[:, None], 0.0).to(tl.float32)
    k_step = tl.load(k_scale + key, known, 1.0)[:, None]
    of_own, slope = _gradients(of_k * factor, own_k, k_step, low, high)
    tl.store(of_qkv + start + k_place, of_own.to(k.dtype), known[:, None])
    tl.store(of_rows + (2 * pairs + pair) * tokens + key, tl.sum(slope, 1), known)


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
    """See :func:`ofq.quantization.fused.attend_logits`; strides of logits in vectors."""
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
        given = tl.load(logits + place + key, within, 0.0).to(tl.float32) * (factor * _LOG2_E)
        highest, sums = _seen(tl.where(key < tokens, given, float("-inf")), highest, sums)
    total = highest + tl.log2(sums)
    step = tl.load(p_scale + query, asked, 1.0)
    attended = tl.zeros([TILE, CHANNELS], tl.float32)
    within_range = tl.zeros([TILE, CHANNELS], tl.float32)
    for block in range(BLOCKS):
        key = block * TILE + tl.arange(0, TILE)
        v = tl.load(values + key[:, None] * values_token + channel, (key < tokens)[:, None], 0.0)
        within = asked[:, None] & (key < columns)[None, :]
        given = tl.load(logits + place + key[None, :], within, 0.0).to(tl.float32)
        given *= factor * _LOG2_E
        p, codes = _probabilities(given, total[:, None], step[:, None], highest_code)
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
        given = tl.where(known[None, :], given * (factor * _LOG2_E), float("-inf"))
        total = tl.load(totals + pair * tokens + query, asked, float("inf"))
        p, codes = _probabilities(given, total[:, None], step[:, None], highest_code)
        of_v += tl.dot(tl.trans((codes * step[:, None]).to(v.dtype)), gradient)
        of_p = tl.dot(gradient, tl.trans(v))
        of_p = tl.where(p <= highest_code * step[:, None], of_p, 0.0) - common[:, None]
        # padding has a gradient too, which is 0
        tl.store(of_logits + beside + place, (p * of_p * factor).to(v.dtype), within)
    tl.store(of_values + start + v_place, of_v.to(v.dtype), known[:, None])
