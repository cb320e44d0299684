"""The table of a data set, shown before any work."""

from dataclasses import replace

import sparsemble as sp
from sparsemble.data.file_summary import FileSummary
from sparsemble.report import data_table


def test_a_table_of_a_data_set() -> None:
    digits = sp.data.load("digits")
    rows = dict(data_table(digits).rows)
    assert rows["images"] == "1,000 to train, 297 held out, 500 to test"
    assert rows["classes"].startswith("10: 0, 1, 2")
    assert rows["images of a class"] == "174 (8) to 183 (3), 1.1 times as many"
    unreadable = tuple((f"{number}.jpg", "it is damaged") for number in range(4))
    files = FileSummary(sizes=((8, 9), (8, 9), (8, 9)))
    assert dict(data_table(replace(digits, files=files)).rows)["duplicates"] == "none found"
    files = FileSummary(
        sizes=((8, 9), (640, 480), (4000, 3000)),
        unreadable=unreadable,
        duplicates=5,
        groups=2,
        removed=(("test/a.jpg", "train/b.jpg"),),
    )
    rows = dict(data_table(replace(digits, files=files)).rows)
    assert rows["size of the files"] == "8 x 9 to 4000 x 3000 pixels, median 640 x 480"
    assert rows["unreadable, left out"].startswith("4: 0.jpg (it is damaged), 1.jpg")
    assert rows["unreadable, left out"].endswith(", ...")
    assert rows["duplicates"] == "5 files in 2 groups, never in two splits"
    assert "test/a.jpg (is train/b.jpg)" in rows["left out of the test"]
