"""Makes the demo's Parquet files from the source archive of the PyPI package ``vaderSentiment`` 3.3.2.

* fetch:  pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
* make:   python -m pmray.demo.make_data vaderSentiment-3.3.2.tar.gz

* sdist .tar.gz                          checked against its SHA-256
  x hutto_ICWSM_2014.tar.gz              read in memory
    + amazonReviewSnippets_GroundTruth   -> reviews_train.parquet, reviews_test.parquet, split by review
    + tweets_GroundTruth                 -> tweets.parquet, kept aside to show drift

The same archive and the same pyarrow give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pmray.errors import DataError

SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
NESTED = "additional_resources/hutto_ICWSM_2014.tar.gz"
REVIEWS = "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt"
TWEETS = "hutto_ICWSM_2014/tweets_GroundTruth.txt"

NEUTRAL_BELOW = 0.5
TEST_SHARE = 0.25
SEED = 0

# Only entities that end in a semicolon: html.unescape alone would also eat "&copy" in "a&copyb".
ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[A-Za-z]\w*);")
PHONE = re.compile(r"\b\d{3}[-. ]\d{3}[-. ]\d{4}\b")
EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]*\w")


@dataclass(frozen=True)
class Sentence:
    """One rated sentence; ``review`` is empty where the source does not say what it was part of."""

    id: str
    text: str
    mean: float
    domain: str
    review: str = ""

    @property
    def label(self) -> str:
        """The sign of the mean human rating, as a word."""
        return "positive" if self.mean > 0 else "negative"


def clean_text(raw: str) -> str:
    """The text with HTML entities resolved, phone numbers and e-mail addresses masked, and single spaces.

    Some entities are escaped twice in the source (``&amp;#38;``), so they are resolved until nothing changes.

    >>> clean_text(' AT&amp;T &amp;#38; co.  call 212 555 0100')
    'AT&T & co. call phone_removed'
    """
    text = raw
    while (resolved := ENTITY.sub(lambda found: html.unescape(found.group()), text)) != text:
        text = resolved
    text = EMAIL.sub("email_removed", PHONE.sub("phone_removed", text))
    return " ".join(text.split())


def parse(raw: bytes, domain: str) -> list[Sentence]:
    """The sentences of one ``*_GroundTruth.txt``: id, mean rating and text, tab separated, UTF-8."""
    sentences = []
    for number, line in enumerate(raw.decode("utf-8-sig").splitlines(), 1):
        fields = line.split("\t")
        if len(fields) != 3:
            raise DataError(f"{domain}, line {number}: 3 fields asked, {len(fields)} found. Is this the right archive?")
        key, mean, text = fields
        review = key.split("_")[0] if "_" in key else ""
        sentences.append(Sentence(key, clean_text(text), float(mean), domain, review))
    return sentences


def keep(sentences: Iterable[Sentence]) -> list[Sentence]:
    """Clear sentences only: not neutral, with a letter or digit, each text once, none with two labels."""
    clear = [one for one in sentences if abs(one.mean) >= NEUTRAL_BELOW and any(sign.isalnum() for sign in one.text)]
    labels: dict[str, set[str]] = defaultdict(set)
    for one in clear:
        labels[one.text].add(one.label)
    first: dict[str, Sentence] = {}
    for one in clear:
        if len(labels[one.text]) == 1:
            first.setdefault(one.text, one)
    return list(first.values())


def split_by_review(sentences: Sequence[Sentence]) -> tuple[list[Sentence], list[Sentence]]:
    """Train and test. Whole reviews go to test, in a seeded order, while neither label is above its share."""
    per_review: dict[str, Counter[str]] = defaultdict(Counter)
    for one in sentences:
        per_review[one.review][one.label] += 1
    room = {label: round(TEST_SHARE * n) for label, n in Counter(one.label for one in sentences).items()}
    test: set[str] = set()
    for review in sorted(per_review, key=lambda name: hashlib.sha256(f"{SEED}:{name}".encode()).digest()):
        counts = per_review[review]
        if all(counts[label] <= left for label, left in room.items()):
            test.add(review)
            room = {label: left - counts[label] for label, left in room.items()}
    return [one for one in sentences if one.review not in test], [one for one in sentences if one.review in test]


def write(sentences: Sequence[Sentence], path: Path) -> None:
    """Write one Parquet file; ``review`` is left out where no sentence has one."""
    columns = {
        "text": pa.array([one.text for one in sentences], pa.string()),
        "label": pa.array([one.label for one in sentences], pa.string()),
        "domain": pa.array([one.domain for one in sentences], pa.string()),
        "mean": pa.array([one.mean for one in sentences], pa.float32()),
        "id": pa.array([one.id for one in sentences], pa.string()),
    }
    if any(one.review for one in sentences):
        columns["review"] = pa.array([one.review for one in sentences], pa.string())
    pq.write_table(pa.table(columns), path, compression="zstd", compression_level=19)


def read_sources(sdist: Path) -> dict[str, bytes]:
    """The two files of ratings, by name, out of the archive inside the archive."""
    raw = sdist.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != SDIST_SHA256:
        raise DataError(f"{sdist.name}: SHA-256 {SDIST_SHA256} asked, {found} found. Fetch vaderSentiment==3.3.2.")
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r:gz") as outer:
        inner_raw = _member(outer, f"vaderSentiment-3.3.2/{NESTED}")
    with tarfile.open(fileobj=io.BytesIO(inner_raw), mode="r:gz") as inner:
        return {name: _member(inner, name) for name in (REVIEWS, TWEETS)}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise DataError(f"{name}: a file asked, something else found in the archive.")
    return stream.read()


def make(sdist: Path, out: Path) -> dict[str, int]:
    """Write the three files into ``out`` and tell the number of rows of each."""
    sources = read_sources(sdist)
    train, test = split_by_review(keep(parse(sources[REVIEWS], "reviews")))
    tweets = keep(parse(sources[TWEETS], "tweets"))
    out.mkdir(parents=True, exist_ok=True)
    files = {"reviews_train.parquet": train, "reviews_test.parquet": test, "tweets.parquet": tweets}
    for name, sentences in files.items():
        write(sentences, out / name)
    return {name: len(sentences) for name, sentences in files.items()}


def main() -> None:
    """Command line: the path of the sdist, and where to write."""
    parser = argparse.ArgumentParser(prog="python -m pmray.demo.make_data", description="Make the demo's data.")
    parser.add_argument("sdist", type=Path, help="vaderSentiment-3.3.2.tar.gz")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="folder to write to")
    arguments = parser.parse_args()
    for name, rows in make(arguments.sdist, arguments.out).items():
        print(f"{name}: {rows} rows")


if __name__ == "__main__":
    main()
