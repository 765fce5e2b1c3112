"""Fine-tune one candidate of a spec and export it; no search, and the test rows stay sealed.

python jobs/fit.py SPEC CANDIDATE [KEY=VALUE ...]      such as jobs/specs/reviews.yaml minilm-l3 resources.workers=2
"""

import sys

import pmray


def main(path: str, candidate: str, *overrides: str) -> None:
    spec = pmray.load_spec(path, overrides)
    bundle = pmray.fit(spec, candidate)

    print(f"bundle: {bundle}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except pmray.PmrayError as error:
        sys.exit(f"error: {error}")
