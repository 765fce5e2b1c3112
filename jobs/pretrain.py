"""Go on with the pre-training of models on your own texts; each result is a folder that another spec takes.

python jobs/pretrain.py SPEC [KEY=VALUE ...]      such as jobs/specs/state_union.yaml candidates.0.recipe.epochs=1
"""

import sys

import pmray


def main(path: str, *overrides: str) -> None:
    spec = pmray.load_spec(path, overrides)

    for one in pmray.pretrain(spec):
        print(f"{one.candidate}: perplexity {one.before:.1f} -> {one.perplexity:.1f}  {one.folder}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except pmray.PmrayError as error:
        sys.exit(f"error: {error}")
