"""The commands of docs/logs.md, on some lines of the shape in which each log is published."""

import gzip
import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tfrec.cli.main import app
from tfrec.data.prepared import PreparedData

PAGE = (Path(__file__).parents[2] / "docs" / "logs.md").read_text("utf-8")
COMMANDS = re.findall(r"^tfrec prepare .*$", PAGE, re.MULTILINE)
CUSTOMER = "000058a12d5b43e67d225668fa1f8d618c13dc232df0cad8ffe7ad4a1091e318"

FILES = {
    "ratings.dat": (
        "1::1193::5::978300760\n1::661::3::978302109\n1::914::3::978301968\n"
        "2::1193::5::978298413\n2::3068::4::978299000\n"
    ),
    "u.data": (
        "196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t377\t1\t878887116\n"
        "244\t51\t2\t880606923\n196\t346\t1\t886397596\n"
    ),
    "ratings.csv": (
        "userId,movieId,rating,timestamp\n1,17,4.0,944249077\n1,25,1.0,944250228\n"
        "1,29,2.0,943230976\n2,17,5.0,944249077\n"
    ),
    "ratings_Beauty.csv": (
        "A39HTATAQ9V7YF,0205616461,5.0,1369699200\nA3JM6GV9MNOF9X,0558925278,3.0,1355443200\n"
        "A1Z513UWSAAO0F,0558925278,5.0,1404691200\nA1WMRR494NWEWV,0733001998,4.0,1382572800\n"
    ),
    "reviews_Beauty_5.json.gz": (
        '{"reviewerID": "A1YJEY40YUW4SE", "asin": "7806397051", "reviewerName": "Andrea", "helpful": [3, 4], "reviewText": '
        '"Very oily", "overall": 1.0, "summary": "Don\'t", "unixReviewTime": 1391040000, "reviewTime": "01 30, 2014"}\n'
        '{"reviewerID": "A60XNB876KYML", "asin": "7806397051", "helpful": [1, 1], "reviewText": "This palette", "overall": 3.0, '
        '"summary": "OK", "unixReviewTime": 1397779200, "reviewTime": "04 18, 2014"}\n'
    ),
    "All_Beauty.jsonl.gz": (
        '{"rating": 5.0, "title": "Such a lovely scent", "text": "It is", "images": [], "asin": "B00YQ6X8EO", "parent_asin": '
        '"B00YQ6X8EO", "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ", "timestamp": 1588687728923, "helpful_vote": 0, '
        '"verified_purchase": true}\n'
        '{"rating": 4.0, "title": "Works", "text": "Well", "images": [], "asin": "B081TJ8YS3", "parent_asin": "B081TJ8YS3", '
        '"user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ", "timestamp": 1588615855070, "helpful_vote": 1, "verified_purchase": true}\n'
    ),
    "events.csv": (
        "timestamp,visitorid,event,itemid,transactionid\n1433221332117,257597,view,355908,\n1433224214164,992329,view,248676,\n"
        "1433221999827,111016,view,318965,\n1433221955914,257597,transaction,355908,4000\n"
    ),
    "train-item-views.csv": (
        "sessionId;userId;itemId;timeframe;eventdate\n1;NA;81766;526309;2016-05-09\n1;NA;31331;1031018;2016-05-09\n"
        "1;NA;32118;243569;2016-05-09\n2;5;9654;75848;2016-05-09\n"
    ),
    "yoochoose-clicks.dat": (
        "1,2014-04-07T10:51:09.277Z,214536502,0\n1,2014-04-07T10:54:09.868Z,214536500,0\n1,2014-04-07T10:54:09.506Z,214536506,0\n"
        "2,2014-04-07T13:56:37.614Z,214662742,S\n"
    ),
    "transactions_train.csv": (
        f"t_dat,customer_id,article_id,price,sales_channel_id\n2018-09-20,{CUSTOMER},0663713001,0.050830508474576264,2\n"
        f"2018-09-20,{CUSTOMER},0541518023,0.03049152542372881,2\n2018-09-20,{CUSTOMER},0541518023,0.03049152542372881,2\n"
        "2018-09-20,00007d2de826758b65a93dd24ce629ed66842531df6699338c5570910a014cc2,0505221004,0.015237288135593220,2\n"
    ),
    "articles.csv": (
        "article_id,product_code,prod_name\n0663713001,0663713,Atlanta Push Body\n"
        "0541518023,0541518,Rae Push (Melbourne)\n"
    ),
    "userid-timestamp-artid-artname-traid-traname.tsv": (
        "user_000001\t2009-05-04T23:08:57Z\tf1b1cf71-bd35-4e99-8624-24a6e15f133a\tDeep Dish\t\tPacha Ibiza\n"
        "user_000001\t2009-05-04T13:54:10Z\ta7f7df4a-77d8-4f12-8acd-5c60c93f4de8\t坂本龍一\t\tComposition 0919\n"
        'user_000001\t2009-05-04T13:52:04Z\ta7f7df4a-77d8-4f12-8acd-5c60c93f4de8\t坂本龍一\t\t"Heroes" (Live)\n'
        'user_000002\t2009-05-04T13:42:52Z\ta7f7df4a-77d8-4f12-8acd-5c60c93f4de8\t"坂本龍一\t\tHibari\n'
    ),
    "steam_reviews.json.gz": (
        "{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'725280', u'page_order': 0, u'date': "
        "u'2017-12-17', u'text': u'This would not be \"acceptable\"', u'early_access': False, u'page': 1}\n"
        "{u'username': u'Chaos Syren', u'hours': 51.1, u'products': 769, u'product_id': u'328100', u'date': u'2017-07-27', "
        "u'text': u'looks like a facebook game', u'early_access': False, u'page': 1}\n"
    ),
    "train.txt": "0 0 1 2 3\n1 128 129 130\n2 190 191\n",
    "ml-100k.inter": (
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t242\t3\t881250949\n186\t302\t3\t891717742\n"
        "196\t302\t1\t878887116\n"
    ),
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n242\tKolya\t1996\tComedy\n"
        "302\tL.A. Confidential\t1997\tCrime Film-Noir Mystery\n"
    ),
    "behaviors.tsv": (
        "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0\n"
        "2\tU91836\t11/12/2019 6:11:30 PM\tN31739\tN20678-0 N39317-1\n"
        '3\tU13740\t11/14/2019 7:01:48 AM\tN10732 "N25792\tN50014-1 N23877-1\n'
    ),
}

EXPECTED = {
    "ml-1m": (2, 4, 5),
    "ml-100k": (4, 5, 5),
    "ml-latest": (2, 3, 4),
    "ratings": (4, 3, 4),
    "reviews": (2, 1, 2),
    "reviews-2023": (1, 2, 2),
    "retailrocket": (3, 3, 4),
    "diginetica": (2, 4, 4),
    "yoochoose": (2, 4, 4),
    "hm": (2, 3, 3),
    "lastfm": (2, 2, 4),
    "steam": (1, 2, 2),
    "gowalla": (3, 9, 9),
    "recbole": (2, 2, 3),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.rpartition("/")[2])
def test_the_command_of_the_page_reads_every_row(folder, command):
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    name = command.rpartition("/")[2]
    data = PreparedData.open(folder / "data" / name)
    assert (data.num_users, data.num_items, data.num_events) == EXPECTED[name]
    assert data.manifest["num_refused"] == 0
    assert data.timestamp.any() or name == "gowalla"
    if name == "diginetica":  # within the day by the time in the session
        assert data.vocabulary.decode(data.history(0)) == ["32118", "81766", "31331"]
    if name == "hm":
        assert data.vocabulary.item_ids[0] == "0663713001"
        assert data.items["prod_name"][0].as_py() == "Atlanta Push Body"
        assert data.manifest["num_duplicates"] == 1
    if name == "recbole":
        assert data.items["title"].to_pylist() == ["Kolya", "L.A. Confidential"]
        assert data.items["class"].to_pylist() == [["Comedy"], ["Crime", "Film-Noir", "Mystery"]]


def test_every_log_of_the_page_is_tried():
    assert sorted(command.rpartition("/")[2] for command in COMMANDS) == sorted(EXPECTED)


def test_mind(folder):
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    found = {}
    exec(code, found)
    assert found["data"].num_events == 4
    assert os.path.exists("behaviors.tsv")
    assert found["data"].users["user_id"].to_pylist() == ["U13740", "U91836"]
