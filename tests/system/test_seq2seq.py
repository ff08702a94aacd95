"""Writing a text for another: whole runs, what they keep, and refusals."""

import json
import random

import jax
import numpy as np
import optax
import pytest
from stopped import whole_and_continued
from tiny import TINY, WORDS, dotted, quiet, write_splits

from ftjax.config import base_config, override
from ftjax.training.build import build
from ftjax.training.checkpoint import host_copy
from ftjax.training.run import run
from ftjax.training.step import make_train_step, new_state
from ftjax.use.predict import Predictor

SMALL = {
    "data.buckets": (8, 16),
    "data.target_buckets": (8,),
    "training.epochs": 8,
    "training.log_every": 1,
    "optimizer.learning_rate": 2e-2,
    "retention.enabled": False,
}


ONE_LENGTH = {"data__buckets": (16,), "data__target_buckets": (8,)}


def pair(generator):
    """What is to be written hangs on the first word; how much of it, on the second."""
    first, second = generator.randrange(3), generator.randrange(2)
    rest = generator.choices(WORDS[20:], k=generator.randrange(12))
    said = WORDS[10 + 2 * first : 12 + 2 * first] * (1 + second)
    return {"source": " ".join([WORDS[first], WORDS[5 + second], *rest]), "target": " ".join(said)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("pairs"), random.Random(0)
    counts = {"train": 90, "validation": 21, "test": 22}
    return write_splits(folder, lambda _: pair(generator), **counts)


@pytest.fixture
def config_of(tiny_t5, pairs):
    """Fields -> config."""

    def make(**fields):
        files = {"model.reference": str(tiny_t5), "data.source": str(pairs)}
        return override(base_config("seq2seq"), TINY | files | SMALL | dotted(fields))

    return make


def test_writes_is_scored_and_predicts(tmp_path, config_of, tiny_texts):
    retention = {"retention__enabled": True, "retention__source": str(tiny_texts)}
    result = run(config_of(**retention), tmp_path / "run", quiet())
    metrics = result.metrics
    assert metrics["test/rougeLsum"] > 90 > 30 > metrics["test/pretrained/rougeLsum"]
    assert metrics["test/accuracy"] > 0.9 > 0.5 > metrics["test/pretrained/accuracy"]
    assert metrics["test/lead/rouge1"] == 0 and metrics["test/lead/copy_rate"] == 1
    assert metrics["test/targets/novel_bigrams"] == 1 == metrics["test/novel_bigrams"]
    assert metrics["test/unfinished"] == 0 and metrics["test/words"] == pytest.approx(3, abs=0.5)
    assert metrics["retention/change"] < 0
    details = result.details
    assert len(details["generated"]) == result.test_examples == 22
    assert np.mean(details["documents"]["rouge1"]) == pytest.approx(metrics["test/rouge1"])
    low, high = result.intervals["test/words"]
    assert low < metrics["test/words"] < high
    assert details["generation"]["max_new_tokens"] == 8
    predict = Predictor(tmp_path / "run")
    sources = [f"{WORDS[1]} {WORDS[5]} {WORDS[30]}", f"{WORDS[2]} {WORDS[6]} " * 12]
    (found, longer) = predict([{"text": source} for source in sources])
    assert found == {"generated_text": "word12 word13", "unsupported_numbers": ["12", "13"]}
    assert longer["generated_text"] == "word14 word15 word14 word15"
    assert predict([{"text": sources[0]}]) == [found]
    described = predict.objective.describe_prediction(found)
    assert described[0] == "word12 word13" and "12, 13" in described[1]
    with pytest.raises(ValueError, match="record 2: the source is empty"):
        predict([{"text": "word1"}, {"text": " "}])


def test_a_decoder_learns_the_same(tmp_path, config_of, tiny_llama):
    config = config_of(
        model__reference=str(tiny_llama), data__source_suffix=f" {WORDS[9]}", **ONE_LENGTH
    )
    result = run(config, tmp_path / "run", quiet())
    assert result.metrics["test/rougeLsum"] > 90 > 30 > result.metrics["test/pretrained/rougeLsum"]
    (found,) = Predictor(tmp_path / "run")([{"text": f"{WORDS[1]} {WORDS[5]} {WORDS[30]}"}])
    assert found["generated_text"] == "word12 word13"


@pytest.mark.parametrize("kind", ["tiny_t5", "tiny_llama"])
def test_parts_and_devices_make_no_difference(config_of, request, kind):
    """Targets are of unequal lengths, so that a mean of means would be another number."""
    reference = {"model__reference": str(request.getfixturevalue(kind))}
    found = []
    for parallel, accumulation_steps in (("mesh", 1), ("mesh", 2), ("pmap", 1)):
        parts = build(config_of(**reference, **ONE_LENGTH, training__parallel=parallel))
        optimizer, mapping = optax.sgd(0.5), parts.parallel
        step = make_train_step(
            parts.rebuild,
            parts.objective.loss,
            optimizer,
            lambda step: 0.5,
            accumulation_steps=accumulation_steps,
            axis_name=mapping.axis_name,
        )
        state = mapping.place(host_copy(new_state(0, parts.trainable, optimizer)))
        batch = parts.objective.examples["train"].batch(np.arange(7), rows=8, length=16)
        assert len(set(batch["weights"].sum(1))) > 2
        batch.pop("example_ids")
        _, metrics = mapping.map_train(step)(state, parts.frozen, mapping.place_batch(batch))
        found.append(mapping.fetch(metrics))
    for name in ("loss", "accuracy", "gradient_norm"):
        whole, *others = (metrics[name] for metrics in found)
        np.testing.assert_allclose(others, [whole, whole], rtol=1e-5, err_msg=name)


def test_what_needs_no_text_chooses_the_checkpoint_without_writing(config_of):
    for metric, columns in (("loss", 3), ("rouge2", 3 + 8)):
        parts = build(config_of(**ONE_LENGTH, evaluation__metric=metric))
        validation = parts.objective.validation()
        batch = validation.examples["validation"].batch(np.arange(4), rows=4, length=16)
        network = parts.rebuild(parts.trainable, parts.frozen)
        shape = jax.eval_shape(lambda batch, n=network, v=validation: v.outputs(n, batch), batch)
        assert shape.shape == (4, columns)
        scores = validation.score({"validation": np.ones((21, columns))})
        assert ("validation/rouge2" in scores) == (metric == "rouge2")
        assert scores["validation/loss"] == 1


def test_stopped_and_started_again_has_the_same_bits(tmp_path, config_of, monkeypatch):
    config = config_of(
        **ONE_LENGTH,
        model__dropout=0.1,
        training__epochs=1,
        evaluation__every=4,
        evaluation__baselines=False,
    )
    whole, again = whole_and_continued(config, tmp_path, monkeypatch, batch=7, step=4)
    assert again.details["generated"] == whole.details["generated"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"source": "word1", "target": ""}, "line 2: the target is empty"),
        ({"source": " \n", "target": "word1"}, "line 2: the source is empty"),
        ({"source": "word1", "target": 5}, "line 2: target is 5, which is not a text"),
        ({"source": ["word1"], "target": "word1"}, "line 2: source is .*, which is not a text"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_by_its_line(tmp_path, config_of, record, message):
    rows = [{"source": "word1 word2", "target": "word3"}, record]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=message):
        build(config_of(data__source=str(tmp_path / "{split}.jsonl")))


def test_other_refusals(config_of, tiny_bert, tiny_llama):
    with pytest.raises(ValueError, match="bert network, which does not write text"):
        build(config_of(model__reference=str(tiny_bert)))
    with pytest.raises(ValueError, match=r"targets of 30 .* do not fit: the network has .* 32"):
        build(config_of(model__reference=str(tiny_llama), generation__max_new_tokens=30))
    with pytest.raises(ValueError, match="no room for a source"):
        build(config_of(data__source_suffix="word1 " * 15))
    with pytest.raises(ValueError, match=r"target_buckets = \(8, 4\) must be rising"):
        run(config_of(data__target_buckets=(8, 4)), "nowhere", quiet())


def test_long_texts_are_cut_and_counted(tmp_path, config_of):
    rows = [
        {"source": " ".join(WORDS[:n]), "target": " ".join(WORDS[:m])}
        for n, m in ((3, 3), (11, 4), (12, 7), (30, 8))
    ]
    for split in ("train", "validation", "test"):
        lines = [json.dumps(row) for row in (*rows, {"source": split, "target": "word1"})]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    config = config_of(
        data__source=str(tmp_path / "{split}.jsonl"),
        data__source_prefix="word50 word51 ",
        data__source_suffix=" word52",
        data__buckets=(16,),
    )
    objective = build(config).objective
    assert objective.notes[0] == (
        "train: sources: 5 texts, 1 of them longer than 16 tokens and truncated, 1.49% of their "
        "tokens unknown; targets: 5 texts, 1 of them longer than 8 tokens and truncated"
    )
    batch = objective.examples["train"].batch(np.arange(5), rows=8, length=16)
    tokenizer = objective.tokenizer
    long = tokenizer.decode(batch["input_ids"][3])
    assert long == " ".join(["word50 word51", *WORDS[:12], "word52 [SEP]"])
    assert batch["attention_mask"].sum(1).tolist() == [7, 15, 16, 16, 5, 1, 1, 1]
    last = batch["weights"].sum(1).astype(int) - 1
    ends = batch["labels"][np.arange(5), last[:5]] == tokenizer.eos_token_id
    # The target that is cut has no end.
    assert ends.tolist() == [True, True, True, False, True]
    assert batch["weights"].sum(1).tolist() == [4, 5, 8, 8, 2, 0, 0, 0]
