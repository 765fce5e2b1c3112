"""All benches, one after the other: ``python -m tests.bench``."""

from tests.bench import (
    coverage,
    data_checks,
    encoding,
    fit,
    fleet,
    fused,
    live,
    report,
    serve,
    sweep,
    sweep_faults,
    trial_overhead,
    utilisation,
)

data_checks.main()
coverage.main()
trial_overhead.main()
encoding.main(rows=500_000)
fit.main()
utilisation.main()
fused.main()
report.main()
live.main()
fleet.main()
sweep.main()
sweep_faults.main()
serve.main()
