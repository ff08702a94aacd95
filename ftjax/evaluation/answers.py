"""Answers that a network writes before and after tuning, beside those that people wrote.

How alike they are in tone is measured blind: a classifier learns to tell people's answers from the
untuned network's, on other conversations, and is then shown answers without being told whose they
are. It sees single answers, not what was asked; so it judges how they are written (length, words,
punctuation), and not whether they are right. Where it cannot tell people from the untuned network
either (an accuracy of one half), it says nothing.

(A classifier two-sample test: Lopez-Paz & Oquab 2017, https://arxiv.org/abs/1610.06545.)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.chrf import CHRF
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ftjax.data.asked import Asked
from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.evaluation.measurement import Measurement

Texts = Mapping[str, Sequence[str]]
LONGEST_NGRAM = 4
INVERSE_REGULARISATION = 10.0


@dataclasses.dataclass(frozen=True)
class Answers:
    """Turns that a network writes, before and after; those of validation teach the classifier.

    Attributes:
        asked: "validation" and "test" -> the turns.
        measurement: its score is split -> the texts that were written.
    """

    asked: Mapping[str, Sequence[Asked]]
    measurement: Measurement

    def scores(self, before: Texts, after: Texts) -> dict[str, float]:
        """Of the answers to the test split's turns.

        Args:
            before: by the untuned network, of both splits.
            after: by the tuned one, at least of the test split.

        Returns:
            `tone/accuracy`, of the classifier between people and the untuned network; and
            `tone/people`, `tone/before` and `tone/after`, the share of each one's answers that it
            takes for people's; `answers/chrf_before` and `answers/chrf_after`, sacrebleu's chrF
            against people's.
        """
        people = [one.answer for one in self.asked["test"]]
        taken = self._taken(before, after)
        chrf = {
            f"answers/chrf_{name}": float(CHRF().corpus_score(list(texts), [people]).score)
            for name, texts in (("before", before["test"]), ("after", after["test"]))
        }
        return {name: float(found.mean()) for name, found in taken.items()} | chrf

    def intervals(self, before: Texts, after: Texts) -> dict[str, Interval]:
        """95 % intervals of what is a share; arguments as of `scores`."""
        taken = self._taken(before, after)
        return {name: interval_of_mean(found) for name, found in taken.items()}

    def _taken(self, before: Texts, after: Texts) -> dict[str, np.ndarray]:
        """What the shares are of, 0 or 1 for each answer."""
        people = {split: [one.answer for one in asked] for split, asked in self.asked.items()}
        judge = tone_judge(people["validation"], before["validation"])
        of_people, of_untuned = judge(people["test"]), judge(before["test"])
        return {
            "tone/accuracy": np.concatenate([of_people, 1 - of_untuned]),
            "tone/people": of_people,
            "tone/before": of_untuned,
            "tone/after": judge(after["test"]),
        }

    def side_by_side(self, before: Texts, after: Texts) -> list[dict[str, Any]]:
        """What was asked, and what people and both networks answered, of the test split."""
        rows = zip(self.asked["test"], before["test"], after["test"], strict=True)
        return [
            {"question": one.question, "person": one.answer, "before": first, "after": then}
            for one, first, then in rows
        ]


def tone_judge(
    people: Sequence[str], others: Sequence[str]
) -> Callable[[Sequence[str]], np.ndarray]:
    """texts -> int [texts], 1 for each that is taken for one of people's, else 0.

    Logistic regression on TF-IDF of characters, up to four at once within words, cases told apart;
    both sides count alike.

    Args:
        people: their texts.
        others: by something else.
    """
    texts, labels = [*people, *others], [1] * len(people) + [0] * len(others)
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(1, LONGEST_NGRAM), lowercase=False, sublinear_tf=True
    )
    classifier = LogisticRegression(
        C=INVERSE_REGULARISATION, class_weight="balanced", max_iter=1000
    )
    judge = make_pipeline(vectorizer, classifier).fit(texts, labels)
    return lambda found: judge.predict(list(found))
