"""Score a model on labelled rows: a bundle's folder, or the URL of an endpoint.

python jobs/evaluate.py MODEL DATA [ROLE=COLUMN ...]      such as runs/reviews/bundle tweets.csv text=message
"""

import sys

import pmray


def main(model: str, data: str, *columns: str) -> None:
    found = pmray.evaluate(model, data, columns=dict(column.split("=", 1) for column in columns))

    print(f"{found.rows} rows; {found.metric} decides")
    for name, value in found.metrics.items():
        print(f"{name:>14} {value.value:.3f}  {value.level:.0%} interval {value.low:.3f} to {value.high:.3f}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except pmray.PmrayError as error:
        sys.exit(f"error: {error}")
