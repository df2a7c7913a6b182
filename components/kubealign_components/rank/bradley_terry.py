"""Strengths of a prompt's completions from comparisons of two, with standard errors.

The model is that of R. A. Bradley and M. E. Terry (Rank Analysis of Incomplete Block Designs, Biometrika 39,
1952), with a term for the place in which a completion is shown (R. R. Davidson and R. J. Beaver, On Extending
the Bradley-Terry Model to Incorporate Within-Pair Order Effects, Biometrics 33, 1977): the log-odds that
``i``, shown first, is preferred to ``j`` are ``strength[i] - strength[j] + position``.

A judge gives probabilities and not votes, so what is maximised is the quasi-likelihood of fractions
(L. E. Papke and J. M. Wooldridge, Econometric Methods for Fractional Response Variables, Journal of Applied
Econometrics 11, 1996), with a small ridge that keeps what was never compared finite. How far the judge strays
from one scale of strengths is its dispersion, by which the inverse of the Fisher information is multiplied:
a judge without contradictions has small errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit

from kubealign_components.data.segments import Floats, Ints

RIDGE = 0.02
"""Added to the information of each parameter: a prior of mean 0."""
PRIOR_DISPERSION, PRIOR_COMPARISONS = 0.1, 2.0
"""What the dispersion is taken for before any comparison, and how many that belief is worth; 1 is the
dispersion of single votes."""
_STEPS, _TOLERANCE = 100, 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparisons:
    """Pairs that were shown in both orders; arrays of shape (m,)."""

    one: Ints
    other: Ints
    """Positions of the two completions."""
    shown_first: Floats
    """Probability that ``one`` is preferred, ``one`` shown first."""
    shown_second: Floats
    """Probability that ``one`` is preferred, ``other`` shown first."""

    @property
    def consistent(self) -> int:
        """Number of pairs of which both orders prefer the same completion."""
        return int(((self.shown_first - 0.5) * (self.shown_second - 0.5) > 0).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class Strengths:
    """What ``n`` completions are worth, in nats of log-odds."""

    value: Floats
    """Strengths of mean 0, shape (n,)."""
    covariance: Floats
    """Of the strengths, shape (n, n)."""
    position: float
    """Log-odds by which the response that is shown first is preferred."""
    dispersion: float
    """Variance of the judge around the model, in that of single votes."""

    @property
    def error(self) -> Floats:
        """Standard error of each value, shape (n,)."""
        return np.asarray(np.sqrt(np.diag(self.covariance)))


def fit(count: int, compared: Comparisons) -> Strengths:
    """The strengths of ``count`` completions that explain ``compared`` best."""
    design = _design(count, compared)
    preferred = np.stack([compared.shown_first, compared.shown_second])
    parameters = _maximise(design, preferred)
    expected = expit(design @ parameters)
    spread = expected * (1 - expected)
    dispersion = _dispersion(count, preferred - expected, spread)
    # Only differences are observed: variances are those of strengths of mean 0.
    centred = np.eye(count) - 1 / count
    inverse = np.linalg.inv(_information(design, spread))[:count, :count]
    return Strengths(
        value=parameters[:count] - parameters[:count].mean(),
        covariance=dispersion * centred @ inverse @ centred,
        position=float(parameters[count]),
        dispersion=dispersion,
    )


def _design(count: int, compared: Comparisons) -> Floats:
    """Coefficients of strengths and position for either order of each pair, shape (2, m, count + 1)."""
    pairs = np.arange(len(compared.one))
    design = np.zeros((2, len(pairs), count + 1))
    design[:, pairs, compared.one] = 1
    design[:, pairs, compared.other] = -1
    design[0, :, count] = 1
    design[1, :, count] = -1
    return design


def _maximise(design: Floats, preferred: Floats) -> Floats:
    """The parameters of greatest penalised quasi-likelihood, by Newton's method with halved steps."""
    parameters = np.zeros(design.shape[-1])
    best = _objective(design, preferred, parameters)
    for _ in range(_STEPS):
        expected = expit(design @ parameters)
        slope = np.einsum("omk,om->k", design, preferred - expected) - RIDGE * parameters
        step = np.linalg.solve(_information(design, expected * (1 - expected)), slope)
        while (value := _objective(design, preferred, parameters + step)) < best:
            step = step / 2
            if np.abs(step).max() < _TOLERANCE:
                return parameters
        parameters, best = parameters + step, value
        if np.abs(step).max() < _TOLERANCE:
            break
    return parameters


def _objective(design: Floats, preferred: Floats, parameters: Floats) -> float:
    log_odds = design @ parameters
    likelihood = preferred * log_expit(log_odds) + (1 - preferred) * log_expit(-log_odds)
    return float(likelihood.sum() - RIDGE / 2 * parameters @ parameters)


def _information(design: Floats, spread: Floats) -> Floats:
    """Fisher information and ridge, shape (count + 1, count + 1)."""
    information = np.einsum("omk,om,oml->kl", design, spread, design)
    return np.asarray(information + RIDGE * np.eye(design.shape[-1]))


def _dispersion(count: int, residual: Floats, spread: Floats) -> float:
    """Pearson's statistic by its degrees of freedom, both orders of a pair taken as one observation: what is
    odd about two texts is so in either order."""
    statistic = float((residual.sum(axis=0) ** 2 / np.maximum(spread.sum(axis=0), 1e-12)).sum())
    freedom = max(int(residual.shape[1]) - (count - 1), 0)
    return float((PRIOR_COMPARISONS * PRIOR_DISPERSION + statistic) / (PRIOR_COMPARISONS + freedom))
