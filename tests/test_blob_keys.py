"""Content keys: which blob they stand for, and in which epoch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jmapfs.blob_keys import content_key, split_content_key

blob_ids = st.text(st.characters(exclude_characters="\0"), min_size=1)
epochs = st.just("") | st.text("0123456789abcdef", min_size=8, max_size=8)


@given(epochs, blob_ids)
def test_a_key_can_be_split(epoch: str, blob_id: str) -> None:
    assert split_content_key(content_key(epoch, blob_id)) == (epoch, blob_id)


@given(blob_ids)
def test_without_an_epoch_the_blob_id_is_the_key(blob_id: str) -> None:
    assert content_key("", blob_id) == blob_id


@given(epochs, epochs, blob_ids)
def test_another_epoch_has_another_key(first: str, second: str, blob_id: str) -> None:
    assert (first == second) == (content_key(first, blob_id) == content_key(second, blob_id))
