"""Watch a served model: join its labels, score it live, compare its challenger, promote or roll back, write it down.

python jobs/watch.py NAME [KEY=VALUE ...]      such as reviews min_labels=500, every night
"""

import sys

import yaml

import pmray


def main(name: str, *rules: str) -> None:
    changes = {key: yaml.safe_load(value) for key, value in (rule.split("=", 1) for rule in rules)}
    found = pmray.watch(name, rules=changes)

    score = found.status.score
    print(f"{found.status.counts.labelled} of {found.status.counts.predictions} predictions have a label")
    if score:
        print(f"live {found.status.metric} {score.value:.3f}, interval {score.low:.3f} to {score.high:.3f}")
    print(f"{found.decision.kind}: {'; '.join(found.decision.reasons)}")
    print(*found.done, *found.status.alerts, sep="\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except pmray.PmrayError as error:
        sys.exit(f"error: {error}")
