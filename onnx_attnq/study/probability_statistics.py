"""Attention probabilities in, `SiteStats` out: the one place where the statistics are computed.

Works through blocks of rows, because every statistic is a sum over rows; so memory stays bounded at any
sequence length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from onnx_attnq.scheme import QuantScheme, numerics
from onnx_attnq.study.mergeable_arrays import FloatArray, IntArray, entropy_bits
from onnx_attnq.study.scheme_statistics import SchemeStats
from onnx_attnq.study.site_statistics import BINS, EDGES, MAJORITIES, SiteStats

BoolArray = npt.NDArray[np.bool_]

BLOCK_VALUES: Final = 1 << 18
"""Probabilities that are worked on at a time: 2 MB in float64, with about ten such arrays alive."""


def measure(
    site: str,
    probabilities: npt.ArrayLike,
    valid: npt.ArrayLike = True,
    schemes: Sequence[QuantScheme] = (),
    *,
    value: npt.ArrayLike | None = None,
    separators: npt.ArrayLike | None = None,
) -> SiteStats:
    """The statistics of one batch of attention probabilities.

    Args:
        site: Site id, for the record.
        probabilities: (B, H, L_q, L_k), softmax over the last axis.
        valid: Boolean, broadcastable to it; False for padding and masked positions.
        schemes: What to quantize with, each measured against the probabilities.
        value: V, broadcastable to (B, H, L_k, D); without it the error of the context is not measured.
        separators: (B, L_k) boolean, True for the keys that are separator tokens; None when not known.

    Returns:
        Statistics of the valid values. Rows without a valid key are left out; rows with a NaN are counted only.

    >>> stats = measure("layer.0", [[[[0.5, 0.5], [0.9995, 0.0005]]]])
    >>> stats.values.tolist(), stats.mean_entropy.round(3).tolist(), stats.share_below()[0, 70].item()
    ([4], [0.503], 0.25)
    """
    p = np.asarray(probabilities)
    if p.ndim != 4:
        raise ValueError(f"probabilities must be (B, H, L_q, L_k), not of shape {p.shape}")
    batch, heads, queries, keys = p.shape
    mask = np.broadcast_to(np.asarray(valid, dtype=np.bool_), p.shape)
    v = None if value is None else np.asarray(value, dtype=np.float64)
    if v is not None:
        v = np.broadcast_to(v, (batch, heads, keys, v.shape[-1]))
    stats = SiteStats.empty(site, heads, tuple(schemes))
    for b, rows in _blocks(batch, queries, heads * keys):
        known = None if separators is None else np.asarray(separators, dtype=np.bool_)[b]
        block = _Block(
            p[b, :, rows],
            mask[b, :, rows],
            first_key=int(mask[b].any(axis=(0, 1)).argmax()) if keys else None,
            first_self=rows.start if queries == keys else None,
        )
        stats = stats.merge(block.measure(site, schemes, None if v is None else v[b], known))
    return stats


def _blocks(batch: int, queries: int, values_per_row: int) -> Iterator[tuple[int, slice]]:
    step = max(1, BLOCK_VALUES // max(1, values_per_row))
    for b in range(batch):
        for start in range(0, queries, step):
            yield b, slice(start, min(start + step, queries))


class _Block:
    """The rows of all heads at some queries of one sample; arrays are (H, R, L_k) or (H, R)."""

    def __init__(
        self, p: npt.NDArray[np.generic], valid: BoolArray, first_key: int | None, first_self: int | None
    ) -> None:
        """``first_key`` is the sample's first key that is no padding, ``first_self`` the first row's own token."""
        p = p.astype(np.float64)
        self.nan_rows = (np.isnan(p) & valid).any(axis=-1)
        self.valid = valid & ~self.nan_rows[..., None]
        self.p = np.where(self.valid, p, 0.0)
        self.keys = self.valid.sum(axis=-1)
        self.rows = self.keys > 0
        self.total = self.p.sum(axis=-1)
        self.unit = self.p / np.where(self.total == 0.0, 1.0, self.total)[..., None]
        self.entropy = entropy_bits(self.unit)
        self.falling = np.sort(self.p, axis=-1)[..., ::-1]  # what is masked is 0 and comes last
        self.first_key, self.first_self = first_key, first_self

    def measure(
        self, site: str, schemes: Sequence[QuantScheme], value: FloatArray | None, separators: BoolArray | None
    ) -> SiteStats:
        p, valid, rows = self.p, self.valid, self.rows
        peak = self.falling[..., :1]
        histogram, mass = self._histogram(self.falling)
        relative_histogram, relative_mass = self._histogram(self.falling / np.where(peak == 0.0, 1.0, peak))
        tokens, median = self._order_statistics()
        to_self, self_rows = self._to_self()
        row_count = rows.sum(axis=1)
        nothing = np.zeros(rows.shape[0])
        common = rows.all(axis=0)
        return SiteStats(
            site=site,
            values=self.keys.sum(axis=1),
            rows=row_count,
            nan_rows=self.nan_rows.sum(axis=1),
            histogram=histogram,
            mass=mass,
            relative_histogram=relative_histogram,
            relative_mass=relative_mass,
            minimum=np.where(valid, p, np.inf).min(axis=(1, 2), initial=np.inf),
            maximum=np.where(valid, p, -np.inf).max(axis=(1, 2), initial=-np.inf),
            total=self.total.sum(axis=1),
            squares=(p * p).sum(axis=(1, 2)),
            below_uniform=(valid & (p < (1.0 / np.maximum(self.keys, 1))[..., None])).sum(axis=(1, 2)),
            entropy=self.entropy.sum(axis=1),
            row_median=median.sum(axis=1),
            row_median_squares=(median**2).sum(axis=1),
            majority_tokens=tokens.sum(axis=1),
            majority_squares=(tokens**2).sum(axis=1),
            majority_share=(tokens / np.maximum(self.keys, 1)[..., None]).sum(axis=1),
            to_first=nothing if self.first_key is None else p[..., self.first_key].sum(axis=1),
            to_self=to_self,
            self_rows=self_rows,
            to_separator=nothing if separators is None else p[..., separators].sum(axis=(1, 2)),
            separator_rows=np.zeros_like(row_count) if separators is None else row_count,
            head_divergence=np.asarray(
                ((entropy_bits(self.unit.mean(axis=0)) - self.entropy.mean(axis=0)) * common).sum()
            ),
            head_rows=np.asarray(common.sum()),
            schemes=self._schemes(schemes, value),
        )

    def _histogram(self, x: FloatArray) -> tuple[IntArray, FloatArray]:
        """Number and sum of the values per bin of ``x``, which is sorted like ``falling``; each (H, BINS)."""
        heads, _, keys = x.shape
        found = np.searchsorted(EDGES, x, side="right")  # several times faster on sorted rows
        flat = (found + BINS * np.arange(heads)[:, None, None]).ravel()
        kept = (np.arange(keys) < self.keys[..., None]).ravel()
        counts = np.bincount(flat[kept], minlength=heads * BINS).astype(np.int64)
        sums = np.bincount(flat, weights=self.falling.ravel(), minlength=heads * BINS)
        return counts.reshape(heads, BINS), np.asarray(sums.reshape(heads, BINS), dtype=np.float64)

    def _order_statistics(self) -> tuple[IntArray, FloatArray]:
        """Per row the number of keys to each majority (H, R, T), and log10 of the median value (H, R)."""
        last = self.p.shape[-1] - 1
        if last < 0:
            return np.zeros((*self.rows.shape, len(MAJORITIES)), np.int64), np.zeros(self.rows.shape)
        held = np.cumsum(self.falling, axis=-1)
        wanted = np.asarray(MAJORITIES) * self.total[..., None]
        tokens = np.stack([(held < wanted[..., i, None]).sum(axis=-1) + 1 for i in range(len(MAJORITIES))], axis=-1)
        tokens = np.where(self.rows[..., None], tokens, 0)
        middle = np.stack([np.maximum(self.keys - 1, 0) // 2, np.minimum(self.keys // 2, last)], axis=-1)
        pair = np.log10(np.maximum(np.take_along_axis(self.falling, middle, axis=-1), EDGES[0]))
        return tokens, np.where(self.rows, pair.mean(axis=-1), 0.0)

    def _to_self(self) -> tuple[FloatArray, IntArray]:
        if self.first_self is None:
            return np.zeros(self.rows.shape[0]), np.zeros(self.rows.shape[0], np.int64)
        diagonal = np.diagonal(self.p, offset=self.first_self, axis1=1, axis2=2)
        return diagonal.sum(axis=1), self.rows.sum(axis=1)

    def _schemes(self, schemes: Sequence[QuantScheme], value: FloatArray | None) -> tuple[SchemeStats, ...]:
        context = None if value is None else self.p @ value
        return tuple(self._scheme(scheme, value, context) for scheme in schemes)

    def _scheme(self, scheme: QuantScheme, value: FloatArray | None, context: FloatArray | None) -> SchemeStats:
        quantized = numerics.quantize_probabilities(self.p, scheme)
        # A pruned key of the sample is not zero where pruned values share what they summed to.
        pruned = (quantized == 0.0) | (numerics.codes(numerics.relative(self.p, scheme), scheme) == 0)
        total = quantized.sum(axis=-1)
        emptied = self.rows & (total == 0.0)
        unit = quantized / np.where(total == 0.0, 1.0, total)[..., None]
        divergence = entropy_bits((self.unit + unit) / 2.0) - (self.entropy + entropy_bits(unit)) / 2.0
        divergence = np.where(emptied, 1.0, np.clip(divergence, 0.0, 1.0)) * self.rows
        row_count = self.rows.sum(axis=1)
        error = size = np.zeros(self.rows.shape)
        if value is not None and context is not None:
            error = np.linalg.norm(quantized @ value - context, axis=-1) * self.rows
            size = np.linalg.norm(context, axis=-1) * self.rows
        seen = size > 0.0
        return SchemeStats(
            scheme=scheme,
            values=self.keys.sum(axis=1),
            pruned=(self.valid & pruned).sum(axis=(1, 2)),
            rows=row_count,
            emptied=emptied.sum(axis=1),
            divergence=divergence.sum(axis=1),
            context_rows=seen.sum(axis=1),
            context_error=(error / np.where(seen, size, 1.0) * seen).sum(axis=1),
            error_energy=(error**2).sum(axis=1),
            context_energy=(size**2).sum(axis=1),
        )


__all__ = ["BLOCK_VALUES", "measure"]
