"""All benches, one after the other: ``python -m tests.bench``."""

from tests.bench import coverage, trial_overhead

coverage.main()
trial_overhead.main()
