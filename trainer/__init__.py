"""Stage two: shards -> batches -> a trained image encoder."""
