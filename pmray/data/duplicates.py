"""Near-duplicates: rows that say the same in almost the same words, inside a split and across splits.

Documents are sets of pairs of neighbouring words. Candidates share all minimum hashes of a band (Broder 1997;
Leskovec, Rajaraman & Ullman, "Mining of massive datasets", chapter 3); each is then verified by its exact Jaccard
similarity, so that what is reported is true. With 20 bands of 5 hashes, a pair at the threshold is missed once in
2,800 times. Everything is vectorised: one pass over the word pairs for each hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmray.data.check import NAMED, Finding, counted
from pmray.data.documents import documents, input_keys

THRESHOLD = 0.8
"""Jaccard similarity of the sets of word pairs from which two documents count as near-duplicates."""

BANDS, HASHES = 20, 5
"""Bands, and hashes of each: P(candidate) = 1 - (1 - J^5)^20."""

WINDOW = 32
"""Documents after it in its bucket with which a document is compared: a crowd of equals stays linear in time."""

PAIRS = 100_000
"""Candidates that are verified at a time, which bounds memory."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class NearPairs:
    """Pairs of positions whose documents are near-duplicates, each pair once, ``first < second``."""

    first: Ints
    second: Ints
    similarity: NDArray[np.float64]
    """Jaccard similarity of each pair, at least the threshold."""


def near_pairs(texts: pa.ChunkedArray, threshold: float = THRESHOLD) -> NearPairs:
    """Find documents with almost the same words.

    Args:
        texts: Normalised, distinct documents (see ``pmray.data.documents``).
        threshold: Smallest Jaccard similarity of the sets of word pairs. Bands and hashes are laid out for 0.8.

    >>> found = near_pairs(pa.chunked_array([["a b c d e f g h i j k", "a b c d e f g h i j x", "quite another one"]]))
    >>> found.first.tolist(), found.second.tolist(), found.similarity.round(2).tolist()
    ([0], [1], [0.82])
    """
    from scipy.sparse import csr_array

    owners, shingles = _shingles(texts)
    kinds = int(shingles.max(initial=-1)) + 1
    candidates = _candidates(owners, shingles, len(texts))
    starts = np.searchsorted(owners, np.arange(len(texts) + 1))
    sets = csr_array((np.ones(len(shingles), np.int32), shingles, starts), shape=(len(texts), kinds))
    sizes = np.diff(starts)
    similarity = np.empty(len(candidates))
    first, second = candidates // max(1, len(texts)), candidates % max(1, len(texts))
    for begin in range(0, len(candidates), PAIRS):
        part = slice(begin, begin + PAIRS)
        shared = sets[first[part]].multiply(sets[second[part]]).sum(axis=1)
        similarity[part] = shared / (sizes[first[part]] + sizes[second[part]] - shared)
    near = similarity >= threshold
    return NearPairs(first[near], second[near], similarity[near])


def check_near_duplicates(splits: Mapping[str, pa.Table]) -> list[Finding]:
    """Report near-duplicates across and inside splits; equal inputs are ``pmray.data.check``'s.

    A finding's ``count`` and ``examples`` are those of the split that is named first (test before validation before
    train), or of the rows that are like an earlier row of the same split.
    """
    found = {name: texts for name, table in splits.items() if (texts := documents(table)) is not None}
    if not any(map(len, found.values())):
        return []
    coded = pa.chunked_array([chunk for texts in found.values() for chunk in texts.chunks], pa.string())
    coded = coded.combine_chunks().dictionary_encode()
    pairs = near_pairs(pa.chunked_array([coded.dictionary]))
    ends = np.cumsum([0, *map(len, found.values())])
    kinds = {name: coded.indices.to_numpy()[ends[at] : ends[at + 1]] for at, name in enumerate(found)}
    rows = _Documents(splits, kinds, pairs, len(coded.dictionary))
    findings = []
    for split, other in (("test", "train"), ("validation", "train"), ("test", "validation")):
        if split in kinds and other in kinds:
            findings += rows.across(split, other)
    return findings + [finding for split in kinds for finding in rows.inside(split)]


class _Documents:
    """Rows of all splits by the number of their document, with the pairs of documents that are near."""

    def __init__(self, splits: Mapping[str, pa.Table], kinds: Mapping[str, Ints], pairs: NearPairs, count: int) -> None:
        self.splits, self.kinds = splits, kinds
        self.ours = np.concatenate([pairs.first, pairs.second])
        self.theirs = np.concatenate([pairs.second, pairs.first])
        self.similarity = np.concatenate([pairs.similarity, pairs.similarity])
        # Position of each document's first row in a split; the number of rows where it is not in the split.
        self.begins = {}
        for split, numbers in kinds.items():
            self.begins[split] = np.full(count, len(numbers))
            np.minimum.at(self.begins[split], numbers, np.arange(len(numbers)))

    def across(self, split: str, other: str) -> list[Finding]:
        """Rows of `split` that are like a row of `other`."""
        numbers, begins, size = self.kinds[split], self.begins[other], len(self.kinds[other])
        partner, similarity = self._best_partner(begins[self.theirs] < size)
        same = begins < size
        partner[same], similarity[same] = np.flatnonzero(same), 1.0
        rows = np.flatnonzero(partner[numbers] >= 0)
        if not len(rows):
            return []
        ids = self._ids(split, rows)
        best = numbers[rows[0]]
        like = self._ids(other, begins[partner[best]][None])[0]
        message = (
            f"{split}: {counted(len(rows))} almost as in {other} (word pairs, Jaccard {THRESHOLD:g} or more; such as "
            f"{ids[0]} and {like}, {similarity[best]:.2f}); kept, but scores may look better than on new rows"
        )
        return [Finding("warning", f"{split} rows near {other}", message, len(rows), ids)]

    def inside(self, split: str) -> list[Finding]:
        """Rows of `split` that are like an earlier row of it, and not equal to it."""
        numbers, begins, size = self.kinds[split], self.begins[split], len(self.kinds[split])
        earlier = begins[self.theirs] < np.minimum(begins[self.ours], size)
        partner, similarity = self._best_partner(earlier)
        keys = input_keys(self.splits[split])
        firsts = begins[numbers]
        varied = firsts < np.arange(size)
        if keys is not None:
            coded = keys.combine_chunks().dictionary_encode().indices.to_numpy()
            varied &= coded != coded[firsts]
        rows = np.flatnonzero((partner[numbers] >= 0) | varied)
        if not len(rows):
            return []
        ids = self._ids(split, rows)
        number = numbers[rows[0]]
        like, value = (firsts[rows[0]], 1.0) if varied[rows[0]] else (begins[partner[number]], similarity[number])
        message = (
            f"{split}: {counted(len(rows))} almost as an earlier row (word pairs, Jaccard {THRESHOLD:g} or more; such "
            f"as {ids[0]} and {self._ids(split, like[None])[0]}, {value:.2f}); kept"
        )
        return [Finding("info", "near-duplicate row", message, len(rows), ids)]

    def _best_partner(self, allowed: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.float64]]:
        """For each document the most similar allowed one (-1 where there is none), and how similar it is."""
        partner = np.full(len(next(iter(self.begins.values()))), -1)
        similarity = np.zeros(len(partner))
        order = np.flatnonzero(allowed)
        order = order[np.argsort(self.similarity[order], kind="stable")]
        # Of several values for one place the last is kept: the most similar.
        partner[self.ours[order]] = self.theirs[order]
        similarity[self.ours[order]] = self.similarity[order]
        return partner, similarity

    def _ids(self, split: str, rows: Ints) -> tuple[str, ...]:
        return tuple(self.splits[split]["row_id"].take(pa.array(rows[:NAMED])).to_pylist())


def _shingles(texts: pa.ChunkedArray) -> tuple[Ints, Ints]:
    """Distinct pairs of neighbouring words (a lone word is one too): the document of each, ascending, and its number.

    Scripts that write no spaces count each character as a word.
    """
    spaced = pc.replace_substring_regex(texts, r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}])", r" \1 ")
    lists = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(spaced)).combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy()
    words = pc.list_flatten(lists).dictionary_encode()
    codes = words.indices.to_numpy().astype(np.int64)
    owners = np.repeat(np.arange(len(texts)), lengths)
    together = owners[:-1] == owners[1:]
    alone = lengths[owners] == 1
    size = len(words.dictionary)
    pairs = np.concatenate([(codes[:-1] * size + codes[1:])[together], codes[alone] + size * size])
    coded = pa.array(pairs).dictionary_encode()
    numbers, kinds = coded.indices.to_numpy(), max(1, len(coded.dictionary))
    found = _distinct(np.concatenate([owners[:-1][together], owners[alone]]) * kinds + numbers)
    return found // kinds, found % kinds


def _candidates(owners: Ints, shingles: Ints, count: int) -> Ints:
    """Pairs of documents that agree in all hashes of a band, as ``first * count + second``, ascending, each once."""
    if not len(owners):
        return np.empty(0, dtype=np.int64)
    filled, starts = np.unique(owners, return_index=True)
    draw = np.random.default_rng(0)
    mixed = _mixed(np.arange(shingles.max() + 1, dtype=np.uint64))
    found = []
    for _ in range(BANDS):
        key = np.zeros(len(filled), dtype=np.uint64)
        for _ in range(HASHES):
            odd, shift = draw.integers(1 << 63, size=2, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
            # The whole 64 bits of a multiplication of mixed numbers: its upper bits decide the minimum.
            key = _mixed(key + np.minimum.reduceat((mixed * odd + shift)[shingles], starts))
        order = np.argsort(key, kind="stable")
        ranked, pairs = key[order], []
        for step in range(1, WINDOW + 1):
            same = ranked[step:] == ranked[:-step]
            if not same.any():
                break
            one, other = filled[order[:-step][same]], filled[order[step:][same]]
            pairs.append(np.minimum(one, other) * count + np.maximum(one, other))
        found += [_distinct(np.concatenate(pairs))] if pairs else []
    return _distinct(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _distinct(numbers: Ints) -> Ints:
    """Sorted, each once. Sorting millions of numbers takes a tenth of the time of the hash table of ``np.unique``."""
    ordered = np.sort(numbers)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): neighbouring numbers become unrelated ones."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
