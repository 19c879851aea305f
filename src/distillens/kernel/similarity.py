"""The similarity of the kernels of two networks, without a Gram matrix of either.

E_v ⟨K_f v, K_g v⟩ / (‖K_f v‖ ‖K_g v‖) over v ∼ N(0, I). A probe v takes one gradient and one directional
derivative of each network (Harutyunyan et al., ICLR 2023, arXiv 2301.12245, eq. 12). K is the full
kernel, (NO, NO) for O outputs.

Their centred alignment (Cortes, Mohri, Rostamizadeh, JMLR 2012, Def. 4) comes from the same products,
since ⟨A, B⟩ = E_v ⟨Av, Bv⟩ in the Frobenius product: with A = HK_fH and B = HK_gH it is
⟨A, B⟩/(‖A‖ ‖B‖), each estimated over probes.

Shapes: N examples, O outputs.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel.autograd_products import AutogradProducts
from distillens.kernel.tracing.grad_mode import differentiating
from distillens.kernel.tracing.network import explained, prepare
from distillens.progress import Progress, silent


@dataclass(frozen=True)
class NTKSimilarity:
    """The mean cosine over probes; 1 for kernels that are multiples of each other."""

    value: float
    standard_error: float | None
    """Standard error of the mean; None for one probe."""
    cosines: tuple[float, ...]
    """One for each probe."""
    examples: int


@dataclass(frozen=True)
class CentredNTKAlignment:
    """A ratio of means over probes; 1 for kernels that differ by a factor and a constant.

    Like every centred alignment it is well above 0 for few examples, even of unrelated networks.
    """

    value: float
    standard_error: float | None
    """Standard error by the jackknife over probes; None for one probe."""
    probes: int
    examples: int


@differentiating
def ntk_similarity(
    model: nn.Module,
    other: nn.Module,
    inputs: Tensor,
    *,
    probes: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    batch: int = 128,
    progress: Progress = silent,
) -> NTKSimilarity:
    """Compare the kernels of two networks on N examples.

    Parameters
    ----------
    model, other
        Networks with the same outputs, such as a student and its teacher; neither is changed.
    inputs
        N examples that both take, (N, ...).
    probes
        Number of random vectors; each costs about five forward passes of each network.
    seed
        Seed of the probes.
    dtype
        float32 or float64.
    batch
        Examples in a pass.
    progress
        Receives the progress.

    Raises
    ------
    KernelError
        The networks have different outputs, an input or weight is not finite, BatchNorm is in
        training mode, or a kernel is zero on these examples.
    """
    sums = _probe_sums(
        model, other, inputs, "NTK similarity", probes, seed, dtype, batch, False, progress
    )
    cosines = [_alignment([each]) for each in sums]
    error = statistics.stdev(cosines) / probes**0.5 if probes > 1 else None
    return NTKSimilarity(statistics.fmean(cosines), error, tuple(cosines), len(inputs))


@differentiating
def centred_ntk_alignment(
    model: nn.Module,
    other: nn.Module,
    inputs: Tensor,
    *,
    probes: int = 16,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    batch: int = 128,
    progress: Progress = silent,
) -> CentredNTKAlignment:
    """Estimate the centred alignment of the kernels of two networks on N examples.

    Each output is centred over the examples: H = (I − 11ᵀ/N) ⊗ I for O outputs. Parameters and
    errors are those of `ntk_similarity`.
    """
    sums = _probe_sums(
        model, other, inputs, "centred alignment", probes, seed, dtype, batch, True, progress
    )
    error = None
    if probes > 1:
        without = [_alignment(sums[:k] + sums[k + 1 :]) for k in range(probes)]
        error = math.sqrt((probes - 1) * statistics.pvariance(without))
    return CentredNTKAlignment(_alignment(sums), error, probes, len(inputs))


def _alignment(sums: list[tuple[float, float, float]]) -> float:
    product, first, second = (math.fsum(each) for each in zip(*sums, strict=True))
    return product / math.sqrt(first * second)


def _probe_sums(
    model: nn.Module,
    other: nn.Module,
    inputs: Tensor,
    title: str,
    probes: int,
    seed: int,
    dtype: torch.dtype,
    batch: int,
    centred: bool,
    progress: Progress,
) -> list[tuple[float, float, float]]:
    """Return ⟨K_f v, K_g v⟩, ‖K_f v‖² and ‖K_g v‖² for each probe v, perhaps centred."""
    if probes < 1:
        raise KernelError(f"{probes} probes; give at least 1")
    prepared = [prepare(each, None, dtype) for each in (model, other)]
    examples = [each.examples(inputs, "inputs") for each in prepared]
    all_outputs = [each.directions("full", x) for each, x in zip(prepared, examples, strict=True)]
    counts = [len(each) for each in all_outputs]
    if counts[0] != counts[1]:
        raise KernelError(
            f"the networks have {counts[0]} and {counts[1]} outputs; their kernels can be compared "
            "for the same outputs only"
        )
    kernels = [AutogradProducts(each, batch) for each in prepared]
    generator = torch.Generator().manual_seed(seed)
    sums = []
    with progress(title, probes) as advance:
        for _ in range(probes):
            probe = torch.randn(len(inputs), counts[0], generator=generator, dtype=torch.float64)
            if centred:
                probe = probe - probe.mean(dim=0)
            moved = []
            for kernel, x, every in zip(kernels, examples, all_outputs, strict=True):
                with explained("while its kernel is computed"):
                    found = kernel.product(x, x, every, probe.to(x.device, dtype)).double().cpu()
                if centred:
                    found = found - found.mean(dim=0)
                size = float(found.norm())
                if size == 0 or not math.isfinite(size):
                    raise KernelError(
                        f"a kernel's product with a probe has the norm {size:g}; look for dead or "
                        "non-finite outputs"
                    )
                moved.append(found)
            left, right = moved
            each = (left * right).sum(), left.square().sum(), right.square().sum()
            sums.append((float(each[0]), float(each[1]), float(each[2])))
            advance(1)
    return sums
