"""How labeled data sets are laid out on disk: image folders, Parquet tables, WebDataset archives, lists of paths."""
