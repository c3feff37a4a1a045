"""TfIdfVectorizer against ONNX Runtime."""

import numpy as np
import onnx
import pytest

from shave.ir.errors import ReadError
from shave.ir.from_onnx.export import export_onnx
from tests.ir.from_onnx.runtime import assert_like_runtime, one_node_model

# Two words alone, three pairs, one triple.
POOL, COUNTS, COLUMNS = [2, 3, 5, 4, 5, 6, 7, 8, 1, 2, 3], [0, 2, 8], [0, 2, 1, 4, 3, 6]
WEIGHTS = [0.5, 2.0, 3.0, 0.25, 1.5, 7.0]


def vectorizer(words: np.ndarray, **attributes) -> onnx.ModelProto:
    settings = {
        "pool_int64s": POOL, "ngram_counts": COUNTS, "ngram_indexes": COLUMNS, "min_gram_length": 1, "mode": "TF",
        "max_gram_length": 3, "max_skip_count": 0,
    } | attributes  # fmt: skip
    return one_node_model("TfIdfVectorizer", {"x": words}, {}, order=["x"], opset=9, **settings)


@pytest.mark.parametrize("shape", [(24,), (3, 11)])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"max_skip_count": 3},
        {"min_gram_length": 2, "max_gram_length": 2, "max_skip_count": 1},
        {"mode": "IDF", "weights": WEIGHTS},
        {"mode": "TFIDF", "weights": WEIGHTS, "max_skip_count": 2},
        {"mode": "IDF"},
    ],
)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_counts(shape, attributes, dtype):
    words = np.random.default_rng(0).integers(1, 9, shape).astype(dtype)
    (counts,) = assert_like_runtime(vectorizer(words, **attributes), {"x": words}, rtol=1e-7)
    assert counts.any()


def test_text_shorter_than_the_grams():
    words = np.array([2], np.int64)
    assert_like_runtime(vectorizer(words, max_skip_count=2), {"x": words}, rtol=0)


def test_string_pools_are_refused():
    words = np.array([2], np.int64)
    model = vectorizer(words)
    (pool,) = [a for a in model.graph.node[0].attribute if a.name == "pool_int64s"]
    pool.CopyFrom(onnx.helper.make_attribute("pool_strings", ["a"] * len(POOL)))
    with pytest.raises(ReadError, match=r"node 'the_node' .TfIdfVectorizer.: has a pool of strings"):
        export_onnx(model)
