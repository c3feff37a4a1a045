"""Counting words of a vocabulary; operators on strings themselves are not supported."""

import numpy as np
import torch
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode, onnx_op


@onnx_op("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(node: OnnxNode, x: Tensor) -> Tensor:
    """How often each n-gram of a pool of integers occurs in (words) or (batch, words), weighted or only noted."""
    pool, starts = node.attr("pool_int64s"), node.attr("ngram_counts")
    if not pool:
        raise ValueError("has a pool of strings, only integers are supported")
    columns = np.asarray(node.attr("ngram_indexes"))
    words = x if x.ndim == 2 else x.reshape(1, -1)
    counts = words.new_zeros((words.shape[0], int(columns.max()) + 1), dtype=torch.float32)
    first = 0
    for size, (start, stop) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), start=1):
        grams = torch.tensor(pool[start:stop]).reshape(-1, size)
        own_columns = torch.from_numpy(columns[first : first + len(grams)])
        first += len(grams)
        if len(grams) and node.attr("min_gram_length") <= size <= node.attr("max_gram_length"):
            found = _occurrences(words, grams, node.attr("max_skip_count"))
            counts = counts.index_add(1, own_columns, found.to(torch.float32))
    if node.attr("mode") == "IDF":
        counts = (counts > 0).to(torch.float32)
    if node.attr("mode") != "TF" and node.attr("weights"):
        weight_of_column = np.zeros(counts.shape[1], np.float32)
        weight_of_column[columns] = node.attr("weights")
        counts = counts * torch.from_numpy(weight_of_column)
    return counts if x.ndim == 2 else counts.squeeze(0)


def _occurrences(words: Tensor, grams: Tensor, max_skip: int) -> Tensor:
    """(batch, grams): how often each gram occurs, its words next to each other or evenly spaced with skips between."""
    size = grams.shape[1]
    total = words.new_zeros((words.shape[0], grams.shape[0]), dtype=torch.int64)
    for distance in range(1, 2 if size == 1 else max_skip + 2):
        span = distance * (size - 1) + 1
        if span <= words.shape[1]:
            windows = words.unfold(1, span, 1)[..., ::distance]
            total = total + (windows.unsqueeze(2) == grams).all(-1).sum(1)
    return total
