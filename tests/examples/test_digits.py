from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from examples.digits import held_out, training


def test_images_and_labels_have_the_promised_form() -> None:
    for images, labels in (held_out(), training()):
        assert images.dtype == np.float32
        assert images.shape == (len(labels), 1, 8, 8)
        assert images.min() == 0
        assert images.max() == 1
        assert labels.dtype == np.int64
        assert set(labels) == set(range(10))


def test_no_held_out_image_is_trained_on_and_none_is_lost() -> None:
    measured = {image.tobytes() for image in held_out()[0]}
    trained = {image.tobytes() for image in training()[0]}
    everything = {(image / 16).astype(np.float32).tobytes() for image in load_digits().images}
    assert not measured & trained
    assert measured | trained == everything


def test_labels_belong_to_their_images() -> None:
    truth = {
        (image / 16).astype(np.float32).tobytes(): label
        for image, label in zip(*load_digits(return_X_y=True), strict=True)
    }
    for images, labels in (held_out(), training()):
        assert [truth[image.tobytes()] for image in images] == labels.tolist()


def test_a_fifth_of_each_class_is_held_out() -> None:
    measured = np.bincount(held_out()[1])
    classes = np.bincount(load_digits().target)
    assert np.all(np.abs(measured - classes / 5) < 1)


def test_callers_cannot_spoil_the_data_of_each_other() -> None:
    images, labels = held_out()
    images[:], labels[:] = 0, 0
    assert held_out()[0].any()
    assert held_out()[1].any()
