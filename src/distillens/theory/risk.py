"""Risk of stopped gradient flow and of its students, for known signal and noise, in closed form.

Shapes: K directions, G generations. Filters f have shape (..., K).

Targets y = Xβ* + ε have in direction u_k the signal power s_k = λ_k(v_kᵀβ*)² and the noise power
ν_k = E(u_kᵀε)². An estimate that keeps the share f_k has the expected excess risk

    R(f) = Σ_k w_k [(1 − f_k)² s_k + f_k² ν_k].

Bias-variance of linear filters, as in ridge regression and boosting (Bühlmann, Yu 2003); teacher and
student filters are those of arXiv 2301.12923. The best filter of all is Wiener's, s_k/(s_k + ν_k).

**When a student generalises better than its teacher.** ∂R/∂f_k = 2w_k(s_k + ν_k)(f_k − s_k/(s_k + ν_k)):
a direction gains from shrinking where the teacher has learnt more of it than Wiener's share. A student
that is trained nearly to the end differs from its teacher only in the slowest direction, so it is
better if the teacher has overfit that one; other stop times are compared by R itself.

**The best time to stop.** As a function of one stop time the risk may have several minima, so it is
evaluated on a grid of the logarithm of time and refined around each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar

from distillens.errors import TheoryError
from distillens.theory.checks import non_negative, positive, spectrum
from distillens.theory.flow import learnt_share

Array = NDArray[np.float64]

_GRID = 400


@dataclass(frozen=True, eq=False)
class Spectra:
    """A regression problem as its spectra; made by `spectra`. All arrays are (K,)."""

    eigenvalues_K: Array
    signal_K: Array
    noise_K: Array
    weight_K: Array

    def risk(self, filter_K: ArrayLike) -> Array:
        """Return R(f) of filters (..., K), in the shape (...)."""
        return self.bias(filter_K) + self.variance(filter_K)

    def bias(self, filter_K: ArrayLike) -> Array:
        """Return Σ w_k (1 − f_k)² s_k."""
        missing = 1 - self._fitting(filter_K)
        return missing**2 @ (self.weight_K * self.signal_K)

    def variance(self, filter_K: ArrayLike) -> Array:
        """Return Σ w_k f_k² ν_k."""
        return self._fitting(filter_K) ** 2 @ (self.weight_K * self.noise_K)

    def best_filter(self) -> Array:
        """Return Wiener's filter s_k/(s_k + ν_k), (K,); 0 where there is neither signal nor noise."""
        total = self.signal_K + self.noise_K
        return np.divide(self.signal_K, total, out=np.zeros_like(total), where=total > 0)

    def overfit(self, filter_K: ArrayLike) -> NDArray[np.bool_]:
        """Return where a filter keeps more than Wiener's: shrinking there lowers the risk, (..., K)."""
        return self._fitting(filter_K) > self.best_filter()

    def slow_student_helps(self, filter_K: ArrayLike) -> NDArray[np.bool_]:
        """Return whether students trained nearly to the end beat a teacher, (...).

        They do exactly if the risk falls as the slowest direction (smallest λ > 0, all of that value
        together) is shrunk: the others have then long been learnt.
        """
        kept = self._fitting(filter_K)
        seen = self.eigenvalues_K > 0
        slowest = seen & (self.eigenvalues_K == self.eigenvalues_K[seen].min())
        # The student's factor is 1 − δ in that direction: dR = −δ f ∂R/∂f.
        slope = self.weight_K * kept * (kept * (self.signal_K + self.noise_K) - self.signal_K)
        return slope[..., slowest].sum(axis=-1) > 0

    def _fitting(self, filter_K: ArrayLike) -> Array:
        kept = np.asarray(filter_K, dtype=np.float64)
        if kept.ndim == 0 or kept.shape[-1] != len(self.eigenvalues_K):
            raise TheoryError(
                f"a filter of shape {kept.shape} does not fit {len(self.eigenvalues_K)} eigenvalues"
            )
        return kept


def spectra(
    eigenvalues_K: ArrayLike,
    signal_K: ArrayLike,
    noise_K: ArrayLike,
    weight_K: ArrayLike | None = None,
) -> Spectra:
    """Check and return the spectra of a problem.

    Parameters
    ----------
    eigenvalues_K
        λ_k of XXᵀ, at least one above zero.
    signal_K
        s_k, the squared signal along u_k; a single number stands for all.
    noise_K
        ν_k, the noise variance along u_k; σ² for independent noise.
    weight_K
        w_k. By default 1/K: the mean squared error of the predictions on the K training inputs. For
        inputs whose covariance has variances m_k along v_k, w_k = m_k/λ_k.

    Raises
    ------
    TheoryError
        A number is negative or not finite, or shapes do not fit.
    """
    values = spectrum(eigenvalues_K)
    if not values.any():
        raise TheoryError("all eigenvalues are 0, so nothing is ever learnt; give one above 0")
    weight = 1 / len(values) if weight_K is None else weight_K
    named = {"the signal": signal_K, "the noise": noise_K, "the weight": weight}
    arrays = []
    for what, given in named.items():
        array = non_negative(given, what)
        if array.shape not in ((), values.shape):
            raise TheoryError(f"{what} has shape {array.shape}; give {values.shape} or one number")
        arrays.append(np.broadcast_to(array, values.shape).copy())
    return Spectra(values, *arrays)


def linear_model_spectra(
    eigenvalues_K: ArrayLike,
    true_weights_K: ArrayLike,
    noise_variance: float,
    test_variances_K: ArrayLike | None = None,
) -> Spectra:
    """Return the spectra of y = Xβ* + ε with independent noise.

    Parameters
    ----------
    eigenvalues_K
        λ_k of XXᵀ, all above 0.
    true_weights_K
        v_kᵀβ*.
    noise_variance
        σ² of one example.
    test_variances_K
        Variance of test inputs along v_k; by default the risk is that on the training inputs.

    Raises
    ------
    TheoryError
        A number is not in its range, or shapes do not fit.
    """
    values = positive(eigenvalues_K, "the spectrum")
    weights = np.asarray(true_weights_K, dtype=np.float64)
    weight = None
    if test_variances_K is not None:
        weight = non_negative(test_variances_K, "the test variances") / values
    return spectra(values, values * weights**2, noise_variance, weight)


@dataclass(frozen=True)
class Stop:
    """Stop times of all generations, the teacher first, and the risk of the last one."""

    times_G: tuple[float, ...]
    """Infinity where training to the end is best."""
    risk: float


def best_time(problem: Spectra, teacher_filter_K: ArrayLike | None = None) -> Stop:
    """Return the stop time with the lowest risk: of a teacher, or of a student of a given teacher.

    Parameters
    ----------
    problem
        The spectra.
    teacher_filter_K
        Filter of the teacher, (K,); by default the labels themselves are fitted.

    Raises
    ------
    TheoryError
        The filter has another shape.
    """
    above = np.ones_like(problem.eigenvalues_K)
    if teacher_filter_K is not None:
        above = np.asarray(teacher_filter_K, dtype=np.float64)
        if above.shape != problem.eigenvalues_K.shape:
            raise TheoryError(
                f"a teacher's filter of shape {above.shape} does not fit "
                f"{len(problem.eigenvalues_K)} eigenvalues"
            )
    grid = np.concatenate([time_grid(problem, _GRID), [np.inf]])
    risks = problem.risk(above * learnt_share(problem.eigenvalues_K, grid[:, None]))
    # The refined minima can be no worse than the grid, whose ends and whose infinity are candidates.
    lowest = int(np.argmin(risks))
    found = [(float(risks[lowest]), float(grid[lowest]))]

    def risk_at(log_time: float) -> float:
        kept = learnt_share(problem.eigenvalues_K, float(np.exp(log_time)))
        return float(problem.risk(above * kept))

    inner = np.arange(1, _GRID - 1)
    for place in inner[(risks[inner] <= risks[inner - 1]) & (risks[inner] < risks[inner + 1])]:
        bounds = np.log(grid[place - 1]), np.log(grid[place + 1])
        inside: Any = minimize_scalar(
            risk_at, bounds=bounds, method="bounded", options={"xatol": 1e-10}
        )
        found.append((float(inside.fun), float(np.exp(inside.x))))
    risk, time = min(found)
    # Late times differ from the end by rounding only; then the end is the answer.
    if risks[-1] <= risk * (1 + 1e-15):
        risk, time = float(risks[-1]), np.inf
    return Stop((time,), risk)


def best_times(problem: Spectra, generations: int) -> Stop:
    """Return the stop times of a line of generations that give the last one the lowest risk.

    Each generation fits the one before it. One more generation can be no worse: trained to the end it
    copies its teacher. The search starts from the best shorter line and from equal times; it is a local
    one in G dimensions, so for G > 1 the result is an upper bound on the lowest risk.

    Raises
    ------
    TheoryError
        There is no generation.
    """
    if generations < 1:
        raise TheoryError(f"{generations} generations; give at least 1")
    if generations == 1:
        return best_time(problem)
    shorter = best_times(problem, generations - 1)
    best = Stop((*shorter.times_G, np.inf), shorter.risk)
    grid = time_grid(problem, _GRID)
    bounds = (float(np.log(grid[0])), float(np.log(grid[-1])))

    def risk_at(log_times: Array) -> float:
        kept = learnt_share(problem.eigenvalues_K, np.exp(log_times)[:, None]).prod(axis=0)
        return float(problem.risk(kept))

    equal = np.log(grid)[:, None].repeat(generations, axis=1)
    starts = [
        equal[int(np.argmin([risk_at(times) for times in equal]))],
        np.clip(np.log(best.times_G), *bounds),
    ]
    for start in starts:
        found = minimize(
            risk_at,
            start,
            method="Nelder-Mead",
            bounds=[bounds] * generations,
            options={"xatol": 1e-8, "fatol": 1e-14, "maxiter": 4000},
        )
        if found.fun < best.risk:
            # Generations commute, so the order is free; the teacher is the one trained longest.
            times = sorted((float(time) for time in np.exp(found.x)), reverse=True)
            best = Stop(tuple(times), float(found.fun))
    return best


def time_grid(problem: Spectra, count: int) -> Array:
    """Return times from long before the fastest direction moves to when the slowest is learnt."""
    values = problem.eigenvalues_K[problem.eigenvalues_K > 0]
    return np.geomspace(1e-4 / values.max(), 50 / values.min(), count)
