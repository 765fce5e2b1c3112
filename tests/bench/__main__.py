"""All benches, one after the other: ``python -m tests.bench``."""

from tests.bench import trial_overhead

trial_overhead.main()
