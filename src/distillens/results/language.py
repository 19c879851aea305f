"""Results of studies of language models, as frozen dataclasses. JSON as in `distillens.results`."""

from __future__ import annotations

from dataclasses import dataclass

from distillens.results.base import Estimate, Result
from distillens.results.confidence import Audit


@dataclass(frozen=True)
class LanguageModelResult(Result):
    """One language model on the test sentences.

    ``loss`` is the mean cross-entropy of a token in nats, ``accuracy`` the share of tokens that have
    the highest logit; their intervals take sentences, not tokens, as independent.
    """

    name: str
    """"teacher", or the supervision's name in the recipe."""
    seed: int
    parameters: int
    epochs: int
    seconds: float
    test_loss: Estimate
    test_accuracy: Estimate
    weights_digest: str


@dataclass(frozen=True)
class TokenAudit(Result):
    """A student against the teacher; each token is an example.

    The index of a token is sentence · T + place.
    """

    name: str
    seed: int
    audit: Audit


@dataclass(frozen=True)
class LanguageStudy(Result):
    """Result of a study of language models."""

    schema_version: int
    name: str
    description: str
    vocabulary: int
    train_sentences: int
    train_tokens: int
    test_sentences: int
    test_tokens: int
    models: tuple[LanguageModelResult, ...]
    audits: tuple[TokenAudit, ...]
    versions: dict[str, str]
