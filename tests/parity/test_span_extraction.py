"""Loss, search and exports of spans against transformers' networks and the loops of its run_qa."""

import json

import jax
import numpy as np
import pytest
from compare import assert_same_gradients
from test_masked_lm import DEBERTA, DISTILBERT, SIZE
from tiny import TINY, WORDS, write_checkpoint, write_subword_tokenizer, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ftjax.config import base_config, override  # noqa: E402
from ftjax.data.sources import Records  # noqa: E402
from ftjax.data.spans import span_examples  # noqa: E402
from ftjax.data.tokenizer import load_tokenizer  # noqa: E402
from ftjax.losses import spans  # noqa: E402
from ftjax.losses.forward import forward  # noqa: E402
from ftjax.models import FAMILIES, family_of  # noqa: E402
from ftjax.models.token_tagger import LOWEST, SpanReader  # noqa: E402
from ftjax.pretrained.export import published_tensors  # noqa: E402
from ftjax.pretrained.load import load_model  # noqa: E402
from ftjax.training.run import run  # noqa: E402
from ftjax.tuning.partition import partition  # noqa: E402
from ftjax.use.finished import load_finished_run  # noqa: E402
from ftjax.use.predict import Predictor  # noqa: E402

MODELS = {
    "bert": SIZE,
    "distilbert": DISTILBERT,
    "modernbert": SIZE
    | {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "deberta-v2": SIZE | DEBERTA,
}


def checkpoint(folder, name):
    config = transformers.AutoConfig.for_model(name, **MODELS[name])
    torch.manual_seed(0)
    model = transformers.AutoModelForQuestionAnswering.from_config(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    write_subword_tokenizer(folder)
    return model


def examples_of(folder, longest):
    """Windows of 24 tokens; some do not hold the answer."""
    random, rows, answers = np.random.default_rng(0), [], []
    for size in (longest, 7, 4):
        words = [f"word{n}" for n in random.integers(0, 99, size)]
        rows.append({"question": "word7", "context": " ".join(words)})
        answers.append([(len(words[0]) + 1, words[1])])
    tokenizer = load_tokenizer(folder)
    return span_examples(Records("q", rows), tokenizer, (24,), stride=4, answers=answers)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients(tmp_path, name):
    """Their loss also chooses among padding; so theirs is taken from their logits without it."""
    theirs = checkpoint(tmp_path, name)
    examples = examples_of(tmp_path, 12)
    rows = len(examples.lengths)
    batch = examples.batch(np.arange(rows), rows=rows + 1, length=24)
    assert not batch["attention_mask"][:rows].all() and (batch["start_positions"][:rows] == 0).any()
    backbone = load_model(tmp_path, "question_answering")
    rebuild, trainable, frozen = partition(SpanReader(backbone), lambda path: True)

    def loss(trainable):
        passed = forward(lambda values, _: rebuild(values, frozen), trainable, frozen, batch, None)
        total, weight, _ = spans.loss(passed.outputs, batch)
        return total / weight

    value, gradients = jax.value_and_grad(loss)(trainable)
    names = ["input_ids", "attention_mask", "start_positions", "end_positions"]
    inputs = {n: torch.tensor(batch[n][:rows]).long() for n in names}
    positions = [inputs.pop(n) for n in names[2:]]
    output = theirs(**inputs)
    total = 0.0
    for logits, position in zip((output.start_logits, output.end_logits), positions, strict=True):
        logits = logits.masked_fill(inputs["attention_mask"] == 0, -torch.inf)
        total = total + torch.nn.functional.cross_entropy(logits, position) / 2
    total.backward()
    assert float(value) == pytest.approx(float(total.detach()), abs=1e-5)
    family = family_of(theirs.config.model_type)
    found = dict(published_tensors(rebuild(gradients, frozen).backbone, family))
    assert_same_gradients(found, theirs)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_without_padding_it_is_transformers_own_loss(tmp_path, name):
    theirs = checkpoint(tmp_path, name)
    examples = examples_of(tmp_path, 40)
    (full,) = np.nonzero(examples.lengths == 24)
    assert len(full) > 3
    batch = examples.batch(full, rows=len(full) + 1, length=24)
    network = SpanReader(load_model(tmp_path, "question_answering"))
    total, weight, _ = spans.loss(network(batch), batch)
    names = ["input_ids", "attention_mask", "start_positions", "end_positions"]
    inputs = {n: torch.tensor(batch[n][: len(full)]).long() for n in names}
    with torch.no_grad():
        expected = theirs(**inputs).loss
    assert float(total / weight) == pytest.approx(float(expected), abs=1e-5)


def loop_of_run_qa(start_logits, end_logits, in_context, n_best, most):
    """The candidates of a window, slowly, as `postprocess_qa_predictions` finds them."""
    found = []
    starts = np.argsort(start_logits)[-1 : -n_best - 1 : -1].tolist()
    ends = np.argsort(end_logits)[-1 : -n_best - 1 : -1].tolist()
    for start in starts:
        for end in ends:
            if start >= len(in_context) or end >= len(in_context):
                continue
            if not in_context[start] or not in_context[end]:
                continue
            if end < start or end - start + 1 > most:
                continue
            found.append((start, end, start_logits[start] + end_logits[end]))
    return sorted(found, key=lambda one: one[2], reverse=True)[:n_best]


@pytest.mark.parametrize(("n_best", "most"), [(20, 30), (5, 3), (1, 1), (100, 100), (40, 2)])
@pytest.mark.parametrize("length", [12, 60])
def test_the_search_finds_what_the_loop_finds(n_best, most, length):
    random, rows = np.random.default_rng(n_best + length), 50
    logits = random.normal(size=(rows, length, 2)).astype(np.float32)
    sizes = random.integers(5, length + 1, rows)
    first = random.integers(1, 3, rows)
    last = np.maximum(first, sizes - 2)
    padded = np.arange(length) >= sizes[:, None]
    logits[padded] = LOWEST
    batch = {"context_start": first, "context_end": last}
    found = jax.jit(spans.best_spans, static_argnames=("n_best", "most"))(
        logits, batch, n_best=n_best, most=most
    )
    assert found.shape == (rows, n_best, 3)
    some = 0
    for row in range(rows):
        own, size = np.asarray(found[row]), sizes[row]
        in_context = [first[row] <= i <= last[row] for i in range(size)]
        expected = loop_of_run_qa(*logits[row, :size].T, in_context, n_best, most)
        assert own[: len(expected)].tolist() == [list(map(float, one)) for one in expected]
        assert (own[len(expected) :] == [-1, -1, 0]).all()
        some += len(expected)
    assert some > (0 if n_best == 1 else rows)


def answer_of_run_qa(folder, record, config, threshold):
    """The answer of a checkpoint by transformers alone, after run_qa."""
    tokenizer = load_tokenizer(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    inputs = tokenizer(
        record["question"],
        record["context"],
        truncation="only_second",
        max_length=config.data.buckets[-1],
        stride=config.data.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    null, found = np.inf, []
    for window, ids in enumerate(inputs["input_ids"]):
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        logits = output.start_logits[0].numpy(), output.end_logits[0].numpy()
        null = min(null, logits[0][0] + logits[1][0])
        in_context = [part == 1 for part in inputs.sequence_ids(window)]
        search = config.objective
        offsets = inputs["offset_mapping"][window]
        for start, end, score in loop_of_run_qa(
            *logits, in_context, search.n_best_size, search.max_answer_length
        ):
            found.append((score, offsets[start][0], offsets[end][1]))
    score, start, end = max(found)
    return (0, 0) if null - score > threshold else (start, end)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run from a checkpoint that had another head, for five classes."""
    folder, random = tmp_path_factory.mktemp("spans"), np.random.default_rng(0)
    (folder / "bert").mkdir()
    fields = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "id2label": {str(index): f"kind{index}" for index in range(5)},
    }
    write_checkpoint(folder / "bert", FAMILIES["bert"], fields, "token_classification")
    write_tokenizer(folder / "bert", with_end=False)
    for split in ("train", "validation", "test"):
        rows = []
        for index in range(16):
            words = random.choice(WORDS, int(random.integers(4, 30))).tolist()
            answers = {"text": [words[0]], "answer_start": [0]} if index % 4 else {}
            answers = answers or {"text": [], "answer_start": []}
            rows.append({"id": index, "question": WORDS[index], "context": " ".join(words)})
            rows[-1]["answers"] = answers
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = {
        "model.reference": str(folder / "bert"),
        "data.source": str(folder / "{split}.jsonl"),
        "data.buckets": (16,),
        "data.doc_stride": 4,
        "objective.max_answer_length": 3,
        "objective.n_best_size": 6,
        "retention.enabled": False,
        "training.epochs": 1,
    }
    config = override(base_config("span_extraction"), TINY | small)
    run(config, folder / "run")
    return folder


def test_an_export_answers_in_transformers_as_the_run_does(finished, tmp_path):
    loaded = load_finished_run(finished / "run")
    config, threshold = loaded.config, loaded.objective.facts["null_threshold"]
    ids = np.random.default_rng(1).integers(4, 60, (2, 12))
    expected = loaded.network.backbone(ids).logits
    loaded.objective.export(loaded.network, tmp_path / "out")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    assert theirs.config.architectures == ["BertForQuestionAnswering"]
    with torch.no_grad():
        output = theirs(torch.tensor(ids))
    np.testing.assert_allclose(expected[..., 0], output.start_logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(expected[..., 1], output.end_logits.numpy(), atol=1e-5)

    lines = (finished / "test.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found = Predictor(finished / "run")(records)
    places = [(one["start"], one["end"]) for one in found]
    assert places == [answer_of_run_qa(tmp_path / "out", r, config, threshold) for r in records]
    for one, record in zip(found, records, strict=True):
        assert record["context"][one["start"] : one["end"]] == one["answer"]


# peft asks transformers for what this will not have any more.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_answers_in_peft(finished, tmp_path):
    peft = pytest.importorskip("peft")
    config = load_finished_run(finished / "run").config
    run(override(config, {"tuning.method": "lora"}), tmp_path / "run")
    loaded = load_finished_run(tmp_path / "run")
    ids = np.random.default_rng(1).integers(4, 60, (2, 12))
    expected = loaded.network.backbone(ids).logits
    loaded.objective.export_adapter(loaded.network, tmp_path / "adapter")
    base = transformers.AutoModelForQuestionAnswering.from_pretrained(
        finished / "bert", num_labels=2
    )
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert isinstance(theirs, peft.PeftModelForQuestionAnswering)
    with torch.no_grad():
        output = theirs(input_ids=torch.tensor(ids))
    np.testing.assert_allclose(expected[..., 0], output.start_logits.numpy(), atol=1e-5)
    np.testing.assert_allclose(expected[..., 1], output.end_logits.numpy(), atol=1e-5)
