"""What can be learned: one file per objective, and one line here."""

from ftjax.objectives.base import Objective
from ftjax.objectives.causal_lm import CausalLanguageModeling
from ftjax.objectives.classification import Classification

OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "causal_lm": CausalLanguageModeling,
}
