"""All benches, one after the other: ``python -m tests.bench``."""

from tests.bench import data_checks, trial_overhead

data_checks.main()
trial_overhead.main()
