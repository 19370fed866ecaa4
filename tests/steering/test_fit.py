"""A vector is used with the model that it was extracted from, and with no other."""

import logging

import pytest

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import BaseMismatchError
from personality_vector.steering.fit import require_made_from


@pytest.fixture
def models(pico, pico_tuned):
    return Checkpoint.open(pico("llama")), Checkpoint.open(pico_tuned("llama"))


def test_a_vector_belongs_to_its_model(models, caplog):
    own, other = models
    require_made_from("v", own.fingerprint.digest, own)
    require_made_from("v", "", own)  # unknown
    assert caplog.text == ""
    with pytest.raises(BaseMismatchError, match=r"v: was extracted from model v2\w{10}, but .*v2"):
        require_made_from("v", own.fingerprint.digest, other)


def test_a_vector_of_an_earlier_version_is_compared_by_its_sample(models, caplog):
    own, other = models
    sample = own.digest_like("0" * 32)
    with caplog.at_level(logging.WARNING):
        require_made_from("v", sample, own)
    assert "v: was extracted by an earlier version; of the model" in caplog.text
    with pytest.raises(BaseMismatchError, match="v: was extracted by an earlier version from"):
        require_made_from("v", sample, other, "the remedy")
