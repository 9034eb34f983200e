"""Many runs: sweeps, tables, clusters."""
