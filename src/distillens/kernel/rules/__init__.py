"""Layer rules: how the gradients by a layer's parameters are formed, one file a kind."""

from distillens.kernel.rules.attention import Attention
from distillens.kernel.rules.convolution import Convolution
from distillens.kernel.rules.embedding import Embedding
from distillens.kernel.rules.linear import Linear
from distillens.kernel.rules.normalisation import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from distillens.kernel.rules.rule import Call, Rewriting, Rule

_RULES: tuple[Rule, ...] = (
    Linear(),
    Convolution(),
    Embedding(),
    BatchNorm(),
    GroupNorm(),
    LayerNorm(),
    RMSNorm(),
)
RULES = {function: rule for rule in _RULES for function in rule.functions}
"""The rule of each torch function that has one."""

_REWRITINGS: tuple[Rewriting, ...] = (Attention(),)
REWRITINGS = {function: each for each in _REWRITINGS for function in each.functions}
"""What turns a torch function into functions that have rules."""

__all__ = ["REWRITINGS", "RULES", "Call", "Rewriting", "Rule"]
