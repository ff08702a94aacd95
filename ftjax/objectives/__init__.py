"""What can be learned: one file per objective, and one line here."""

from ftjax.objectives.base import Objective
from ftjax.objectives.causal_lm import CausalLanguageModeling
from ftjax.objectives.classification import Classification
from ftjax.objectives.embedding import Embedding
from ftjax.objectives.grpo import Grpo
from ftjax.objectives.image_classification import ImageClassification
from ftjax.objectives.kto import Kto
from ftjax.objectives.masked_lm import MaskedLanguageModeling
from ftjax.objectives.multi_label import MultiLabel
from ftjax.objectives.ordinal import Ordinal
from ftjax.objectives.preference import Preference
from ftjax.objectives.recommendation import Recommendation
from ftjax.objectives.regression import Regression
from ftjax.objectives.reward import Reward
from ftjax.objectives.seq2seq import SequenceToSequence
from ftjax.objectives.setfit import SetFit
from ftjax.objectives.sft import SupervisedFineTuning
from ftjax.objectives.span_extraction import SpanExtraction
from ftjax.objectives.token_classification import TokenClassification

OBJECTIVES: dict[str, type[Objective]] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "ordinal": Ordinal,
    "regression": Regression,
    "causal_lm": CausalLanguageModeling,
    "sft": SupervisedFineTuning,
    "preference": Preference,
    "kto": Kto,
    "reward": Reward,
    "grpo": Grpo,
    "masked_lm": MaskedLanguageModeling,
    "seq2seq": SequenceToSequence,
    "token_classification": TokenClassification,
    "span_extraction": SpanExtraction,
    "image_classification": ImageClassification,
    "embedding": Embedding,
    "recommendation": Recommendation,
    "setfit": SetFit,
}
