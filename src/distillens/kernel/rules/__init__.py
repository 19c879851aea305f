"""Layer rules: how the gradients by a layer's parameters are formed, one file a kind."""

from distillens.kernel.rules.convolution import Convolution
from distillens.kernel.rules.linear import Linear
from distillens.kernel.rules.normalisation import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from distillens.kernel.rules.rule import Call, Rule

RULES = {
    function: rule
    for rule in (Linear(), Convolution(), BatchNorm(), GroupNorm(), LayerNorm(), RMSNorm())
    for function in rule.functions
}
"""The rule of each torch function that has one."""

__all__ = ["RULES", "Call", "Rule"]
