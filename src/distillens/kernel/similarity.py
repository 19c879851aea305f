"""How alike the kernels of two networks are, without a Gram of either.

E_v ⟨K_f v, K_g v⟩ / (‖K_f v‖ ‖K_g v‖) over v ∼ N(0, I): one gradient and one directional derivative
of each network a probe (Harutyunyan et al., ICLR 2023, arXiv 2301.12245, eq. 12). K is the full
kernel, (NO, NO) for O outputs.

Shapes: N examples, O outputs.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distillens.errors import KernelError
from distillens.kernel.network import prepare
from distillens.kernel.plain import PlainProducts
from distillens.progress import Progress, silent


@dataclass(frozen=True)
class NTKSimilarity:
    """The mean cosine over probes; 1 for kernels that are multiples of each other."""

    value: float
    standard_error: float | None
    """Of the mean; None for one probe."""
    cosines: tuple[float, ...]
    """One a probe."""
    examples: int


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
        Networks with the same outputs, say a student and its teacher; both stay as they are.
    inputs
        N examples that both take, (N, ...).
    probes
        Random vectors; each costs about five forward passes of each network.
    seed
        Of the probes.
    dtype
        float32 or float64.
    batch
        Examples of a pass.
    progress
        Where to show how far it is.

    Raises
    ------
    KernelError
        The networks have different outputs, an input or weight is not finite, BatchNorm is in
        training mode, or a kernel is zero on these examples.
    """
    if probes < 1:
        raise KernelError(f"{probes} probes; give at least 1")
    prepared = [prepare(each, None, dtype) for each in (model, other)]
    examples = [each.examples(inputs, "inputs") for each in prepared]
    counts = [each.count_outputs(x[:1]) for each, x in zip(prepared, examples, strict=True)]
    if counts[0] != counts[1]:
        raise KernelError(
            f"the networks have {counts[0]} and {counts[1]} outputs; their kernels can be compared "
            "for the same outputs only"
        )
    products = [PlainProducts(each.network, each.parameters, batch) for each in prepared]
    generator = torch.Generator().manual_seed(seed)
    cosines = []
    with progress("NTK similarity", probes) as advance:
        for _ in range(probes):
            probe = torch.randn(len(inputs), counts[0], generator=generator, dtype=torch.float64)
            moved = []
            for product, x in zip(products, examples, strict=True):
                one = torch.eye(counts[0], dtype=dtype, device=x.device)
                found = product.product(x, x, one, probe.to(one)).double().cpu()
                size = float(found.norm())
                if size == 0 or not torch.isfinite(found).all():
                    raise KernelError(
                        f"a kernel's product with a probe has the norm {size:g}; look for dead or "
                        "non-finite outputs"
                    )
                moved.append(found / size)
            cosines.append(float((moved[0] * moved[1]).sum()))
            advance(1)
    error = statistics.stdev(cosines) / probes**0.5 if probes > 1 else None
    return NTKSimilarity(statistics.fmean(cosines), error, tuple(cosines), len(inputs))
