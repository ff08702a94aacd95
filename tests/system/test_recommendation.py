"""Recommendations learned by a tiny network, from RecBole's files to a list of items."""

from pathlib import Path

import numpy as np
import pytest
from tiny import quiet

from ftjax.config import base_config, override, validate
from ftjax.objectives.recommendation import Recommendation
from ftjax.runs.report import print_result
from ftjax.training.build import build
from ftjax.training.run import run
from ftjax.use.predict import Predictor
from ftjax.use.recommend import Recommender

ITEMS, USERS, EACH = 24, 60, 9


def write_atomic(folder):
    """Users go through the catalogue in steps of their own kind; the last item is new."""
    folder.mkdir()
    items = ["item_id:token\ttitle:token_seq\tkind:token"]
    items += [f'{n}\tword{n} "quoted\tkind{n % 3}' for n in range(ITEMS)]
    (folder / "tiny.item").write_text("\n".join(items))
    likes = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(USERS):
        for place in range(EACH):
            item = (user + 3 * place) % (ITEMS - 1)
            likes.append(f"u{user}\t{item}\t{3 + (place + user) % 3}\t{1000 * place + user}")
    likes += [f"u{user}\t{ITEMS - 1}\t5\t9000{user}" for user in range(3)]
    likes += ["late\t1\t5\t99999", "late\t2\t5\t99999"]
    (folder / "tiny.inter").write_text("\n".join(likes))
    return folder


@pytest.fixture
def config_of(tiny_bert, tmp_path):
    folder = write_atomic(tmp_path / "data")

    def make(**fields):
        settings = {
            "name": "tiny",
            "model.reference": str(tiny_bert),
            "data.source": str(folder / "tiny.inter"),
            "data.catalogue": str(folder / "tiny.item"),
            "data.item_text_fields": ("title", "kind"),
            "data.max_history": 3,
            "data.max_length": 20,
            "data.item_max_length": 8,
            "data.targets": 2,
            "data.batch_size": 16,
            "evaluation.batch_size": 8,
            "optimizer.learning_rate": 1e-2,
            "training.epochs": 6,
            "retention.enabled": False,
        }
        fields = {name.replace("__", "."): value for name, value in fields.items()}
        return override(base_config("recommendation"), settings | fields)

    return make


def test_a_run_learns_what_comes_next(config_of, tmp_path, tiny_texts):
    config = config_of(
        retention__enabled=True, retention__source=str(tiny_texts), retention__max_length=16
    )
    console = quiet()
    result = run(config, tmp_path / "run", console)
    metrics = result.metrics
    assert metrics["test/ndcg@10"] > metrics["test/pop/ndcg@10"] + 0.1
    assert metrics["test/ndcg@10"] > metrics["test/pretrained/ndcg@10"] + 0.1
    # Whoever goes in steps of three is known by what was liked together.
    assert metrics["test/ease/ndcg@10"] > metrics["test/pop/ndcg@10"]
    assert all(0 <= metrics[f"test/{name}"] <= 1 for name in ("recall@10", "map@10", "hit@10"))
    assert metrics["test/cold_recall@10"] == 1.0
    low, high = result.intervals["test/ndcg@10"]
    assert low <= metrics["test/ndcg@10"] <= high
    assert "retention/change" in metrics

    assert result.details["eval_args"] == {
        "split": {"RS": [0.8, 0.1, 0.1]},
        "group_by": "none",
        "order": "TO",
        "mode": "full",
    }
    against = result.details["against"]
    assert set(against) == {"pop", "itemknn", "ease"}
    apart = metrics["test/ndcg@10"] - metrics["test/pop/ndcg@10"]
    assert against["pop"]["ndcg@10"]["difference"] == pytest.approx(apart)
    assert against["pop"]["ndcg@10"]["p"] < 0.05
    assert set(result.details["baseline_settings"]) == {"itemknn", "ease"}
    print_result(console, result, "run")
    told = console.file.getvalue()
    assert "divided global_time" in told
    assert "1 more users have no history and are left out" in told
    assert "cold" in told


def test_a_finished_run_recommends(config_of, tmp_path):
    run(config_of(training__epochs=2), tmp_path / "run")
    recommender = Recommender(tmp_path / "run")
    found = recommender.for_user("u5", 4)
    liked = {str((5 + 3 * place) % (ITEMS - 1)) for place in range(EACH)}
    assert len(found) == 4
    assert not {item["id"] for item in found} & liked
    assert [item["score"] for item in found] == sorted((i["score"] for i in found), reverse=True)
    # Everything that is left, and nothing twice.
    ids = [item["id"] for item in recommender.for_user("u5", 99)]
    assert sorted(ids) == sorted({str(n) for n in range(ITEMS)} - liked)
    # What somebody likes is told by their items' names, or in words of their own.
    texts = [recommender.texts[(5 + 3 * place) % (ITEMS - 1)] for place in range(EACH)]
    assert recommender.for_likes(texts, 4) == found
    assert recommender.item_called("WORD7") == 7
    assert recommender.item_called("word2") == 2
    assert recommender.item_called("something else") is None
    assert len(recommender.for_likes(["something else"], 99)) == ITEMS
    with pytest.raises(ValueError, match=r"no user 'u99' among the 61 .* did you mean 'u9'"):
        recommender.for_user("u99", 1)
    with pytest.raises(ValueError, match=r"scripts/recommend\.py uses it"):
        Predictor(tmp_path / "run")


def test_the_random_division_is_called_leaky(config_of):
    parts = build(config_of(data__eval_args="leaky_random", training__epochs=1))
    told = " ".join(parts.objective.notes)
    assert "learns from what others liked later" in told
    known = parts.objective.facts["users"]
    assert sum(map(len, known.values())) == USERS * EACH + 3 + 2


def test_a_history_and_what_came_next_do_not_see_each_other(config_of):
    parts = build(config_of())
    network = parts.rebuild(parts.trainable, parts.frozen)
    examples = parts.objective.examples["train"]
    length = int(examples.lengths[:4].max())
    batch = examples.batch(np.arange(4), rows=4, length=length)
    found = np.asarray(network(batch))
    for row in range(4):
        for text in range(1 + int((batch["target_ids"][row] >= 0).sum())):
            ids = batch["input_ids"][row, batch["segment_ids"][row] == text + 1][None]
            alone = network.features({"input_ids": ids, "attention_mask": np.ones_like(ids)})
            np.testing.assert_allclose(found[row, text], alone[0], atol=1e-5)


def test_bad_records(config_of, tmp_path):
    """Refused with their line, or left out and counted."""
    folder = tmp_path / "data"
    likes = (folder / "tiny.inter").read_text().splitlines()
    likes[4:4] = ["u1\t77\t5\t3", "\t3\t5\t3"]
    (folder / "bad.inter").write_text("\n".join(likes))
    items = (folder / "tiny.item").read_text().splitlines()
    items[2:2] = ["30\t\t"]
    (folder / "bad.item").write_text("\n".join(items))

    def objective_of(**fields):
        config = config_of(**fields)
        return Recommendation(config, Path(config.model.reference))

    bad = {"data__source": str(folder / "bad.inter"), "data__catalogue": str(folder / "bad.item")}
    with pytest.raises(ValueError, match=r"bad\.item, line 3: the item '30' has no text"):
        objective_of(**bad).read()
    with pytest.raises(ValueError, match=r"bad\.inter, line 5: the item '77' is not in"):
        objective_of(data__source=bad["data__source"]).read()
    skipping = objective_of(**bad, data__on_bad_record="skip")
    skipping.read()
    clean = objective_of()
    clean.read()
    assert skipping.left_out == 3
    assert skipping.facts == clean.facts
    told = " ".join(skipping.notes)
    assert "1 of 25 records cannot be learned from" in told
    assert f"2 of {len(likes) - 1} records cannot be learned from" in told


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer__accumulation_steps": 2}, "accumulation_steps > 1 would divide it"),
        ({"training__parallel": "pmap"}, "config.training.parallel would divide it"),
        ({"data__batch_size": 1}, "batch_size = 1: likes are compared"),
        ({"data__item_text_fields": ()}, "item_text_fields must name the columns"),
        ({"data__item_text_fields": ("name",)}, "no field 'name'"),
        ({"data__min_rating": 6.0}, "no rating is as high as config.data.min_rating = 6"),
        ({"data__split_seed": 3}, "draws nothing at random; leave config.data.split_seed out"),
        (
            {"data__eval_args": "leaky_leave_one_out", "data__shares": (0.5, 0.3, 0.2)},
            "holds out each user's last two likes; leave config.data.shares out",
        ),
    ],
)
def test_refused(config_of, fields, message):
    config = config_of(**fields)
    with pytest.raises(ValueError, match=message):
        validate(config)
        build(config)


@pytest.mark.parametrize("name", ["train_split", "test_split", "group_field", "train_limit"])
def test_fields_that_nobody_would_read(config_of, name):
    with pytest.raises((ValueError, AttributeError, KeyError), match=name):
        config_of(**{f"data__{name}": 3 if name == "train_limit" else "other"})


def test_scores_begin_at_the_popularity_of_items(config_of):
    """Of a network that says the same of everything, they are how often items are liked."""
    parts = build(config_of())
    objective = parts.objective
    outputs = {name: np.ones((len(e.lengths), 4)) for name, e in objective.examples.items()}
    outputs["items"] = np.ones((ITEMS, 4))
    found = objective.measurement().score(
        {name: outputs[name] for name in ("validation", "test", "items")}
    )
    popular = objective.baselines({})["pop"]
    assert found["test/ndcg@10"] == pytest.approx(popular["ndcg@10"])
    # In training the same is added to what is taken for how often an item is sampled: as both are
    # shares of likes, little is left of either.
    batch = objective.examples["train"].batch(np.arange(8), rows=8, length=40)
    left = batch["log_shares"] - np.asarray(objective._prior(batch["target_ids"]))
    assert np.abs(left[batch["target_ids"] >= 0]).max() < 0.7
