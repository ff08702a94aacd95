"""How well texts are found by their embeddings; names are those of sentence-transformers."""

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.preprocessing import normalize

# Queries whose similarities to all of the corpus are held at once.
QUERIES_AT_ONCE = 256
DEPTH = 100

RETRIEVAL_METRICS = {
    "cosine_ndcg@10": "higher",
    "cosine_accuracy@1": "higher",
    "cosine_recall@10": "higher",
    "cosine_mrr@10": "higher",
    "cosine_map@100": "higher",
}
"""What is scored -> which way is better."""


def retrieval_scores(queries: Any, corpus: Any, relevant: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of each query, float64 [queries]; ties go by the order of the corpus.

    Args:
        queries: float [queries, hidden], dense or sparse.
        corpus: float [texts, hidden], of the same kind.
        relevant: bool [queries, texts], at least one of each query.
    """
    queries, corpus = normalize(queries), normalize(corpus)
    found = []
    for start in range(0, len(relevant), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        similar = queries[part] @ corpus.T
        similar = similar.toarray() if sparse.issparse(similar) else np.asarray(similar)
        order = np.argsort(-similar, axis=1, kind="stable")[:, :DEPTH]
        hits = np.take_along_axis(relevant[part], order, axis=1)
        found.append(_of_hits(hits, relevant[part].sum(1)))
    return {name: np.concatenate([part[name] for part in found]) for name in RETRIEVAL_METRICS}


def _of_hits(hits: np.ndarray, total: np.ndarray) -> dict[str, np.ndarray]:
    """Of hits by rank, bool [queries, depth], and how many there are in all, [queries]."""
    hits = np.pad(hits, ((0, 0), (0, DEPTH - hits.shape[1]))).astype(np.float64)
    ranks = np.arange(1, DEPTH + 1)
    gains = 1 / np.log2(ranks[:10] + 1)
    best = np.cumsum(gains)[np.minimum(total, 10) - 1]
    precisions = np.cumsum(hits, axis=1) / ranks
    return {
        "cosine_ndcg@10": hits[:, :10] @ gains / best,
        "cosine_accuracy@1": hits[:, 0],
        "cosine_recall@10": hits[:, :10].sum(1) / total,
        "cosine_mrr@10": (hits[:, :10] / ranks[:10]).max(1),
        "cosine_map@100": (precisions * hits).sum(1) / np.minimum(total, DEPTH),
    }
