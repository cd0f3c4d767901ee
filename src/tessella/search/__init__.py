"""Search and deduplication in the embeddings of a run."""
