"""What is on disk: format 1 (docs/format.md). Reading it needs numpy and pyarrow, never torch or faiss."""
