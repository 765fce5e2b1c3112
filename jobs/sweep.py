"""Find, prove and register the best pre-trained model for one data set.

python jobs/sweep.py SPEC [KEY=VALUE ...]      such as jobs/specs/reviews.yaml search.trials=4
"""

import sys

import pmray


def main(path: str, *overrides: str) -> None:
    spec = pmray.load_spec(path, overrides)
    swept = pmray.sweep(spec)  # rank, sweep, re-fit, open the test rows, decide, export, register

    print(*swept.verdict.words, sep="\n")
    print(f"bundle:     {swept.bundle}")
    print(f"registered: {swept.version} in {spec.registry_uri}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except pmray.PmrayError as error:
        sys.exit(f"error: {error}")
