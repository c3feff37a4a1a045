"""One script per claim: peers side by side in one run, outputs compared before anything is timed."""
