"""What is said of rules that make no layer sparse, and of models in which none is."""

from __future__ import annotations

from collections.abc import Collection

from dsgc.config import SparsityConfig
from dsgc.passes.context import LayerDecision
from dsgc.warn_user import warn_user

__all__ = ["DID_NOT_RUN", "no_sparse_layer", "warn_of_idle_rules"]

DID_NOT_RUN = "it did not run when the layers were chosen"


def warn_of_idle_rules(config: SparsityConfig, decisions: Collection[LayerDecision]) -> None:
    """Warn about rules that ask for sparsity where none of the layers named can have it."""
    for rule in config.rule_list:
        named = [d for d in decisions if rule.matches(d.name)]
        if rule.sparsity is None:
            continue
        if not any(d.sparse for d in named):
            reasons = ", ".join(f"{d.site!r}: {d.reason}" for d in named)
            warn_user(f"rule {rule.text!r} makes no layer sparse; {reasons}")
        elif missed := ", ".join(repr(d.site) for d in named if d.reason == DID_NOT_RUN):
            warn_user(
                f"rule {rule.text!r} names {missed}, which did not run when the layers were "
                "chosen and stay dense: let the first call run them, or compile that part of "
                "the model for itself"
            )


def no_sparse_layer(reasons: dict[str, str]) -> str:
    """What is said where no layer is sparse, with the reason for each."""
    lines = [f"  {site or 'the model'}: {reason}" for site, reason in reasons.items()]
    listed = "\n".join(lines) if lines else "  the model has no convolution and no linear layer"
    return (
        "No layer was made sparse; a rule with a sparsity of its own makes a layer that can be "
        f"sparse, whatever it costs. Reasons:\n{listed}"
    )
