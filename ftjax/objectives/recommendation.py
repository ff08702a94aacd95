"""Recommendations: what somebody likes next, from the texts of what they liked."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import ttest_rel
from sklearn.preprocessing import normalize

from ftjax.data.examples import Examples, TextExamples, text_examples
from ftjax.data.histories import (
    NOTHING,
    history_rows,
    history_text,
    history_texts,
    texts_alone,
)
from ftjax.data.interactions import (
    EVAL_ARGS,
    Interactions,
    divide_interactions,
    read_catalogue,
    read_likes,
)
from ftjax.data.sources import Records, Source
from ftjax.data.sources.records import BadDataError, BadRecordError, require_few
from ftjax.data.sources.splitting import SHARES
from ftjax.evaluation.intervals import Interval, interval_of_mean
from ftjax.evaluation.measurement import Measurement, Retention
from ftjax.evaluation.ranking import (
    CATALOGUE_METRICS,
    USER_METRICS,
    Audience,
    Scores,
    all_metrics,
    user_metrics,
)
from ftjax.evaluation.recommenders import baseline_scores, likes_matrix
from ftjax.evaluation.retention import PROBE_FIELDS, probe_retention
from ftjax.fields import Field, Fields, Settings
from ftjax.losses import contrastive
from ftjax.losses.forward import Forward
from ftjax.models import family_of
from ftjax.models.layers import Network
from ftjax.models.sentence_encoder import SentenceEncoder
from ftjax.objectives.base import SPLITS, LossSums, Objective
from ftjax.objectives.fields import metric_field
from ftjax.pretrained.checkpoint import read_config
from ftjax.pretrained.classifier import backbone_name
from ftjax.pretrained.sentence_modules import write_embedding_modules

CATALOGUE = "items"
COLD = {"cold_recall@10": "higher"}
"""Of items that nobody liked in training, ranked among themselves."""
TIME: Fields = {"data.time_field": Field("timestamp", "Column with a number that rises with time.")}


class Recommendation(Objective):
    """Ranks a catalogue for each user by the texts of what they liked; see `Objective`."""

    metrics: ClassVar = {**USER_METRICS, **CATALOGUE_METRICS, **COLD}
    rows_meet: ClassVar = True
    keeps_features = False
    fields: ClassVar[Fields] = {
        "data.catalogue": Field(
            "", "Source of the catalogue: every item, with its text.", required=True
        ),
        "data.user_field": Field("user_id", "Column with who liked it."),
        "data.item_field": Field("item_id", "Column with what was liked, in both sources."),
        "data.item_text_fields": Field(
            ("title",), "Columns of the catalogue that an item's text is made of.", items=str
        ),
        "data.min_rating": Field(
            None,
            "The lowest rating of what counts as liked; None: everything does.",
            optional=float,
            if_set={"data.rating_field": Field("rating", "Column with the rating.")},
        ),
        "data.eval_args": Field(
            "global_time",
            "How likes are divided: at two moments, or as other papers do, with knowledge of the "
            "future (leaky): each user's last two held out, or shares of each user's at random.",
            options={
                name: TIME if args["order"] == "TO" else {} for name, args in EVAL_ARGS.items()
            },
        ),
        "data.max_history": Field(20, "Likes of a user that are read, the newest.", minimum=1),
        "data.max_length": Field(
            128, "Most tokens of what a user liked; the oldest is cut.", minimum=3
        ),
        "data.item_max_length": Field(32, "Most tokens of an item.", minimum=3),
        "data.targets": Field(4, "Likes that are predicted from one history.", minimum=1),
        "data.train_limit": None,
        "data.train_split": None,
        "data.validation_split": None,
        "data.test_split": None,
        "data.group_field": None,
        "model.pooling": Field(
            "mean",
            "Tokens to text: mean of real tokens, first or last token.",
            choices=("mean", "first", "last"),
        ),
        "objective.scale": Field(20.0, "What cosines are multiplied by.", above=0.0),
        "objective.popularity": Field(
            True,
            "Begin each item's score at the logarithm of its share of all likes, so that what is "
            "learned is how a user differs from everybody.",
        ),
        "penalties.replay": None,
        "evaluation.baselines": Field(True, "Also rank by popularity, ItemKNN and EASE."),
        **metric_field(USER_METRICS, "ndcg@10"),
        **PROBE_FIELDS,
    }

    def __init__(self, config: Settings, folder: Path, facts: Mapping | None = None):
        super().__init__(config, folder, facts)
        self._catalogue: TextExamples | None = None
        # What is liked in training, sparse [users, items], and the users of the other splits.
        self._train: Any = None
        self._audiences: dict[str, Audience] = {}
        # Name -> scores for the test split, and chosen settings; shared by copies of this.
        self._baselines: dict[str, Scores] = {}
        self._settings: dict[str, dict] = {}

    @classmethod
    def problem(cls, config: Settings) -> str | None:
        """A batch in which nothing is compared, or an item without text."""
        if config.data.batch_size < 2:
            return "config.data.batch_size = 1: likes are compared with those of other rows."
        if not config.data.item_text_fields:
            return "config.data.item_text_fields must name the columns of an item's text."
        args = EVAL_ARGS[config.data.eval_args]
        divided = f"config.data.eval_args = {config.data.eval_args!r}"
        if args["split"] != "RS" and tuple(config.data.shares) != SHARES:
            return f"{divided} holds out each user's last two likes; leave config.data.shares out."
        if args["order"] != "RO" and config.data.split_seed != 0:
            return f"{divided} draws nothing at random; leave config.data.split_seed out."
        return None

    @property
    def network_name(self) -> str:
        """What turns texts into hidden states; of T5 the encoder."""
        return backbone_name(family_of(read_config(self.folder).get("model_type", "")))

    def read(self) -> None:
        """The catalogue and all likes; then the rows of each split.

        Raises:
            ValueError: what cannot be learned from; names file and record.
        """
        data = self.config.data
        texts = {f"text {n}": column for n, column in enumerate(data.item_text_fields)}
        items, catalogue = self._checked(
            data.catalogue,
            {"item": data.item_field, **texts},
            lambda r: read_catalogue(r, list(texts)),
        )
        columns = {"user": data.user_field, "item": data.item_field}
        more = {"time": data.get("time_field"), "rating": data.get("rating_field")}
        columns |= {name: column for name, column in more.items() if column is not None}
        ids = list(catalogue)
        records, liked = self._checked(
            data.source, columns, lambda found: read_likes(found, ids, data.min_rating)
        )
        found = divide_interactions(
            records.chosen(np.flatnonzero(liked)),
            ids,
            how=data.eval_args,
            shares=data.shares,
            seed=data.split_seed,
        )
        counts = np.bincount(found.items[found.splits == 0], minlength=len(ids))
        self.facts["items"] = [
            {"id": name, "text": text, "likes": int(count)}
            for (name, text), count in zip(catalogue.items(), counts, strict=True)
        ]
        self._note(records.name, found, len(ids))
        self._make_examples(found, list(catalogue.values()), items.fingerprint)

    def _checked(
        self, source: str, columns: Mapping[str, str], check: Callable[[Records], Any]
    ) -> tuple[Records, Any]:
        """All records of a source, and what the check found; bad ones as the config wants it."""
        skips = self.config.data.on_bad_record == "skip"
        opened = Source(source, skip_bad_records=skips)
        records = opened.records("", columns)
        self.notes += opened.notes
        self._unread += opened.left_out
        try:
            return records, check(records)
        except BadRecordError as error:
            if not skips:
                raise
            problems = [error.problems[index] for index in sorted(error.problems)]
            told = require_few(records.name, problems, len(records))
            self.notes.append(f"{records.name}: {told}")
            self._unread += len(problems)
            kept = records.chosen(np.delete(np.arange(len(records)), list(error.problems)))
            return kept, check(kept)

    def _note(self, name: str, found: Interactions, items: int) -> None:
        counts = np.bincount(found.splits, minlength=3)
        told = ", ".join(f"{split} {count:,}" for split, count in zip(SPLITS, counts, strict=True))
        again = f"; {found.repeated:,} were likes of what was liked before" * (found.repeated > 0)
        how = self.config.data.eval_args
        self.notes.append(
            f"{name}: {len(found.splits):,} likes of {items:,} items by "
            f"{len(found.user_names):,} users, divided {how} ({told}){again}"
        )
        if how.startswith("leaky"):
            self.notes.append(
                f"config.data.eval_args = {how!r} learns from what others liked later than what is "
                "tested: scores are higher than they will be in use. 'global_time' does not."
            )

    def _make_examples(self, found: Interactions, texts: list[str], fingerprint: str) -> None:
        data, tokenizer = self.config.data, self.tokenizer
        until = [found.of_users(number) for number in range(len(SPLITS))]
        self._train = likes_matrix(until[0], len(texts))
        told = {"most": data.max_history, "max_length": data.max_length, "fingerprint": fingerprint}
        enough = [liked for liked in until[0] if len(liked) > 1]
        if not enough:
            raise BadDataError(
                f"{data.source}: nobody liked two items in training, so that there is nothing "
                "that followed from anything."
            )
        lengths = {"targets": data.targets, "item_length": data.item_max_length}
        rows = history_rows(enough, texts, tokenizer, **lengths, **told)
        self.examples["train"] = rows
        single = sum(len(liked) == 1 for liked in until[0])
        self.notes.append(
            f"train: {len(rows.lengths):,} histories of {len(enough):,} users; {single:,} more "
            "liked a single item, which follows from nothing"
        )
        for number, split in enumerate(SPLITS[1:], 1):
            before, after = until[number - 1 : number + 1]
            known = self._audience(split, before, after)
            self.examples[split] = history_texts(known, texts, tokenizer, **told)
        self._catalogue = texts_alone(texts, tokenizer, data.item_max_length, fingerprint)
        names = zip(found.user_names, until[-1], strict=True)
        self.facts["users"] = {name: liked.tolist() for name, liked in names}

    def _audience(
        self, split: str, before: Sequence[np.ndarray], after: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Keeps who can be recommended something, and what they then liked.

        Args:
            split: validation or test.
            before: of each user int [likes], what is known.
            after: the same, and what they then liked behind it.

        Returns:
            What is known of those who are kept.
        """
        new = [np.setdiff1d(after[user], known) for user, known in enumerate(before)]
        here = [user for user, liked in enumerate(new) if len(liked)]
        kept = [user for user in here if len(before[user])]
        if not kept:
            raise BadDataError(
                f"{self.config.data.source}: of {len(here):,} users of {split} none liked anything "
                "before; nothing can be recommended to them. Divide otherwise (data.eval_args, "
                "data.shares)."
            )
        known, liked = ([part[user] for user in kept] for part in (before, new))
        items = self._train.shape[1]
        self._audiences[split] = Audience(likes_matrix(known, items), likes_matrix(liked, items))
        cold = int(self._audiences[split].liked[:, self._popularity == 0].sum())
        self.notes.append(
            f"{split}: {len(kept):,} users with {sum(map(len, liked)):,} likes, {cold:,} of them "
            f"of items that are not in training; {len(here) - len(kept):,} more users have no "
            "history and are left out"
        )
        return known

    def scores(self, users: np.ndarray, items: np.ndarray) -> Scores:
        """What users' vectors [users, hidden] say of items' [items, hidden], in float64.

        That is cosines times the scale, from where each item begins.
        """
        found: list[Any] = [normalize(vectors.astype(np.float64)) for vectors in (users, items)]
        begins = np.asarray(self._prior(np.arange(len(items))), np.float64)
        ones = np.ones((len(users), 1))
        return Scores(
            np.concatenate([self.config.objective.scale * found[0], ones], axis=1),
            np.concatenate([found[1].T, begins[None]]),
        )

    def _prior(self, items: Any) -> Any:
        """Where the scores of items begin, float32 of their numbers' shape."""
        likes = self._popularity * self.config.objective.popularity
        # One more like of each, so that new items have a chance.
        logs = np.log((likes + 1) / (likes + 1).sum())
        return jnp.asarray(logs, jnp.float32)[items]

    def _scores(self, split: str, outputs: Mapping[str, np.ndarray]) -> Scores:
        return self.scores(outputs[split], outputs[CATALOGUE])

    @property
    def _popularity(self) -> np.ndarray:
        """How often each item is liked in training, float [items]."""
        return np.asarray([item["likes"] for item in self.facts["items"]], np.float64)

    def read_split(self, split: str) -> Examples:
        """What `read` made."""
        return self.examples[split]

    def baseline_rows(self) -> dict[str, np.ndarray]:
        """All: baselines count likes, which takes no time."""
        return {split: np.arange(len(found.lengths)) for split, found in self.examples.items()}

    def network(self, backbone: Network) -> SentenceEncoder:
        """The published network, which reads what somebody liked and each item alike."""
        return SentenceEncoder(backbone, self.config.model.pooling, 1 + self.config.data.targets)

    def loss(self, forward: Forward) -> LossSums:
        """Sampled softmax over the likes of the batch, the mean over each history's."""
        batch = forward.batch
        real = (batch["weights"] > 0)[:, None] & (batch["target_ids"] != NOTHING)
        rows = jnp.any(real, axis=1)
        users = jnp.where(rows[:, None], forward.outputs[:, 0], 0.0)
        losses, right = contrastive.sampled_softmax(
            users,
            jnp.where(real[..., None], forward.outputs[:, 1:], 0.0),
            batch["target_ids"],
            batch["known_ids"],
            real,
            batch["log_shares"] - self._prior(batch["target_ids"]),
            scale=self.config.objective.scale,
        )
        counts = jnp.maximum(jnp.sum(real, axis=1), 1)
        weight = jnp.sum(rows.astype(jnp.float32))

        def total(values: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sum(jnp.where(real, values, 0.0), axis=1) / counts)

        return total(losses), weight, {"accuracy": (total(right), weight)}

    def divergence(self, first: Any, second: Any, weights: jax.Array) -> jax.Array:
        """See `contrastive.apart`."""
        return contrastive.apart(first, second, weights)

    def outputs(self, network: Network, batch: Mapping[str, jax.Array]) -> jax.Array:
        """One vector of each text, [rows, hidden]."""
        return network.features(batch)

    def measurement(self) -> Measurement:
        """Every user of a split, beside the whole catalogue."""

        def score(found: dict[str, np.ndarray]) -> dict[str, float]:
            return {
                f"{split}/{name}": value
                for split in found
                if split != CATALOGUE
                for name, value in self._ranked(split, self._scores(split, found)).items()
            }

        assert self._catalogue is not None
        examples = {**self.examples, CATALOGUE: self._catalogue}
        return Measurement(examples, self.outputs, score, always=(CATALOGUE,))

    def score(self, split: str, outputs: np.ndarray) -> dict[str, float]:
        """RecBole's metrics of scores [users, items]."""
        return self._ranked(split, Scores(outputs, np.eye(outputs.shape[1])))

    def _ranked(self, split: str, scores: Scores) -> dict[str, float]:
        audience, popularity = self._audiences[split], self._popularity
        found = all_metrics(scores, audience, popularity)
        cold = popularity == 0
        audience, users = audience.only(cold)
        if users.any():
            of_cold = user_metrics(Scores(scores.users[users], scores.items[:, cold]), audience)
            found["cold_recall@10"] = float(of_cold["recall@10"].mean())
        return found

    def intervals(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Interval]:
        """Over users."""
        found = user_metrics(self._scores("test", outputs), self._audiences["test"])
        return {name: interval_of_mean(values) for name, values in found.items()}

    def details(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """How likes were divided, and how the network differs from each baseline, over users."""
        args = dict(EVAL_ARGS[self.config.data.eval_args])
        how = list(self.config.data.shares) if args["split"] == "RS" else "valid_and_test"
        found: dict[str, Any] = {"eval_args": args | {"split": {args["split"]: how}}}
        if self.has_baselines:
            scores, found["baseline_settings"] = self._baseline_scores(), self._settings
            mine = user_metrics(self._scores("test", outputs), self._audiences["test"])
            found["against"] = {
                name: _compared(mine, user_metrics(theirs, self._audiences["test"]))
                for name, theirs in scores.items()
            }
        return found

    @property
    def has_baselines(self) -> bool:
        """Recommenders that read no text."""
        return self.config.evaluation.baselines

    def baselines(self, features: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """Popularity, ItemKNN and EASE, with settings that the validation split chose."""
        scores = self._baseline_scores()
        return {name: self._ranked("test", found) for name, found in scores.items()}

    def _baseline_scores(self) -> dict[str, Scores]:
        if self._baselines:
            return self._baselines
        metric = self.config.evaluation.metric

        def choose(scores: Scores) -> float:
            return float(user_metrics(scores, self._audiences["validation"])[metric].mean())

        histories = {split: audience.known for split, audience in self._audiences.items()}
        scores, settings = baseline_scores(self._train, histories, choose)
        self._baselines.update(scores)
        self._settings.update(settings)
        return self._baselines

    def retention(self) -> Retention:
        """A linear probe on unrelated text."""
        return probe_retention(self.config.retention, self.tokenizer, self.features)

    def general_text(self, records: Records) -> Examples:
        """Texts as they are, one a row."""
        return text_examples(records, self.tokenizer, (self.config.data.max_length,))

    def export(self, network: Network, folder: str | Path) -> None:
        """The network as sentence-transformers loads it."""
        hidden = network.backbone.config.hidden_size
        super().export(network, folder)
        pooling, longest = self.config.model.pooling, self.config.data.max_length
        write_embedding_modules(Path(folder), hidden, pooling, longest)

    def prediction_examples(self, records: Sequence[Mapping[str, Any]]) -> Examples:
        """What somebody liked, as texts, the newest last.

        Raises:
            ValueError: it is not asked for by `ftjax.use.recommend`.
        """
        if not records:
            raise ValueError("This run learned to recommend; scripts/recommend.py uses it.")
        data = self.config.data
        texts = [history_text(record["liked"][-data.max_history :]) for record in records]
        return texts_alone(texts, self.tokenizer, data.max_length, "")

    def catalogue_examples(self) -> Examples:
        """The items of a finished run, one a row."""
        texts = [item["text"] for item in self.facts["items"]]
        return texts_alone(texts, self.tokenizer, self.config.data.item_max_length, "")


def _compared(mine: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Metric -> mean difference over users, its 95 % interval and p of a paired t-test."""
    found = {}
    for metric in ("recall@10", "ndcg@10"):
        apart = mine[metric] - theirs[metric]
        p = float(ttest_rel(mine[metric], theirs[metric]).pvalue) if np.any(apart) else 1.0
        found[metric] = {
            "difference": float(apart.mean()),
            "interval": list(interval_of_mean(apart)),
            "p": p,
        }
    return found
