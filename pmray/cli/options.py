"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pmray.spec import Serve, Spec

DEFAULT_STORAGE = "runs"

SpecFile = Annotated[Path, typer.Argument(help="Spec file (YAML); `pmray init TASK` prints a starter.", metavar="SPEC")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a key of the spec, such as search.trials=4. May be repeated.", metavar="KEY=VALUE"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]
AsEvents = Annotated[
    bool,
    typer.Option(
        "--json", help="Write one JSON document to standard output, and progress to standard error, one event a line."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster, such as auto or ray://head:10001. Default: RAY_ADDRESS, or this machine."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Leave out nodes that are not fit for the run, in place of refusing.")
]
Strict = Annotated[bool, typer.Option("--strict", help="A candidate that cannot be had is an error.")]
Registry = Annotated[
    str | None, typer.Option(help="MLflow tracking URI. Default: sqlite:///runs/registry.db.", metavar="URI")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", help="Role=column of the data, such as text=message. May be repeated.", metavar="ROLE=NAME"
    ),
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Write neither notes nor progress, only the answer.")]

MODEL_KINDS = (
    "Bundle folder, NAME[@alias] in the registry, URL of an endpoint, folder or Hub id of a transformers model with a "
    "classification head, or file of predictions (.csv, .parquet)."
)
Labels = Annotated[
    str | None,
    typer.Option(
        help="Names of the outputs, in order, of a model that calls them LABEL_0; for predictions, all labels.",
        metavar="A,B",
    ),
]


Report = Annotated[
    Path | None, typer.Option(help="Also write what was found as an HTML file that needs no network.", metavar="FILE")
]


def _runs_in(location: str | Path) -> Path:
    from pmray.run import runs_in

    # Typer hands defaults over too, as what they are.
    return runs_in(str(location))


Storage = Annotated[
    Path, typer.Option(help="Folder of the runs, or s3://, gs://, abfs://.", parser=_runs_in, metavar="FOLDER|URL")
]


def read_spec(path: Path, overrides: list[str] | None) -> Spec:
    """A spec with what ``--set`` changes."""
    from pmray.spec_file import load_spec

    return load_spec(path, overrides or ())


def serve_settings(values: dict[str, Any]) -> Serve:
    """The section `serve` of a spec; what is wrong with it is one error."""
    from pydantic import ValidationError

    from pmray.errors import SpecError, UnknownName
    from pmray.spec import Serve

    for key in values:
        if key not in Serve.model_fields:
            raise UnknownName("key of serve", key, Serve.model_fields)
    try:
        return Serve.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, ("serve", *first["loc"])))
        raise SpecError(f"{where}: {first['msg']}, but got {first['input']!r}") from None


def pairs(given: list[str] | None, option: str) -> dict[str, Any]:
    """``key=value`` strings as a dictionary; values are read as YAML."""
    import yaml

    pairs = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"{option} needs KEY=VALUE, but got {one!r}")
        try:
            pairs[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"{option} {one}: the value is not YAML ({error})") from None
    return pairs


def listed(given: str | None) -> list[str] | None:
    """``a, b`` as a list; None stays None."""
    return None if given is None else [one.strip() for one in given.split(",")]


def registry_of(uri: str | None) -> str:
    """The registry that is asked for, or the one beside the runs."""
    from pmray.registry import default_uri

    return uri or default_uri()
