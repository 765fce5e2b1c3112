"""Versions of bundles and who is champion, in an SQLite file."""

import json
import shutil

import pytest

from pmray.bundle import open_bundle
from pmray.errors import DataError, RegistryError
from pmray.registry import Version, aliases, find, keep, promote, register, withdraw
from tests.tiny import tiny_bundle


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A registry with two versions of one model; the second is champion."""
    root = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{root / 'deep' / 'registry.db'}"
    first = tiny_bundle(root / "first")
    second = shutil.copytree(first, root / "second")
    settings = json.loads((second / "pmray.json").read_text())
    (second / "pmray.json").write_text(json.dumps({**settings, "key": "1"}))
    versions = [
        register(open_bundle(folder), uri, metrics={"f1_macro": 0.9}, params={"lr": 1e-4}) for folder in (first, second)
    ]
    return uri, versions


def test_every_bundle_is_a_version_and_the_latest_is_champion(place):
    uri, (first, second) = place
    assert [str(first), str(second)] == ["tiny version 1", "tiny version 2"]
    assert find("tiny", uri) == find("tiny@champion", uri) == second
    assert find("tiny/1", uri) == Version("tiny", "1", first.folder, ("previous",))


def test_the_same_bundle_again_is_the_version_it_has(place):
    uri, (_, second) = place
    assert register(open_bundle(second.folder), uri, metrics={}, params={}) == second
    assert find("tiny", uri) == second


def test_a_version_that_was_rolled_back_stays_so_when_its_sweep_runs_again(place):
    uri, (first, second) = place
    try:
        promote("tiny/1", uri)
        again = register(open_bundle(second.folder), uri, metrics={}, params={})
        assert (again.version, again.aliases) == ("2", ("previous",))
        assert find("tiny", uri).version == "1"
        withdraw("tiny", "champion", uri)
        assert register(open_bundle(first.folder), uri, metrics={}, params={}).aliases == ("champion",)
    finally:
        promote("tiny/2", uri)
        promote("tiny/1", uri, alias="previous")


def test_an_alias_moves_when_another_version_is_promoted(place):
    uri, (_, second) = place
    try:
        assert promote("tiny/1", uri).aliases == ("champion",)
        assert find("tiny", uri).version == "1"
        assert find("tiny/2", uri).aliases == ("previous",)
        assert aliases("tiny", uri) == {"champion": "1", "previous": "2"}
    finally:
        promote("tiny/2", uri)
        withdraw("tiny", "previous", uri)
        withdraw("tiny", "previous", uri)  # what nobody has can be taken away again
    assert find("tiny", uri).folder == second.folder


def test_an_alias_can_be_promoted_from_another(place):
    uri, _ = place
    promote("tiny/1", uri, alias="challenger")
    assert find("tiny@challenger", uri).version == "1"
    assert find("tiny@champion", uri).version == "2"


def test_promoting_the_champion_again_names_its_alias_once(place):
    uri, _ = place
    assert promote("tiny@champion", uri).aliases == ("champion",)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("tinny", "did you mean 'tiny'"),
        ("nothing-like-it", "known: tiny"),
        ("tiny@champoin", r"tiny has no alias 'champoin'; aliases: .*@champion \(version 2\)"),
        ("tiny/9", "tiny has no version 9"),
        ("tiny/first", "tiny has no version first"),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(place, reference, words):
    with pytest.raises(RegistryError, match=words):
        find(reference, place[0])


def test_a_version_whose_folder_is_gone_says_so(place):
    uri, (first, _) = place
    aside = first.folder.with_name("aside")
    first.folder.rename(aside)
    try:
        with pytest.raises(RegistryError, match=r"tiny version 1 points to .*first, which is gone"):
            find("tiny/1", uri)
    finally:
        aside.rename(first.folder)


def test_a_bundle_that_is_not_whole_is_not_promoted(place):
    uri, (first, _) = place
    aside = first.folder / "aside.json"
    (first.folder / "pmray.json").rename(aside)
    try:
        with pytest.raises(DataError, match="is not a pmray bundle"):
            promote("tiny/1", uri)
    finally:
        aside.rename(first.folder / "pmray.json")


def test_a_registry_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "registry.db").write_text("this is no database, and long enough to be told so" * 100)
    with pytest.raises(RegistryError, match=r"registry\.db cannot be opened"):
        find("tiny", f"sqlite:///{tmp_path / 'registry.db'}")


def test_a_folder_with_a_space_is_found_again(place, tmp_path):
    uri, (first, _) = place
    spaced = shutil.copytree(first.folder, tmp_path / "a folder #1")
    settings = json.loads((spaced / "pmray.json").read_text())
    (spaced / "pmray.json").write_text(json.dumps({**settings, "name": "spaced"}))
    register(open_bundle(spaced), uri, metrics={}, params={})
    assert find("spaced", uri).folder == spaced


def test_a_kept_bundle_outlives_the_one_that_replaces_it(tmp_path):
    uri = f"sqlite:///{tmp_path / 'registry.db'}"
    bundle = open_bundle(tiny_bundle(tmp_path / "bundle"))
    kept = keep(bundle, tmp_path / "registered" / "0")
    assert keep(bundle, tmp_path / "registered" / "0") == kept
    register(kept, uri, metrics={}, params={})
    register(bundle, uri, metrics={}, params={})  # the version it has: of the same key
    shutil.rmtree(bundle.folder)
    assert find("tiny", uri).folder == kept.folder
    assert kept.golden().num_rows > 0


def test_a_version_whose_files_were_replaced_is_an_error_and_not_another_model(tmp_path):
    uri = f"sqlite:///{tmp_path / 'registry.db'}"
    folder = tiny_bundle(tmp_path / "bundle")
    register(open_bundle(folder), uri, metrics={}, params={})
    settings = json.loads((folder / "pmray.json").read_text())
    (folder / "pmray.json").write_text(json.dumps({**settings, "key": "later"}))
    register(open_bundle(folder), uri, metrics={}, params={})
    assert aliases("tiny", uri) == {"champion": "2", "previous": "1"}
    assert find("tiny", uri).version == "2"
    with pytest.raises(RegistryError, match="which a later sweep has replaced"):
        find("tiny@previous", uri)
