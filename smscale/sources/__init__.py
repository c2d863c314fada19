"""Raw files in, labelled Datasets out: one module a product family."""
