import json

import pytest

from tfrec.data.vocabulary import Vocabulary

ODD_IDS = ["a,b", 'say "hi"', "line\nbreak", "日本語", "👩‍🚀", " ", "\t", "\\", "0", "None"]


def test_ids_of_any_content_survive_a_round_trip(tmp_path):
    Vocabulary(ODD_IDS).save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert loaded.item_ids == ODD_IDS
    assert loaded.decode(loaded.encode(ODD_IDS)) == ODD_IDS
    content = json.loads((tmp_path / "vocabulary.json").read_text(encoding="utf-8"))
    assert content["item_ids"][0] == ODD_IDS[0]
    assert (content["pad_index"], content["oov_index"], content["first_item_index"]) == (0, 1, 2)


def test_an_empty_id_is_refused():
    with pytest.raises(ValueError, match="must not hold the empty string"):
        Vocabulary(["a", ""])


def test_a_repeated_id_is_refused_by_name():
    with pytest.raises(ValueError, match="Received twice: 'b'"):
        Vocabulary(["a", "b", "c", "b"])
