"""Joint flips of query and key weights (paper, section on QKR)."""

import torch
from torch import Tensor, nn

from ofq.quantization import StatsQ
from ofq.quantization.attention import MergedQueryKey
from ofq.quantization.layers import QuantizedWeight
from ofq.training.probes.probe import Probe, Rows, spread, to_host


class _Channels(nn.Module):
    """Codes of the same channels of one attention's query and key weights, step by step.

    Attributes:
        previous: Codes of the previous step, (2, channels, in), query first.
        totals: Flips of each channel in the window, (2, channels).
        joint: Joint flips of partners and of strangers, (2,).
    """

    previous: Tensor
    totals: Tensor
    joint: Tensor
    channels: Tensor

    def __init__(self, rows: int, columns: int, count: int, device: torch.device) -> None:
        super().__init__()
        channels = spread(rows, count).to(device)
        shape = (2, len(channels))
        self.register_buffer("channels", channels, persistent=False)
        self.register_buffer(
            "previous", torch.zeros(*shape, columns, dtype=torch.int8, device=device)
        )
        self.register_buffer("totals", torch.zeros(shape, dtype=torch.int64, device=device))
        self.register_buffer("joint", torch.zeros(2, dtype=torch.int64, device=device))

    def codes(self, position: Tensor) -> Tensor:
        """Return the current codes, (2, channels, in), int8, from the weight's position."""
        raise NotImplementedError

    def compare(self, position: Tensor) -> None:
        """Count flips since the previous codes."""
        codes = self.codes(position)
        query, key = flips = (codes != self.previous).sum(-1)
        self.totals += flips
        strangers = key.roll(len(key) // 2)
        self.joint += torch.stack([(query * key).sum(), (query * strangers).sum()])
        self.previous.copy_(codes)


class _Separate(_Channels):
    """Codes without QKR: those that query and key are quantized to."""

    def __init__(self, weight: QuantizedWeight, count: int) -> None:
        query, key = (weight.roles[role] for role in ("q", "k"))
        latent = weight.latent()
        super().__init__(query.stop - query.start, latent.shape[1], count, latent.device)
        self.begins = query.start, key.start

    def codes(self, position: Tensor) -> Tensor:
        """Return the rounded positions of query and key, (2, channels, in), int8."""
        both = [position[begin + self.channels] for begin in self.begins]
        return torch.stack(both).round_().to(torch.int8)


class _Merged(_Channels):
    """Codes with QKR: those that StatsQ at the same bits would give W_q and W_k."""

    def __init__(self, owner: MergedQueryKey, bits: int, count: int) -> None:
        rows, columns = owner.q_weight.shape
        super().__init__(rows, columns, count, owner.q_weight.device)
        self.weights = owner.q_weight.detach(), owner.k_weight.detach()
        self.grid = StatsQ(bits)

    def codes(self, position: Tensor) -> Tensor:
        """Return StatsQ's codes of W_q and W_k, (2, channels, in), int8."""
        return torch.stack([self.grid.codes(weight[self.channels]) for weight in self.weights])


class JointFlips(Probe):
    """Counts of query and key weights that flip in the same step, compared with independence.

    Channel j of a head is row j of W_q and row j of W_k: the two meet in the logit Σ_j q_j·k_j and
    in no other product, so they are *partners*. With n_q[t, j] and n_k[t, j] weights of these rows
    whose code changes at step t of T, there are Σ_t n_q[t, j]·n_k[t, j] joint flips: pairs of a
    weight of W_q's row and one of W_k's that flip in the same step. For independent query and key,
    (Σ_t n_q)(Σ_t n_k)/T are expected. Both are summed over a window's T steps and the channels
    of a layer; the co-flip ratio is their quotient, 1 where query and key flip independently.

    A cause that moves all weights at once, such as a batch with large gradients, raises the ratio
    of any two rows. Therefore *strangers* are counted too: row j of W_q and the row of W_k half of
    all channels away, in another head if there are several.

    With QKR, W_q and W_k aren't quantized separately. Their codes are then those that StatsQ would
    give them at the merged weight's bits, to see whether they still flip together on such a grid.
    Query and key in low-rank form are left out.

    Args:
        weights: The model's low-bit weights.
        count: Most channels that are sampled of each attention layer.
    """

    table = "joint_flips"
    steps: Tensor

    def __init__(self, weights: list[QuantizedWeight], count: int) -> None:
        super().__init__()
        self.layers = {i: w.layer for i, w in enumerate(weights) if _has_both(w)}
        self.channels = nn.ModuleDict({str(i): _channels(weights[i], count) for i in self.layers})
        device = weights[0].latent().device
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    def see(self, index: int, latent: Tensor, position: Tensor, slot: int) -> None:
        """Compare the codes with the previous ones; before a window, only store them."""
        if index in self.layers:
            channels = self.channels[str(index)]
            assert isinstance(channels, _Channels)
            if slot < 0:
                channels.previous.copy_(channels.codes(position))
            else:
                channels.compare(position)

    def seen(self, slot: int) -> None:
        """Count the step of the window."""
        if slot >= 0:
            self.steps += 1

    def take(self, epoch: int, step: int) -> Rows:
        """Return a row per layer: steps, weights of each of the two, flips, joint and expected."""
        parts = [c for c in self.channels.values() if isinstance(c, _Channels)]
        counters = [self.steps, *(t for part in parts for t in (part.totals, part.joint))]
        steps, *numbers = to_host(counters)
        rows = []
        for layer, part, totals, joint in zip(
            self.layers.values(), parts, numbers[::2], numbers[1::2], strict=True
        ):
            query, key = totals.double()
            rows.append(
                {
                    "epoch": epoch,
                    "step": step,
                    "layer": layer,
                    "steps": int(steps),
                    "weights": part.previous[0].numel(),
                    "flips_q": int(query.sum()),
                    "flips_k": int(key.sum()),
                    "joint": int(joint[0]),
                    "expected": float(query @ key / steps),
                    "joint_strangers": int(joint[1]),
                    "expected_strangers": float(query @ key.roll(len(key) // 2) / steps),
                }
            )
        for counter in counters:
            counter.zero_()
        return rows


def _has_both(weight: QuantizedWeight) -> bool:
    return {"q", "k"} <= weight.roles.keys() or isinstance(weight.owner, MergedQueryKey)


def _channels(weight: QuantizedWeight, count: int) -> _Channels:
    if isinstance(weight.owner, MergedQueryKey):
        return _Merged(weight.owner, weight.quantizer.bits, count)
    return _Separate(weight, count)
