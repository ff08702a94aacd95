"""Recommendations of a finished run, for its users or for whoever likes something."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftjax.data.examples import Examples
from ftjax.evaluation.ranking import recommended
from ftjax.objectives.recommendation import Recommendation
from ftjax.use.finished import load_finished_run
from ftjax.use.outputs import Outputs


class Recommender:
    """Ranks the catalogue of a finished run.

    Attributes:
        texts: of each item.
        ids: of each item, as the data call it.
    """

    def __init__(self, run: str | Path, *, accept_fields: tuple[str, ...] = ()):
        """Loads the run and reads its catalogue once.

        Args:
            run: its folder.
            accept_fields: as of `load_finished_run`.

        Raises:
            FileNotFoundError: the folder holds no finished run.
            ValueError: the run learned something else, or its pretrained weights have changed.
        """
        finished = load_finished_run(run, accept_fields=accept_fields)
        if not isinstance(finished.objective, Recommendation):
            raise ValueError(
                f"The run in {run} learned {finished.config.objective.name}, and recommends "
                "nothing; scripts/predict.py or scripts/chat.py uses it."
            )
        self._objective = finished.objective
        self.texts = [item["text"] for item in self._objective.facts["items"]]
        self.ids = [item["id"] for item in self._objective.facts["items"]]
        self._outputs = Outputs(finished)
        self._items = self._vectors(self._objective.catalogue_examples())

    def for_user(self, user: str, count: int) -> list[dict[str, Any]]:
        """What somebody of the data may like next, the best first.

        Args:
            user: as the data call them.
            count: how many items at most.

        Returns:
            `id`, `text` and `score` of each.

        Raises:
            ValueError: nobody is called so.
        """
        users = self._objective.facts["users"]
        if user not in users:
            near = difflib.get_close_matches(user, users, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(
                f"There is no user {user!r} among the {len(users):,} of the run{hint} Say what "
                "they like instead (--likes)."
            )
        return self._ranked([self.texts[item] for item in users[user]], users[user], count)

    def for_likes(self, likes: Sequence[str], count: int) -> list[dict[str, Any]]:
        """What somebody may like who likes these, as `for_user`.

        Args:
            likes: texts, the newest last. Those that begin like an item's text stand for it; others
                are read as they are.
            count: how many items at most.
        """
        items = [self.item_called(text) for text in likes]
        texts = [
            text if item is None else self.texts[item]
            for text, item in zip(likes, items, strict=True)
        ]
        return self._ranked(texts, [item for item in items if item is not None], count)

    def item_called(self, text: str) -> int | None:
        """The number of the only item with this text, or the shortest that begins with it."""
        wanted = text.strip().casefold()
        found = [n for n, known in enumerate(self.texts) if known.casefold().startswith(wanted)]
        return min(found, key=lambda n: len(self.texts[n]), default=None) if wanted else None

    def _ranked(
        self, texts: Sequence[str], known: Sequence[int], count: int
    ) -> list[dict[str, Any]]:
        examples = self._objective.prediction_examples([{"liked": list(texts)}])
        scores = self._objective.scores(self._vectors(examples), self._items).of(slice(None))
        hidden = np.zeros(scores.shape, bool)
        hidden[0, list(known)] = True
        return [
            {"id": self.ids[n], "text": self.texts[n], "score": round(float(scores[0, n]), 4)}
            for n in recommended(scores, hidden, count)[0]
            if n >= 0
        ]

    def _vectors(self, examples: Examples) -> np.ndarray:
        """Of texts, float32 [rows, hidden]."""
        return self._outputs(examples, self._objective.outputs)
