import jax
import numpy as np
import pytest

from ftjax.training.measure import by_example, results_of
from ftjax.training.parallel import MeshParallel, PmapParallel


def batches(ids, rows=4):
    for start in range(0, len(ids), rows):
        part = np.full(rows, -1, np.int32)
        part[: len(ids[start : start + rows])] = ids[start : start + rows]
        yield {"example_ids": part, "input_ids": part[:, None].astype(np.float32)}


@pytest.fixture(params=["mesh", "pmap"])
def parallel(request):
    kind = {"mesh": MeshParallel, "pmap": PmapParallel}[request.param]
    return kind(jax.devices())


def run(parallel, ids):
    function = parallel.map_evaluate(lambda scale, batch: batch["input_ids"] * scale)
    scale = parallel.place(np.float32(10))
    return by_example(results_of(function, batches(ids), parallel, scale))


@pytest.mark.parametrize("count", [1, 4, 5, 23])
def test_each_example_once_and_in_its_place(parallel, count):
    ids = np.random.default_rng(0).permutation(count)
    found = run(parallel, ids)
    np.testing.assert_array_equal(found, 10.0 * np.arange(count)[:, None])


@pytest.mark.parametrize("ids", [[0, 1, 1], [0, 2], [1]])
def test_missing_or_repeated_examples_are_an_error(ids):
    with pytest.raises(ValueError, match="every example exactly once"):
        run(MeshParallel(jax.devices()), np.asarray(ids))


def test_nothing_to_evaluate():
    with pytest.raises(ValueError, match="empty"):
        run(MeshParallel(jax.devices()), np.asarray([], int))


def test_results_come_one_by_one_and_few_ahead(parallel):
    """Then progress is that of the device, to the last batch."""
    sent = []

    def noted():
        for batch in batches(np.arange(23)):
            sent.append(len(batch))
            yield batch

    function = parallel.map_evaluate(lambda batch: batch["input_ids"])
    results = results_of(function, noted(), parallel)
    ahead = [len(sent) - got for got, _ in enumerate(results, 1)]
    assert ahead == [2, 2, 2, 2, 1, 0]
