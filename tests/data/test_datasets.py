import hashlib
import http.server
import threading
import zipfile
from functools import partial

import numpy as np
import pytest

from tfrec.data.datasets import movielens, prepare_dataset
from tfrec.data.datasets.download import Source, UnavailableError, download, find
from tfrec.data.datasets.groceries import grocery_log
from tfrec.data.datasets.synthetic import synthetic_log
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.evaluation.metrics import means, metrics_of_requests
from tfrec.evaluation.ranking import rank_targets


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def publisher(tmp_path):
    """A publisher on this machine: `(folder, address)`."""
    folder = tmp_path / "published"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def publish(folder, name, members) -> str:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text)
    return hashlib.md5((folder / name).read_bytes()).hexdigest()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty cache and an empty data folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TFREC_DATA_DIR", str(tmp_path / "given"))
    return tmp_path


def test_a_download_is_checked_unpacked_and_cached(publisher, places):
    folder, address = publisher
    md5 = publish(folder, "films.zip", {"films/a.txt": "A", "films/b.txt": "B"})
    source = Source(f"{address}/films.zip", md5, ["films/a.txt"])
    found = find("films", [["a.txt"]], source)
    assert found == places / "cache" / "tfrec" / "films"
    assert [p.name for p in found.iterdir()] == ["a.txt"]
    (folder / "films.zip").unlink()
    assert find("films", [["a.txt"]], source) == found  # the cache has it now


def test_a_wrong_checksum_keeps_nothing(publisher, places):
    folder, address = publisher
    publish(folder, "films.zip", {"a.txt": "A"})
    with pytest.raises(ValueError, match=r"its MD5 is [0-9a-f]{32}, not 0000. Nothing was kept"):
        download(Source(f"{address}/films.zip", "0000", ["a.txt"]), places / "cache" / "films")
    assert not list((places / "cache").iterdir())


def test_the_data_folder_comes_first(places):
    (places / "given" / "films").mkdir(parents=True)
    (places / "given" / "films" / "b.txt").write_text("B")
    assert find("films", [["a.txt"], ["b.txt"]], Source("http://127.0.0.1:9/x", "")) == places / "given" / "films"


def test_where_it_looked_and_what_to_do(places):
    with pytest.raises(
        UnavailableError, match=r"no a.txt in .*given/films` and .*cache/tfrec/films`.*set TFREC_DATA_DIR"
    ):
        find("films", [["a.txt"]], Source("http://127.0.0.1:9/x.zip", ""))


def test_the_published_movielens_files_are_read(publisher, places, monkeypatch):
    """In the publisher's layout, which is not the one under TFREC_DATA_DIR: rare films left out, order by time."""
    folder, address = publisher
    ratings = "".join(f"{u}::{item}::5::{time}\n" for u in range(1, 6) for item, time in ((7, 30), (8, 10), (9, 20)))
    members = {
        "ml-1m/ratings.dat": ratings + "1::99::1::5\n",
        "ml-1m/movies.dat": "7::S\xe9ance (1962)::Drama|Thriller\n",
    }
    with zipfile.ZipFile(folder / "ml-1m.zip", "w") as archive:
        for member, text in members.items():
            archive.writestr(member, text.encode("latin-1"))
    md5 = hashlib.md5((folder / "ml-1m.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(movielens, "ML_1M", Source(f"{address}/ml-1m.zip", md5, list(members)))
    prepare_dataset("movielens-1m", places / "data")
    data = PreparedData.open(places / "data")
    assert data.vocabulary.decode(data.history(0)) == ["8", "9", "7"]
    columns = data.items.to_pydict()
    assert columns["title"][columns["item_id"].index("7")] == "Séance (1962)"
    assert columns["genres"][columns["item_id"].index("7")] == ["Drama", "Thriller"]


def test_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`netflix` is no named data set. There are: movielens-100k"):
        prepare_dataset("netflix", tmp_path / "data")


def test_the_synthetic_bound_is_reached_by_the_true_probabilities(tmp_path):
    """A ranking by the generator's own probabilities has the hit rate that the manifest promises, up to sampling."""
    options = {"num_users": 4000, "num_items": 60, "events_per_user": 9, "num_interests": 6, "predictability": 0.7}
    prepare_dataset("synthetic", tmp_path / "data", **options)
    data = PreparedData.open(tmp_path / "data")
    split = LeaveLastOut(data)
    titles = data.items.to_pydict()["title"]  # "Interest 3, number 2": the interest and its rank by Zipf's law
    interest = np.array([int(t.split()[1].rstrip(",")) for t in titles])
    share = 1 / np.array([int(t.split()[-1]) for t in titles])
    _, ends = split.histories("test")
    before = interest[data.item_index[ends - 2] - 2]

    def scorer(rows):
        follows = interest[None, :] == (before[rows, None] + 1) % 6
        return (0.7 * follows + 0.3 / 6) * share

    got = means(metrics_of_requests(rank_targets(scorer, split, "test")))
    promised = data.manifest["bayes_optimal"]
    assert got["hr@10"] == pytest.approx(promised["hr@10"], abs=0.025)  # 3 sigma of 4,000 draws
    assert got["ndcg@10"] == pytest.approx(promised["ndcg@10"], abs=0.02)


def test_predictability_is_a_knob():
    bounds = [synthetic_log(300, 100, 8, 10, predictability=p)[1]["bayes_optimal"]["hr@10"] for p in (0.0, 0.5, 1.0)]
    assert bounds[0] < bounds[1] < bounds[2]


def test_a_synthetic_log_repeats_no_item_and_follows_its_seed():
    events = synthetic_log(50, 40, 12, 4, seed=1)[0]["events"]
    assert events.equals(synthetic_log(50, 40, 12, 4, seed=1)[0]["events"])
    assert not events.equals(synthetic_log(50, 40, 12, 4, seed=2)[0]["events"])
    pairs = list(zip(events["user"].to_pylist(), events["item"].to_pylist(), strict=True))
    assert len(set(pairs)) == len(pairs) == 600


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`num_interests` must divide `num_items`"):
        synthetic_log(num_items=50, num_interests=7)


def test_the_bound_of_the_groceries_is_reached_by_who_knows_the_baskets(tmp_path):
    """Known from many earlier visits: a hit rate and an NDCG as the manifest promises, up to sampling, by repeats alone."""
    num_baskets, size = 3, 4
    options = {
        "num_users": 2000,
        "num_items": 300,
        "events_per_user": 98,
        "num_baskets": num_baskets,
        "basket_size": size,
    }
    data = prepare_dataset("synthetic-groceries", tmp_path / "data", predictability=0.8, **options)
    split = LeaveLastOut(data)
    (starts, ends), last = split.histories("test"), 97

    def scorer(rows):
        scores = np.random.default_rng(0).random((len(rows), 300))  # any order among the others
        visit = np.arange(last) // size
        is_same, is_now = visit % num_baskets == last // size % num_baskets, visit == last // size
        for row, own in zip(scores, (data.item_index[starts[r] : ends[r]] - 2 for r in rows), strict=True):
            row += 10 * (np.bincount(own[is_same & ~is_now], minlength=300) > 2)
            row[own[~is_same]] -= 20
            row[own[is_now]] -= 20
        return scores

    ranking = rank_targets(scorer, split, "test", "allow")
    got = means(metrics_of_requests(ranking))
    promised = data.manifest["bayes_optimal"]
    assert got["hr@10"] == pytest.approx(promised["hr@10"], abs=0.03)  # 3 sigma of 2,000 draws
    assert got["ndcg@10"] == pytest.approx(promised["ndcg@10"], abs=0.03)
    assert ranking.share_of(split.is_repeat("test"), 10) > 0.97
    assert means(metrics_of_requests(rank_targets(scorer, split, "test")))["hr@10"] < 0.1


def test_groceries_of_noise_have_the_hit_rate_of_a_guess():
    (tables, noise), (_, certain) = (grocery_log(50, 100, 40, predictability=p) for p in (0.0, 1.0))
    assert noise["bayes_optimal"]["hr@10"] == pytest.approx(10 / 85)  # 85 items are in none of the customer's baskets
    assert certain["bayes_optimal"]["hr@10"] == 1.0
    assert tables["events"].equals(grocery_log(50, 100, 40, predictability=0.0)[0]["events"])
    with pytest.raises(
        ValueError, match=r"`num_baskets \* basket_size` must be above 0 and below .*events_per_user=15"
    ):
        grocery_log(events_per_user=15)
