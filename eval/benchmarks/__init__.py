"""The benchmarks: what each one's files are, and how it is scored."""
