"""Losses, scores and exports of embeddings against sentence-transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")

from sentence_transformers.sentence_transformer import evaluation, losses  # noqa: E402
from tiny import quiet, write_splits  # noqa: E402

from ftjax.config import base_config, override  # noqa: E402
from ftjax.evaluation.retrieval import RETRIEVAL_METRICS, retrieval_scores  # noqa: E402
from ftjax.losses import contrastive  # noqa: E402
from ftjax.training.run import run  # noqa: E402
from ftjax.use.finished import load_finished_run  # noqa: E402
from ftjax.use.predict import Predictor  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, TEXTS, HIDDEN = 7, 4, 12


class Given(torch.nn.Module):
    """A model whose embeddings of a column are what was given."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, features):
        return {"sentence_embedding": self.embeddings[:, features["column"]]}

    def get_sentence_embedding_dimension(self):
        return HIDDEN

    get_embedding_dimension = get_sentence_embedding_dimension


def both(theirs, ours, texts=TEXTS, labels=None):
    """Loss and gradient of the same embeddings."""
    values = np.random.default_rng(0).normal(size=(ROWS, texts, HIDDEN)).astype(np.float32)
    embeddings = torch.tensor(values, requires_grad=True)
    columns = [{"column": column} for column in range(texts)]
    loss = theirs(Given(embeddings))(columns, labels)
    loss.backward()
    found, gradient = jax.value_and_grad(ours)(jnp.asarray(values))
    assert float(found) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, embeddings.grad.numpy(), rtol=1e-4, atol=1e-6)


REAL, IDS = jnp.ones(ROWS, bool), jnp.arange(ROWS * TEXTS).reshape(ROWS, TEXTS)


def mean_of_neighbours(embeddings):
    ids = IDS[:, : embeddings.shape[1]]
    return contrastive.multiple_negatives(embeddings, ids, REAL, scale=20.0)[0].mean()


@pytest.mark.parametrize("texts", [2, 3, 4])
def test_multiple_negatives(texts):
    both(losses.MultipleNegativesRankingLoss, mean_of_neighbours, texts)


def test_matryoshka():
    def theirs(model):
        inner = losses.MultipleNegativesRankingLoss(model)
        return losses.MatryoshkaLoss(model, inner, [HIDDEN, 5])

    def ours(embeddings):
        return sum(map(mean_of_neighbours, contrastive.shortened(embeddings, (5, HIDDEN))))

    values = np.random.default_rng(0).normal(size=(ROWS, 2, HIDDEN)).astype(np.float32)
    parts = [mean_of_neighbours(jnp.asarray(values[..., :width])) for width in (5, HIDDEN)]
    assert float(ours(jnp.asarray(values))) == pytest.approx(float(sum(parts)), rel=1e-6)
    both(theirs, ours, 2)


def test_triplet():
    def ours(embeddings):
        return contrastive.triplet(embeddings, margin=5.0)[0].mean()

    both(lambda model: losses.TripletLoss(model=model), ours, 3)


def test_cosent():
    scores = np.random.default_rng(1).integers(0, 4, ROWS).astype(np.float32)

    def ours(embeddings):
        return contrastive.cosent(embeddings, jnp.asarray(scores), REAL, scale=20.0)

    both(lambda model: losses.CoSENTLoss(model), ours, 2, torch.tensor(scores))


def test_cosine_similarity():
    labels = np.random.default_rng(1).integers(0, 2, ROWS).astype(np.float32)

    def ours(embeddings):
        return contrastive.cosine_similarity(embeddings, jnp.asarray(labels)).mean()

    both(lambda model: losses.CosineSimilarityLoss(model), ours, 2, torch.tensor(labels))


def test_scores_of_a_search():
    """On random corpora with several relevant texts of a query, and with ties."""
    random = np.random.default_rng(0)
    for trial in range(20):
        queries = random.normal(size=(int(random.integers(1, 9)), 4)).round(trial % 2 + 1)
        corpus = random.normal(size=(int(random.integers(1, 150)), 4)).round(trial % 2 + 1)
        queries[:, 0] += 0.5
        corpus[:, 0] += 0.5
        relevant = random.random((len(queries), len(corpus))) < 0.1
        relevant[np.arange(len(queries)), random.integers(0, len(corpus), len(queries))] = True
        ours = retrieval_scores(queries, corpus, relevant)
        given = {f"q{i}": q for i, q in enumerate(queries)}
        given |= {f"c{i:03}": c for i, c in enumerate(corpus)}
        evaluator = evaluation.InformationRetrievalEvaluator(
            {name: name for name in given if name[0] == "q"},
            {name: name for name in given if name[0] == "c"},
            {f"q{i}": {f"c{j:03}" for j in np.flatnonzero(row)} for i, row in enumerate(relevant)},
            score_functions={"cosine": sentence_transformers.util.cos_sim},
            write_csv=False,
        )

        class Model:
            similarity_fn_name, similarity = "cosine", sentence_transformers.util.cos_sim
            model_card_data = type("Card", (), {"set_evaluation_metrics": lambda *a, **k: None})()

            def encode(self, texts, given=given, **_):
                return torch.tensor(np.stack([given[text] for text in texts]))

            encode_query = encode_document = encode

        found = evaluator.compute_metrices(Model())["cosine"]
        for name in RETRIEVAL_METRICS:
            kind, _, depth = name.removeprefix("cosine_").partition("@")
            kind = {"recall": "precision_recall"}.get(kind, kind)
            theirs = {
                "accuracy": lambda f, k: f["accuracy@k"][k],
                "precision_recall": lambda f, k: f["recall@k"][k],
                "ndcg": lambda f, k: f["ndcg@k"][k],
                "mrr": lambda f, k: f["mrr@k"][k],
                "map": lambda f, k: f["map@k"][k],
            }[kind](found, int(depth))
            assert ours[name].mean() == pytest.approx(theirs, abs=1e-9), (trial, name)


def test_an_export_is_opened(tiny_bert, tmp_path):
    def pair(index):
        return {"anchor": f"word{index % 50}", "positive": f"word{index % 50} word{index % 7}"}

    source = write_splits(tmp_path, pair, train=24, validation=10, test=11)
    settings = {
        "name": "tiny",
        "model.reference": str(tiny_bert),
        "data.source": str(source),
        "data.max_length": 8,
        "data.batch_size": 8,
        "training.epochs": 1,
        "tuning.method": "lora",
        "retention.enabled": False,
    }
    for pooling in ("mean", "first", "last"):
        config = override(base_config("embedding"), settings | {"model.pooling": pooling})
        run(config, tmp_path / f"{pooling}-run", quiet())
        finished = load_finished_run(tmp_path / f"{pooling}-run")
        texts = ["word3 word4", "word5", "word6 " * 20]
        ours = Predictor(tmp_path / f"{pooling}-run")([{"text": text} for text in texts])
        finished.objective.export(finished.network, tmp_path / pooling)
        model = sentence_transformers.SentenceTransformer(str(tmp_path / pooling), device="cpu")
        theirs = model.encode(texts)
        np.testing.assert_allclose([one["embedding"] for one in ours], theirs, atol=2e-6)
        modules = json.loads((tmp_path / pooling / "modules.json").read_text())
        assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
