"""The profile of a Gram: spectrum, references, bounds and the teacher's kernel.

Shapes: N examples, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from distillens.errors import KernelError, MeasureError
from distillens.kernel import EmpiricalNTK, ntk_similarity
from distillens.measures import (
    ComplexityMeter,
    GramSpectrum,
    binary_bound,
    centred_alignment,
    decompose_gram,
    diagonal_reference,
    distillation_bound,
    multiclass_bound,
    random_target_level,
)
from distillens.measures.complexity.bounds import kernel_fit
from distillens.progress import Progress, silent
from distillens.results.complexity import (
    GramProfile,
    KernelForm,
    RiskBound,
    TargetProfile,
    TeacherKernel,
)

Array = NDArray[np.float64]

_COMPARED = 256
"""Number of examples on which two kernels are compared."""
_PROBES = 8
"""Number of random probes; each costs about five passes of both networks."""


@dataclass(frozen=True, eq=False)
class Decomposed:
    """The spectrum of a Gram and energies of the targets; the eigenvectors are not kept."""

    spectrum: GramSpectrum
    ranks: tuple[int, ...]
    targets: Mapping[str, Array]
    energies: Mapping[str, tuple[float, ...]]
    """Energies of each target set at the ranks."""


def decompose(gram: ArrayLike, form: KernelForm, targets: Mapping[str, Array]) -> Decomposed | None:
    """Decompose a Gram and measure the targets' energies; None for a Gram that is zero.

    The eigenvectors temporarily take as much memory as the Gram.
    """
    values = np.asarray(gram)
    if not values.any():
        return None
    spectrum = decompose_gram(values, form)
    count = len(spectrum.eigenvalues_K)
    ranks = sorted({1 << power for power in range(count.bit_length())} | {count})
    places = np.array(ranks) - 1
    return Decomposed(
        spectrum=replace(spectrum, _vectors=()),
        ranks=tuple(ranks),
        targets=targets,
        energies={
            name: tuple(spectrum.energy(y).share_K[places].tolist()) if y.any() else ()
            for name, y in targets.items()
        },
    )


def profile(
    found: Decomposed,
    meter: ComplexityMeter,
    labels: str | None,
    classes_N: ArrayLike | None = None,
    epoch: int | None = None,
    notes: tuple[str, ...] = (),
) -> GramProfile:
    """Return a Gram's profile, with references and bounds of the meter's kernel, ridge included.

    Bounds need the true labels: ``labels`` is the target set that holds them, coded; ``classes_N`` are
    they themselves, where there are several outputs.
    """
    spectrum, level = found.spectrum, _random_level(found, meter)
    rows, lines = [], list(notes)
    if meter.singular is not None:
        lines.append("no bounds: the Gram is singular; give a ridge")
    for name, y in found.targets.items():
        bound = None
        if meter.singular is None:
            try:
                bound = _bound(meter, name, found.targets, labels, classes_N)
            except MeasureError as error:
                # The theorems do not cover these targets; the rest of the profile is unaffected.
                lines.append(f"no bound for {name}: {error}")
        size = float(np.sqrt(np.sum(y**2) / len(y)))
        rows.append(
            TargetProfile(
                name=name,
                diagonal=diagonal_reference(y, spectrum.form),
                random=None if level is None or size == 0 else level * size,
                energy=found.energies[name],
                bound=bound,
            )
        )
    return GramProfile(
        epoch=epoch,
        trace=float(spectrum.eigenvalues_K.sum()),
        condition=spectrum.condition,
        effective_rank=spectrum.effective_rank,
        stable_rank=spectrum.stable_rank,
        negative=spectrum.negative,
        ranks=found.ranks,
        eigenvalues=tuple(spectrum.eigenvalues_K[np.array(found.ranks) - 1].tolist()),
        targets=tuple(rows),
        notes=tuple(lines),
    )


def compare_kernels(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Tensor,
    outputs: int | tuple[int, int] | None,
    progress: Progress = silent,
) -> TeacherKernel:
    """Compare the kernels of two networks on the first of N examples, in float32.

    Parameters
    ----------
    student, teacher
        Networks with the same outputs, in evaluation mode.
    inputs
        N examples that both take.
    outputs
        Outputs whose Grams are aligned: one output, or None for the mean over outputs.

    Raises
    ------
    KernelError
        As `ntk_similarity` and `EmpiricalNTK.gram`; or a Gram is constant.
    """
    part = inputs[:_COMPARED]
    similarity = ntk_similarity(student, teacher, part, probes=_PROBES, progress=progress)
    wanted = "trace" if outputs is None else outputs
    grams = [
        EmpiricalNTK(each, outputs=wanted, alone=True).gram(part).values.cpu().numpy()
        for each in (student, teacher)
    ]
    try:
        alignment = centred_alignment(*grams)
    except MeasureError as error:
        raise KernelError(str(error)) from None
    return TeacherKernel(
        examples=len(part),
        similarity=similarity.value,
        standard_error=similarity.standard_error,
        probes=_PROBES,
        kernel="mean over outputs" if outputs is None else f"output {outputs}",
        alignment=alignment.value,
    )


def _random_level(found: Decomposed, meter: ComplexityMeter) -> float | None:
    """Return the normalised* complexity of random targets; there is none for the full form."""
    form = found.spectrum.form
    if form == "full":
        return None
    if meter.singular is not None:
        return float("inf")
    outputs = 1 if form == "binary" else next(iter(found.targets.values())).shape[1]
    return random_target_level(found.spectrum.eigenvalues_K, form, outputs, meter.ridge)


def _bound(
    meter: ComplexityMeter,
    name: str,
    targets: Mapping[str, Array],
    labels: str | None,
    classes_N: ArrayLike | None,
) -> RiskBound:
    """Return the bound on the risk of the kernel's fit of one target set."""
    y = targets[name]
    fit = kernel_fit(meter, y)
    if meter.form != "binary":
        assert classes_N is not None  # measurements of several outputs give the classes
        return multiclass_bound(fit, classes_N)
    if labels is None or name == labels:
        return binary_bound(fit, y)
    risk = float(np.mean(np.sign(targets[labels]) * y <= 0))
    return distillation_bound(fit, y, risk)
