"""One verb a file: what people do with a model."""
